"""How figures are written for people."""

from __future__ import annotations

import json

import pytest

from p2pllm.cli.output import format_bytes, format_layers, format_rate, print_error, print_json
from p2pllm.domain.errors import P2PLLMError


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1536, "1.5 KiB"), (8 * 2**30, "8.0 GiB"), (3 * 2**40, "3.0 TiB")],
)
def test_sizes_have_the_unit_that_fits(size_bytes: int, text: str) -> None:
    assert format_bytes(size_bytes) == text


def test_layer_ranges_are_inclusive_for_people() -> None:
    assert format_layers([[0, 5], [10, 12], [7, 8]]) == "0-4, 10-11, 7"


def test_json_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"text": "a\nb", "long": "x" * 500})
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1
    assert json.loads(shown)["text"] == "a\nb"


def test_an_error_with_brackets_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_error(P2PLLMError("[red]layers 3[/red]"))
    assert capsys.readouterr().err == "error: [red]layers 3[/red]\n"


def test_a_single_token_has_no_rate() -> None:
    assert format_rate(None) == "-"
    assert format_rate(12.34) == "12.3 tokens/s"
