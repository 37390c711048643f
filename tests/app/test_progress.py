"""Progress is a bar on a terminal and a few lines elsewhere."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from p2pllm.app.progress import ProgressDisplay


def test_elsewhere_each_quarter_is_a_line() -> None:
    with capture_logs() as lines, ProgressDisplay(on_terminal=False) as display:
        for done in range(0, 101):
            display.show("model.safetensors", done, 100)
    assert [line["percent"] for line in lines] == [25, 50, 75, 100]


def test_a_thing_may_come_again_after_it_was_done() -> None:
    with capture_logs() as lines, ProgressDisplay(on_terminal=False) as display:
        display.show("layers 0-3", 10, 10)
        display.show("layers 0-3", 10, 10)
    assert len(lines) == 2


def test_a_terminal_shows_a_bar_that_goes_away(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressDisplay(on_terminal=True) as display:
        display.show("a", 1, 10)
        display.show("b", 1, 10)
        display.show("a", 10, 10)
        display.show("b", 10, 10)
        display.show("a", 1, 10)
    assert capsys.readouterr().out == ""
