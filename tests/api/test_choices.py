from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from p2pllm.api.choices import Choice, ChoiceEvent, Ended, Piece, Rerouted, run_choices
from p2pllm.api.metrics import Metrics
from p2pllm.domain.errors import NoPathError, SwarmError
from p2pllm.domain.generation import FinishReason, GenerationRequest, SamplingParameters
from p2pllm.domain.ids import ModelId, SessionId
from tests.api.fakes import END, ByteTokenizer, FakeGateway


def choice(index: int = 0, *, stops: tuple[str, ...] = (), tokens_max: int = 100) -> Choice:
    request = GenerationRequest(
        session=SessionId(f"{index:032x}"),
        model=ModelId("fake"),
        prompt=(1,),
        tokens_max=tokens_max,
        sampling=SamplingParameters(),
        stop_tokens=(END,),
    )
    return Choice(index=index, request=request, stops=stops)


async def events_of(one: Choice, gateway: FakeGateway) -> list[ChoiceEvent]:
    async with aclosing(one.run(gateway, ByteTokenizer(), Metrics())) as events:
        return [event async for event in events]


async def test_a_choice_tells_its_path_its_text_and_its_end() -> None:
    path, *pieces, end = await events_of(choice(), FakeGateway(text="a€"))
    assert isinstance(path, Rerouted)
    assert path.attempt == 1
    assert [piece.text for piece in pieces if isinstance(piece, Piece)] == ["a", "€"]
    assert end == Ended(0, FinishReason.STOP)


async def test_half_a_character_at_the_end_is_shown_as_such() -> None:
    events = await events_of(choice(tokens_max=2), FakeGateway(text="a€"))
    assert "".join(event.text for event in events if isinstance(event, Piece)) == "a\ufffd"
    assert events[-1] == Ended(0, FinishReason.LENGTH)


async def test_every_token_is_shown_once_with_where_it_begins() -> None:
    events = await events_of(choice(), FakeGateway(text="a€b"))
    tokens = [token for event in events if isinstance(event, Piece) for token in event.tokens]
    assert [token.sampled.token for token in tokens] == list("a€b".encode())
    assert [token.offset for token in tokens] == [0, 1, 1, 1, 2]


async def test_tokens_of_a_stop_string_are_not_shown() -> None:
    one = choice(stops=("cd",))
    events = await events_of(one, FakeGateway(text="abcde"))
    tokens = [token for event in events if isinstance(event, Piece) for token in event.tokens]
    assert bytes(token.sampled.token for token in tokens) == b"ab"
    assert bytes(one.token_ids) == b"abcd"


async def test_a_stop_string_met_only_at_the_very_end_counts() -> None:
    gateway = FakeGateway(text="ab\N{REPLACEMENT CHARACTER}", finish=FinishReason.LENGTH)
    events = await events_of(choice(stops=("b\N{REPLACEMENT CHARACTER}",)), gateway)
    assert "".join(event.text for event in events if isinstance(event, Piece)) == "a"
    assert events[-1] == Ended(0, FinishReason.STOP)


async def test_a_generator_that_ends_too_soon_is_an_error() -> None:
    with pytest.raises(SwarmError, match="before its last token"):
        await events_of(choice(), FakeGateway(text="", finish=FinishReason.LENGTH))


async def test_closing_a_choice_closes_the_gateways_generator() -> None:
    gateway = FakeGateway(text="abc")
    async with aclosing(choice().run(gateway, ByteTokenizer(), Metrics())) as events:
        await anext(events)
    assert gateway.closed.get_nowait()[1] == 0


async def test_a_choice_waits_until_its_text_was_taken() -> None:
    gateway, taken = FakeGateway(text="abc"), asyncio.Event()
    told: list[ChoiceEvent] = []

    async def sink(event: ChoiceEvent) -> None:
        told.append(event)
        if len(told) == 2:
            taken.set()
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(
            run_choices([choice()], gateway, ByteTokenizer(), Metrics(), sink)
        )
        await taken.wait()
        running.cancel()
    assert len(told) == 2
    assert gateway.closed.get_nowait()[1] == 1


async def test_the_first_error_ends_all_choices() -> None:
    gateway = FakeGateway(error=NoPathError("lost"), error_after=1)

    async def sink(_: ChoiceEvent) -> None:
        return

    with pytest.raises(NoPathError, match="lost"):
        await run_choices([choice(0), choice(1)], gateway, ByteTokenizer(), Metrics(), sink)
    assert gateway.closed.qsize() == 2


async def test_details_of_a_choice_without_tokens_are_empty() -> None:
    assert choice().details() == {
        "token_ids": [],
        "path": [],
        "attempts": 0,
        "timings": {"first_token_s": 0.0, "total_s": 0.0, "tokens_per_s": None},
    }
