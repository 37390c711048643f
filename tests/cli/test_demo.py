"""The demo's parts; the whole of it runs in `tests/processes/test_demo.py`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from p2pllm.cli import demo
from p2pllm.cli.demo import DemoNode
from p2pllm.cli.main import EXIT_REQUEST, run
from p2pllm.domain.errors import SwarmError


async def test_a_node_that_ends_at_once_is_reported_with_its_last_words(tmp_path: Path) -> None:
    node = DemoNode(1, tmp_path)
    await node.start("--memory", "lots")
    with pytest.raises(SwarmError, match=r"(?s)node-1 ended with code 3.*'lots' is not a size"):
        await node.client()
    await node.stop()


async def test_a_node_that_takes_too_long_is_reported_and_can_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "START_TIMEOUT_S", 0.05)
    monkeypatch.setattr(demo, "STOP_TIMEOUT_S", 0.2)
    sleeper = tmp_path / "sleeper"
    sleeper.write_text(
        f"#!{sys.executable}\nimport signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "signal.pause()\n"
    )
    sleeper.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(sleeper))
    node = DemoNode(1, tmp_path)
    await node.start()
    with pytest.raises(SwarmError, match="did not start in time"):
        await node.client()
    async with asyncio.timeout(10):
        await node.stop()
        await node.stop()


def test_a_model_that_cannot_be_found_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def start(*_: object) -> None:
        raise AssertionError("nothing may be started")

    monkeypatch.setattr(DemoNode, "start", start)
    assert run(["demo", "--model", str(tmp_path / "none"), "--json"]) == EXIT_REQUEST
    assert "none" in capsys.readouterr().err
