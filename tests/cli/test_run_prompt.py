"""One prompt, one answer."""

from __future__ import annotations

import json

import pytest

from p2pllm.cli.main import EXIT_REQUEST, EXIT_SWARM
from p2pllm.cli.run_prompt import format_path
from p2pllm.domain.errors import NoPathError
from tests.cli.conftest import RunningNode


def test_a_path_is_written_with_inclusive_layers() -> None:
    path = [{"node": "a" * 32, "layers": [0, 5]}, {"node": "b" * 32, "layers": [5, 12]}]
    assert format_path(path) == "aaaaaaaa 0-4 > bbbbbbbb 5-11"


def test_standard_output_is_the_text_and_the_rest_is_beside_it(
    node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert node.run("run", "fake", "Say it", "--temperature", "0", "--seed", "7") == 0
    shown = capsys.readouterr()
    assert shown.out == "Hello, world\n"
    assert "13 tokens" in shown.err
    assert "path aaaaaaaa 0-1 > bbbbbbbb 2-3" in shown.err
    request = node.gateway.requests[0]
    assert bytes(request.prompt).decode() == "Say it"
    assert (request.sampling.temperature, request.sampling.seed) == (0, 7)
    assert request.tokens_max <= 256


def test_an_answer_of_one_token_has_no_rate_and_no_trouble(
    node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert node.run("run", "fake", "Say it", "--max-tokens", "1") == 0
    shown = capsys.readouterr()
    assert shown.out == "H\n"
    assert "1 token" in shown.err


def test_as_json_the_text_comes_with_its_details(
    node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert node.run("run", "fake", "Say it", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["text"] == "Hello, world"
    assert shown["finish_reason"] == "stop"
    assert len(shown["token_ids"]) == 13
    assert shown["attempts"] == 1


def test_errors_end_it_with_their_code(
    node: RunningNode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert node.run("run", "nobody", "Say it") == EXIT_REQUEST
    assert "nobody" in capsys.readouterr().err
    node.gateway.error, node.gateway.error_after = NoPathError("layers 2-3 have no holder"), 4
    assert node.run("run", "fake", "Say it") == EXIT_SWARM
    shown = capsys.readouterr()
    assert shown.out.startswith("Hel")
    assert "layers 2-3" in shown.err
