from __future__ import annotations

import subprocess
import sys

import pytest

from p2pllm.app import threads
from p2pllm.app.threads import default_threads, let_threads_sleep


def test_waiting_threads_sleep_unless_told_otherwise() -> None:
    environment: dict[str, str] = {}
    let_threads_sleep(environment)
    assert environment == {"OMP_WAIT_POLICY": "PASSIVE"}


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_what_the_owner_chose_stays(name: str) -> None:
    environment = {name: "chosen"}
    let_threads_sleep(environment)
    assert environment == {name: "chosen"}


def test_the_command_line_is_read_before_torch_is_imported() -> None:
    """Else the policy would come too late."""
    script = (
        "import sys; import p2pllm.cli.main, p2pllm.app.threads; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(
    ("physical", "usable", "expected"), [(8, 16, 8), (8, 2, 2), (None, 4, 4), (4, 4, 4)]
)
def test_every_physical_core_that_may_be_used_gets_a_thread(
    monkeypatch: pytest.MonkeyPatch, physical: int | None, usable: int, expected: int
) -> None:
    monkeypatch.setattr(threads.psutil, "cpu_count", lambda logical: physical)
    monkeypatch.setattr(
        threads.os, "sched_getaffinity", lambda pid: set(range(usable)), raising=False
    )
    assert default_threads() == expected
