"""`p2pllm join` on its own; that it lets machines in is shown with real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2pllm.app import enrol
from p2pllm.cli.main import EXIT_CONFIGURATION, run
from p2pllm.domain.errors import InviteError


def test_it_says_who_this_machine_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def join(folder: Path, text: str, name: str) -> tuple[str, str]:
        assert (folder, text, name) == (tmp_path, "p2p1.line", "desk")
        return "a" * 32, "b" * 64

    monkeypatch.setattr(enrol, "enrol_with_invite", join)
    arguments = ["join", "p2p1.line", "--data-dir", str(tmp_path), "--name", "desk"]
    assert run(arguments) == 0
    shown = capsys.readouterr().out
    assert "node aaaaaaaa of swarm bbbbbbbb" in shown
    assert "p2pllm node" in shown
    assert run([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["node"] == "a" * 32


def test_a_refusal_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def join(folder: Path, text: str, name: str) -> tuple[str, str]:
        raise InviteError("the invite has expired; ask for another")

    monkeypatch.setattr(enrol, "enrol_with_invite", join)
    assert run(["join", "p2p1.line", "--data-dir", str(tmp_path)]) == EXIT_CONFIGURATION
    assert capsys.readouterr().err == "error: the invite has expired; ask for another\n"
