"""The command line as a whole: help, exit codes, one-line errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pllm.cli.main import EXIT_CONFIGURATION, EXIT_REQUEST, EXIT_SWARM, exit_code, run
from p2pllm.domain.errors import (
    ConfigurationError,
    InviteError,
    ModelNotFoundError,
    NoPathError,
    P2PLLMError,
)

COMMANDS = ["node", "invite", "join", "status", "plan", "run", "chat", "demo"]


@pytest.mark.parametrize("command", [*COMMANDS, "models add", "models rm", "models ls"])
def test_every_command_has_help_with_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command.split(), "--help"]) == 0
    assert f"Example: p2pllm {command}" in " ".join(capsys.readouterr().out.split())


def test_help_names_all_commands_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    for command in [*COMMANDS, "models"]:
        assert command in shown
    assert "130 interrupted" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), EXIT_CONFIGURATION),
        (InviteError("x"), EXIT_CONFIGURATION),
        (ModelNotFoundError("x"), EXIT_REQUEST),
        (NoPathError("x"), EXIT_SWARM),
        (P2PLLMError("x"), 1),
    ],
)
def test_the_exit_code_says_whose_turn_it_is(error: P2PLLMError, code: int) -> None:
    assert exit_code(error) == code


@pytest.mark.parametrize(
    ("arguments", "code", "hint"),
    [
        (["node", "--listen", "nowhere"], EXIT_CONFIGURATION, "HOST:PORT"),
        (["node", "--memory", "lots"], EXIT_CONFIGURATION, "8GiB"),
        (["node", "--device", "abacus"], EXIT_CONFIGURATION, "--device"),
        (["invite", "--ttl", "soon"], EXIT_CONFIGURATION, "24h"),
        (["join", "not-an-invite"], EXIT_CONFIGURATION, "p2p1."),
        (["status"], EXIT_CONFIGURATION, "p2pllm node"),
        (["run", "m", "hello"], EXIT_CONFIGURATION, "p2pllm node"),
        (["run", "m", "hello", "--api", "127.0.0.1:1"], EXIT_SWARM, "is it running?"),
    ],
)
def test_an_error_is_one_line_that_says_what_to_do(
    arguments: list[str],
    code: int,
    hint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run([*arguments, "--data-dir", str(tmp_path / "none")]) == code
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1
    assert hint in shown


def test_wrong_usage_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["node", "--max-layers", "0"]) == 2
    assert "--max-layers" in capsys.readouterr().err


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("p2pllm ")


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) in (0, 2)
    captured = capsys.readouterr()
    assert "Commands" in captured.out + captured.err
