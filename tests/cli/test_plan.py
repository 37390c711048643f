"""Plans as people and scripts read them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2pllm.cli.main import EXIT_REQUEST
from tests.cli.conftest import RunningNode


def test_it_shows_who_would_hold_what_and_what_fits_nowhere(
    node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert node.run("plan", "fake") == 0
    shown = capsys.readouterr().out
    assert "[desk]" in shown
    assert "0-1" in shown
    assert "3.0 MiB" in shown
    assert "layers 2-3 fit nowhere" in shown
    assert "--memory" in shown


def test_a_folder_is_named_to_the_node_by_its_whole_path(
    node: RunningNode,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "llama").mkdir()
    monkeypatch.chdir(tmp_path)
    assert node.run("plan", "llama", "--json") == 0
    assert node.control.asked == [("plan", str(tmp_path / "llama"))]
    assert json.loads(capsys.readouterr().out)["missing"] == [[2, 4]]


def test_a_model_that_is_nowhere_is_said_so(
    node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert node.run("plan", "nowhere") == EXIT_REQUEST
    assert capsys.readouterr().err == "error: nothing at 'nowhere'\n"
