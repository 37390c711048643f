"""How torch's threads wait for each other.

An operation on the CPU is split among OpenMP threads, which by default spin for milliseconds when
they have nothing to do, since they expect the next operation at once. A decode step is hundreds of
small operations. Where anything else wants the cores (a second node, a browser), the thread that is
waited for is not running while those that wait burn its time, and a step takes ten times as long.
Threads that sleep cost some microseconds per operation instead. The figures are in
docs/performance.md.
"""

from __future__ import annotations

from collections.abc import MutableMapping

WAIT_POLICY = "OMP_WAIT_POLICY"
"""Of the OpenMP standard: both GNU's and LLVM's runtimes, of which torch brings one, read it."""


def let_threads_sleep(environment: MutableMapping[str, str]) -> None:
    """Have waiting threads sleep, unless the owner chose a policy.

    Call before torch is imported: the runtime reads the environment once, when it is loaded.
    """
    if not any(name in environment for name in (WAIT_POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        environment[WAIT_POLICY] = "PASSIVE"
