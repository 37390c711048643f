"""Invites: how long, for how many, and what is printed."""

from __future__ import annotations

import json

import pytest

from p2pllm.cli.invite import parse_duration
from p2pllm.cli.main import EXIT_CONFIGURATION
from p2pllm.domain.errors import ConfigurationError
from tests.cli.conftest import RunningNode


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1_800), ("24h", 86_400), (" 7d ", 604_800)]
)
def test_durations_have_units(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0h", "24", "1w", "-1h", "1.5h", "1h30m"])
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(ConfigurationError, match="24h"):
        parse_duration(text)


def test_standard_output_is_the_line_to_pass_on_and_nothing_else(
    node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert node.run("invite", "--uses", "3", "--ttl", "2h") == 0
    assert node.control.asked == [("invite", 3, 7_200)]
    assert capsys.readouterr().out == "p2pllm node --join p2pllm-invite\n"


def test_as_json(node: RunningNode, capsys: pytest.CaptureFixture[str]) -> None:
    assert node.run("invite", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"invite": "p2pllm-invite", "uses": 1, "ttl_s": 86_400}


def test_a_node_without_authority_says_so(
    node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert node.run("invite", "--uses", "99") == EXIT_CONFIGURATION
    assert "authority" in capsys.readouterr().err
