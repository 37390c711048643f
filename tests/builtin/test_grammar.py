import itertools
import os
import random
import string
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from p2pllm.builtin.chat import conversation
from p2pllm.builtin.evaluate import complaints
from p2pllm.builtin.grammar import draw_story, invented_word, story_text, tell, with_article

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


def test_articles_and_invented_words_read_as_english_would() -> None:
    assert with_article("old owl") == "an old owl"
    assert with_article("fox") == "a fox"
    assert invented_word(random.Random(1)).isalpha()
