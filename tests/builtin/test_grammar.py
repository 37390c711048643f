import itertools
import os
import random
import string
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pllm.builtin import cast
from p2pllm.builtin.chat import conversation, question_about, request_for, small_talk
from p2pllm.builtin.evaluate import complaints, draw_request, sentences
from p2pllm.builtin.grammar import draw_story, invented_word, story_text, tell, with_article
from p2pllm.builtin.plots import PLOTS

SEEDS = st.integers(min_value=0, max_value=2**64)


@given(seed=SEEDS)
def test_a_story_names_its_hero_and_keeps_to_two_characters(seed: int) -> None:
    source = random.Random(seed)
    story = draw_story(source)
    text = tell(story, source)
    assert complaints(text, (story.hero.name, story.hero.kind)) == []


@given(seed=SEEDS)
def test_a_story_has_no_unfilled_slot_and_ends_with_a_full_stop(seed: int) -> None:
    text = story_text(random.Random(seed))
    assert "{" not in text
    assert "}" not in text
    assert "  " not in text
    assert text.endswith(".")
    assert 40 <= len(text.split()) <= 160


@given(seed=SEEDS)
def test_a_story_is_plain_text_that_any_terminal_shows(seed: int) -> None:
    assert set(story_text(random.Random(seed))) <= set(string.printable) - set("\n\t\r")


@given(seed=SEEDS)
def test_an_article_agrees_with_the_word_after_it(seed: int) -> None:
    words = story_text(random.Random(seed)).replace('"', "").split()
    for article, word in itertools.pairwise(words):
        if article in ("a", "an"):
            assert (article == "an") == (word[0] in "aeiou"), f"{article} {word}"


def test_the_same_seed_tells_the_same_story_in_another_process_with_another_hash_seed() -> None:
    command = (
        "import random; from p2pllm.builtin.chat import conversation;"
        "print([conversation(random.Random(f'{n}')) for n in range(20)])"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", command],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert told[0] == told[1]
    assert told[0].decode().strip() == str([conversation(random.Random(f"{n}")) for n in range(20)])


def test_stories_hardly_ever_repeat() -> None:
    source = random.Random("variety")
    assert len({story_text(source) for _ in range(2000)}) == 2000


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


@given(seed=SEEDS)
def test_a_request_names_nothing_that_its_story_lacks(seed: int) -> None:
    source = random.Random(seed)
    story = draw_story(source)
    request = request_for(story, source)
    text = tell(story, source)
    for name in {*cast.HE_NAMES, *cast.SHE_NAMES} & set(request.rstrip(".?").split()):
        assert name in text, f"{request!r} -> {text!r}"
    assert "{" not in request


@given(seed=SEEDS)
def test_a_conversation_takes_turns_and_ends_with_the_storyteller(seed: int) -> None:
    messages = conversation(random.Random(seed))
    roles = [message["role"] for message in messages]
    if roles != [""]:
        if roles[0] == "system":
            roles = roles[1:]
        assert roles
        assert roles == ["user", "assistant"] * (len(roles) // 2)
    assert all(message["content"] and "{" not in message["content"] for message in messages)


@given(seed=SEEDS)
def test_small_talk_is_answered_in_one_breath(seed: int) -> None:
    said, answered = small_talk(random.Random(seed))
    assert said
    assert len(answered.split()) < 20


def test_articles_and_invented_words_read_as_english_would() -> None:
    assert with_article("old owl") == "an old owl"
    assert with_article("fox") == "a fox"
    assert invented_word(random.Random(1)).isalpha()


def test_complaints_find_what_is_wrong_with_a_story() -> None:
    source = random.Random("faulty")
    story = draw_story(source)
    text = tell(story, source)
    stranger = next(
        name for name in cast.HE_NAMES if name not in (story.hero.name, story.helper.name)
    )
    assert complaints(text, ("zeppelin",)) == ["does not name 'zeppelin'"]
    assert "breaks off" in complaints(text.rstrip("."))
    assert complaints(text + " The sea is colourless and ideas sleep.") != []
    assert f"mentions {stranger!r} from nowhere" in complaints(
        f"{text} {stranger} was proud and happy all day long."
    )
    one_name = text.replace(story.helper.name, story.hero.name)
    assert "gives two characters one name" in complaints(one_name)
    assert "leaves a quotation open" in complaints(text + ' "')


def test_sentences_are_split_after_their_closing_marks() -> None:
    assert sentences('"Help! Help!" he cried. It was late.') == [
        '"Help!',
        'Help!"',
        "he cried.",
        "It was late.",
    ]


def test_a_request_drawn_for_the_evaluation_says_what_it_must_name() -> None:
    source = random.Random("requests")
    for _ in range(100):
        request = draw_request(source)
        assert all(part in request.text for part in request.must_name)
