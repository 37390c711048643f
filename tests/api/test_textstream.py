from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from p2pllm.api.textstream import (
    CONTEXT_TOKENS_MAX,
    PENDING_TOKENS_MAX,
    Detokeniser,
    StopFinder,
    TextStream,
)


class Vocabulary:
    """Tokens are places in a list of byte strings; a special token has none."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces
        self.longest = 0

    def decode(self, tokens: Sequence[int]) -> str:
        self.longest = max(self.longest, len(tokens))
        return b"".join(self.pieces[token] for token in tokens).decode("utf-8", "replace")


def cut(text: str, stops: Sequence[str]) -> str:
    """Reference: read letter by letter, and stop once the text ends in a stop string."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


def split(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:stop] for start, stop in pairwise(edges)]


letters = st.text(st.sampled_from("abé€😀 \N{REPLACEMENT CHARACTER}"), max_size=40)
cuts = st.lists(st.integers(0, 1_000), max_size=60)


@given(letters, cuts, st.lists(st.text("abé€", min_size=1, max_size=4), max_size=4))
def test_the_pieces_join_up_to_the_text_before_the_first_stop_string(
    text: str, places: list[int], stops: list[str]
) -> None:
    vocabulary = Vocabulary(split(text.encode(), places))
    stream = TextStream(vocabulary.decode, stops=stops)
    pieces: list[str] = []
    for token in range(len(vocabulary.pieces)):
        pieces.append(stream.push(token))
        assert stream.released_length == sum(map(len, pieces))
        if stream.stopped:
            break
    else:
        pieces.append(stream.finish())
    assert "".join(pieces) == cut(text, stops)
    assert stream.stopped == any(stop in text for stop in stops)


@given(st.lists(st.binary(max_size=5), max_size=120))
def test_even_bytes_that_are_no_text_join_up_to_the_whole_decode(pieces: list[bytes]) -> None:
    vocabulary = Vocabulary(pieces)
    detokeniser = Detokeniser(vocabulary.decode)
    told = [detokeniser.push(token) for token in range(len(pieces))]
    assert "".join(told) + detokeniser.finish() == b"".join(pieces).decode("utf-8", "replace")


@given(st.lists(st.sampled_from([b"\xff", b"\xe2", b"\x82", b"\xf0", b"\x9f", b"", b"a"])))
def test_no_decode_is_longer_than_the_window(pieces: list[bytes]) -> None:
    vocabulary = Vocabulary(pieces * 5)
    detokeniser = Detokeniser(vocabulary.decode)
    for token in range(len(vocabulary.pieces)):
        detokeniser.push(token)
    assert vocabulary.longest <= CONTEXT_TOKENS_MAX + PENDING_TOKENS_MAX


@example(text="é", places=[1] * 16)
@given(letters, cuts)
def test_part_of_a_character_is_never_shown(text: str, places: list[int]) -> None:
    text = text.replace("\N{REPLACEMENT CHARACTER}", "")
    vocabulary = Vocabulary(split(text.encode(), places))
    detokeniser = Detokeniser(vocabulary.decode)
    for token in range(len(vocabulary.pieces)):
        assert "\N{REPLACEMENT CHARACTER}" not in detokeniser.push(token)


def test_text_comes_with_the_token_that_makes_it_certain() -> None:
    vocabulary = Vocabulary([b"a", b"\xe2", b"\x82", b"\xac", b"b"])
    detokeniser = Detokeniser(vocabulary.decode)
    assert [detokeniser.push(token) for token in range(5)] == ["a", "", "", "€", "b"]


class SentencePieces:
    """Drops the space of the first word, as such decoders do, and falls back to bytes."""

    def __init__(self, words: Sequence[str | int]) -> None:
        self.words = words

    def decode(self, tokens: Sequence[int]) -> str:
        text, run = "", b""
        for word in [*(self.words[token] for token in tokens), ""]:
            if isinstance(word, int):
                run += bytes([word])
                continue
            try:
                text += run.decode()
            except UnicodeDecodeError:
                text += "\N{REPLACEMENT CHARACTER}" * len(run)
            text, run = text + word.replace("▁", " "), b""
        return text.removeprefix(" ")


@given(
    st.lists(st.sampled_from(["▁the", "re", "▁", "é", "€", "😀", "▁x", "<special>"]), max_size=50),
    st.booleans(),
)
def test_sentence_pieces_with_byte_fallback_join_up_too(words: list[str], in_bytes: bool) -> None:
    pieces: list[str | int] = []
    for word in words:
        if word == "<special>":
            pieces.append("")
        elif in_bytes and not word.isascii() and "▁" not in word:
            pieces.extend(word.encode())
        else:
            pieces.append(word)
    vocabulary = SentencePieces(pieces)
    detokeniser = Detokeniser(vocabulary.decode)
    told = [detokeniser.push(token) for token in range(len(pieces))]
    assert "".join(told) + detokeniser.finish() == vocabulary.decode(range(len(pieces)))


def test_the_space_after_the_prompt_is_kept_where_the_text_goes_on_from_it() -> None:
    vocabulary = SentencePieces(["▁Hello", "▁world"])
    assert Detokeniser(vocabulary.decode).push(1) == "world"
    assert Detokeniser(vocabulary.decode, context=[0]).push(1) == " world"


@given(
    st.text("ab", max_size=30),
    st.lists(st.integers(0, 30), max_size=10),
    st.lists(st.text("ab", min_size=1, max_size=5), max_size=5),
)
def test_a_stop_string_is_found_however_the_text_is_cut(
    text: str, places: list[int], stops: list[str]
) -> None:
    edges = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    finder = StopFinder(stops)
    told = [finder.push(text[a:b]) for a, b in pairwise(edges)]
    assert "".join(told) + finder.finish() == cut(text, stops)


def test_what_may_still_become_a_stop_string_is_held_back_and_no_more() -> None:
    finder = StopFinder(["abab"])
    assert finder.push("xaba") == "x"
    assert finder.push("c") == "abac"
    assert finder.push("ab") == ""
    assert finder.finish() == "ab"
    assert not finder.stopped


def test_nothing_comes_after_a_stop_string() -> None:
    finder = StopFinder(["\n"])
    assert finder.push("one\ntwo") == "one"
    assert finder.push("three") == ""
    assert finder.finish() == ""
    assert finder.stopped


def test_special_tokens_without_end_cost_no_more_and_lose_nothing() -> None:
    for first in ("▁Hello", ""):
        words = [first, *[""] * 100, "▁world"]
        vocabulary = SentencePieces(words)
        detokeniser = Detokeniser(vocabulary.decode)
        told = "".join(detokeniser.push(token) for token in range(len(words)))
        assert told + detokeniser.finish() == vocabulary.decode(range(len(words)))


def test_a_decoder_that_cannot_be_cut_still_gets_its_text_out() -> None:
    def decode(tokens: Sequence[int]) -> str:
        """Shows where it begins, so no two halves join up to the whole."""
        return "".join(f"{place}\N{REPLACEMENT CHARACTER}" for place, _ in enumerate(tokens))

    detokeniser = Detokeniser(decode)
    told = [detokeniser.push(0) for _ in range(PENDING_TOKENS_MAX)]
    assert told[:-1] == [""] * (PENDING_TOKENS_MAX - 1)
    assert told[-1] == decode([0] * PENDING_TOKENS_MAX)
