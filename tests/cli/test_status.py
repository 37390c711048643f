"""The status as people and scripts read it."""

from __future__ import annotations

import json

import pytest

from p2pllm.cli.output import console
from p2pllm.core.routing import missing_layers
from tests.api.fakes import spec
from tests.cli.conftest import RunningNode, view
from tests.core.swarm_worlds import node_id


def test_it_shows_who_is_there_with_what_in_which_state(
    node: RunningNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "width", 160)
    assert missing_layers(view(), spec()) == node.gateway.missing
    assert node.run("status") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "swarm 55555555" in lines[0]

    def line_of(number: int) -> str:
        return next(line for line in lines if node_id(number)[:8] in line and line != lines[0])

    assert "(this)" in line_of(1)
    assert "fake: 0-1" in line_of(1)
    assert " 3 " in line_of(1)
    assert "12.5" in line_of(1)
    assert "alive" in line_of(2)
    assert "1.5 ms" in line_of(2)
    assert any("fake: 2 (loading)" in line for line in lines)
    assert "dead" in line_of(3)
    # Layer 2 is not ready anywhere, and layer 3 is on the dead node alone.
    assert "layers 2-3 missing" in lines[-1]
    assert " 0 " in lines[-1]


def test_as_json_it_is_what_the_node_says(
    node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert node.run("status", "--json") == 0
    assert json.loads(capsys.readouterr().out) == node.control.status()
