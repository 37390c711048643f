"""What is wrong with a story is found."""

import random

from p2pllm.builtin import cast
from p2pllm.builtin.evaluate import complaints, draw_request, sentences
from p2pllm.builtin.grammar import draw_story, tell


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
