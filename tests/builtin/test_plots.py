"""Plots and word lists."""

import random

import pytest

from p2pllm.builtin import cast
from p2pllm.builtin.chat import question_about
from p2pllm.builtin.evaluate import complaints
from p2pllm.builtin.grammar import draw_story, tell
from p2pllm.builtin.plots import PLOTS


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.name)
def test_every_plot_says_each_of_its_sentences_without_fault(plot) -> None:
    source = random.Random(plot.name)
    told = 0
    for _ in range(400):
        story = draw_story(source)
        if story.plot is plot:
            told += 1
            assert complaints(tell(story, source)) == []
            question, answer = question_about(story, source)
            assert "{" not in question + answer
    assert told > 10


def test_plots_and_word_lists_hold_nothing_twice() -> None:
    assert len({plot.name for plot in PLOTS}) == len(PLOTS)
    names = (*cast.HE_NAMES, *cast.SHE_NAMES)
    assert len(set(names)) == len(names)
    kinds = (*cast.KINDS, *cast.HE_KINDS, *cast.SHE_KINDS)
    assert len(set(kinds)) == len(kinds)
