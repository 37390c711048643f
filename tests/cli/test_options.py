"""Which node a command means."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pllm.app.config import default_data_dir
from p2pllm.cli.main import run
from p2pllm.cli.options import data_dir_or_default
from tests.cli.conftest import RunningNode


def test_without_a_folder_the_usual_one_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    assert data_dir_or_default(None) == default_data_dir()
    monkeypatch.setenv("HOME", "/home/somebody")
    assert data_dir_or_default(Path("~/node")) == Path("/home/somebody/node")


def test_the_environment_may_name_the_folder(
    node: RunningNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("P2PLLM_DATA_DIR", str(node.data_dir))
    assert run(["status", "--json"]) == 0
    assert '"members"' in capsys.readouterr().out
