"""How many threads torch gets, and how they wait for each other.

An operation on the CPU is split among OpenMP threads, which by default spin for milliseconds when
they have nothing to do, since they expect the next operation at once. A decode step is hundreds of
small operations. Where anything else wants the cores (a second node, a browser), the thread that is
waited for is not running while those that wait burn its time, and a step takes ten times as long.
Threads that sleep cost some microseconds per operation instead. The figures are in
docs/performance.md.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

import psutil

WAIT_POLICY = "OMP_WAIT_POLICY"
"""Of the OpenMP standard: both GNU's and LLVM's runtimes, of which torch brings one, read it."""


def let_threads_sleep(environment: MutableMapping[str, str]) -> None:
    """Have waiting threads sleep, unless the owner chose a policy.

    Call before torch is imported: the runtime reads the environment once, when it is loaded.
    """
    if not any(name in environment for name in (WAIT_POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")):
        environment[WAIT_POLICY] = "PASSIVE"


def default_threads() -> int:
    """One for each physical core that this process may use, at least 1.

    Decoding waits for memory, so the second hardware thread of a core has nothing to add.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    usable = usable or 1
    # Not every system says how many of its cores are physical.
    return max(1, min(psutil.cpu_count(logical=False) or usable, usable))
