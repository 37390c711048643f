from __future__ import annotations

from p2pllm.wire.tags import TAGS
from tests.wire.vectors import PINNED, SAMPLES, lines


def test_the_bytes_of_every_message_are_as_pinned() -> None:
    assert lines() == PINNED.read_text().splitlines()


def test_every_message_has_a_pinned_sample() -> None:
    assert {type(sample) for sample in SAMPLES} == set(TAGS)


def test_no_tag_stands_for_two_messages() -> None:
    assert len(set(TAGS.values())) == len(TAGS)
