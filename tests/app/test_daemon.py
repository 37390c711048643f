"""What a node prints when it is up, and what makes it leave."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2pllm.app import daemon
from p2pllm.app.config import NodeConfig
from p2pllm.app.daemon import run_daemon
from p2pllm.app.node import NodeInformation
from p2pllm.domain.ids import NodeId, SwarmId
from p2pllm.domain.records import Address

LAN = Address("192.168.1.20", 7_770)
LOOPBACK = Address("127.0.0.1", 7_770)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a daemon around a node that does nothing but greet and wait."""

    def run(
        end: Callable[[], None],
        *,
        config: NodeConfig | None = None,
        address: Address = LAN,
        invite: str | None = None,
        exit_with_stdin: bool = False,
    ) -> None:
        async def node(
            config: NodeConfig,
            *,
            leave: asyncio.Event,
            on_ready: Callable[[NodeInformation], None],
        ) -> None:
            on_ready(
                NodeInformation(
                    NodeId("a" * 32),
                    "desk",
                    SwarmId("b" * 64),
                    (address,),
                    Address("127.0.0.1", 7_771),
                    invite,
                )
            )
            end()
            async with asyncio.timeout(10):
                await leave.wait()

        monkeypatch.setattr(daemon, "run_node", node)
        # Would bind the loggers of the whole test run to this test's captured output.
        monkeypatch.setattr(daemon, "configure_logging", lambda: None)
        run_daemon(config or NodeConfig(), exit_with_stdin=exit_with_stdin)

    return run


def send(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_make_it_leave(run: Any, number: signal.Signals) -> None:
    run(send(number))


def test_the_end_of_standard_input_makes_it_leave_where_asked(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.pipe()
    os.write(write, b"typed by mistake")
    with os.fdopen(read) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        run(lambda: os.close(write), exit_with_stdin=True)


def test_a_founder_prints_the_line_for_the_others(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run(send(signal.SIGTERM), invite="p2p1.line")
    shown = capsys.readouterr().out
    assert "desk (aaaaaaaa), swarm bbbbbbbb" in shown
    assert "192.168.1.20:7770" in shown
    assert "http://127.0.0.1:7771/v1" in shown
    assert "    p2pllm node --join p2p1.line\n" in shown
    assert "loopback" not in shown
    assert "OPEN" not in shown


def test_what_the_line_cannot_do_and_what_open_means_is_said(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = NodeConfig(data_dir=tmp_path, is_open=True)
    run(send(signal.SIGTERM), config=config, address=LOOPBACK, invite="p2p1.line")
    shown = capsys.readouterr().out
    assert "on this machine only" in shown
    assert "OPEN: anybody who reaches this node" in shown


def test_a_member_that_comes_back_prints_no_invite(
    run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run(send(signal.SIGTERM))
    assert "--join" not in capsys.readouterr().out
