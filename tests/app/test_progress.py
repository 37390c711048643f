"""Progress is a bar on a terminal and a few lines elsewhere."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from p2pllm.app.progress import SHOWN_BYTES_MIN, ProgressDisplay

TOTAL = SHOWN_BYTES_MIN


def test_elsewhere_each_quarter_is_a_line() -> None:
    with capture_logs() as lines, ProgressDisplay(on_terminal=False) as display:
        for percent in range(101):
            display.show("model.safetensors", TOTAL * percent // 100, TOTAL)
    assert [line["percent"] for line in lines] == [25, 50, 75, 100]


def test_what_is_small_is_not_worth_a_line() -> None:
    with capture_logs() as lines, ProgressDisplay(on_terminal=False) as display:
        display.show("config.json", TOTAL - 1, TOTAL - 1)
    assert lines == []


def test_a_thing_may_come_again_after_it_has_ended() -> None:
    with capture_logs() as lines, ProgressDisplay(on_terminal=False) as display:
        for _ in range(2):
            display.show("layers 0-3", TOTAL, TOTAL)
            display.finish("layers 0-3")
    assert len(lines) == 2


def test_a_bar_goes_when_its_thing_ends_short_of_the_guessed_total(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ProgressDisplay(on_terminal=True) as display:
        display.show("a", 1, TOTAL)
        display.show("b", 1, TOTAL)
        display.show("a", TOTAL // 2, TOTAL)
        assert display.shown == ["a", "b"]
        display.finish("a")
        assert display.shown == ["b"]
    assert capsys.readouterr().out == ""
