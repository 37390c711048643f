"""A conversation: what is sent grows, an error loses nothing, an empty line ends it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from p2pllm.cli.output import console
from p2pllm.domain.errors import OverloadedError
from tests.cli.conftest import RunningNode


def say(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    remaining: Iterator[str] = iter(lines)

    def ask(*_: object) -> str:
        try:
            return next(remaining)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(console, "input", ask)


def prompts(node: RunningNode) -> list[str]:
    return [bytes(request.prompt).decode() for request in node.gateway.requests]


def test_every_question_is_sent_with_all_that_was_said_before(
    node: RunningNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node.gateway.text = "Yes"
    say(monkeypatch, "One?", " Two? ", "", "never asked")
    assert node.run("chat", "fake", "--system", "Be") == 0
    assert capsys.readouterr().out == "Yes\nYes\n"
    assert prompts(node) == ["s:Be|u:One?|", "s:Be|u:One?|a:Yes|u:Two?|"]


def test_the_end_of_input_ends_it(
    node: RunningNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say(monkeypatch)
    assert node.run("chat", "fake") == 0
    assert node.gateway.requests == []


def test_a_question_that_failed_is_forgotten_and_the_talk_goes_on(
    node: RunningNode, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def ask(*_: object) -> str:
        asked.append("")
        node.gateway.error = OverloadedError("all busy") if len(asked) == 1 else None
        return ["First?", "Second?", ""][len(asked) - 1]

    asked: list[str] = []
    monkeypatch.setattr(console, "input", ask)
    assert node.run("chat", "fake") == 0
    assert "error: all busy" in capsys.readouterr().err
    assert prompts(node) == ["u:First?|", "u:Second?|"]
