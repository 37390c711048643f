"""Adding, removing and listing models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2pllm.cli.main import EXIT_REQUEST
from p2pllm.cli.models import reference_for_node
from p2pllm.domain.errors import ModelRefusedError
from tests.cli.conftest import RunningNode


def test_only_folders_that_exist_are_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    assert reference_for_node("models") == str(tmp_path / "models")
    assert reference_for_node("~/models") == str(tmp_path / "models")
    assert reference_for_node("owner/model") == "owner/model"
    assert reference_for_node("builtin") == "builtin"


def test_a_model_is_added_under_its_name(
    node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert node.run("models", "add", "owner/model", "--name", "mine") == 0
    assert node.control.asked == [("add", "owner/model", "mine")]
    assert capsys.readouterr().out == "The swarm serves mine (4 layers).\n"


def test_why_a_model_is_refused_is_told(
    node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    node.control.error = ModelRefusedError("it holds pickles")
    assert node.run("models", "add", "owner/model") == EXIT_REQUEST
    assert capsys.readouterr().err == "error: it holds pickles\n"


def test_a_model_is_removed(node: RunningNode, capsys: pytest.CaptureFixture[str]) -> None:
    node.gateway.names = ("fake", "owner/model")
    assert node.run("models", "rm", "owner/model", "--json") == 0
    assert node.control.asked == [("remove", "owner/model")]
    assert json.loads(capsys.readouterr().out) == {"id": "owner/model", "removed": True}


def test_the_list_says_what_is_missing(
    node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert node.run("models", "ls") == 0
    shown = capsys.readouterr().out
    assert "fake" in shown
    assert "layers 2-3 missing" in shown
    node.gateway.missing = ()
    assert node.run("models", "ls") == 0
    assert "ready" in capsys.readouterr().out
