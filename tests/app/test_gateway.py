"""A client's generation, by way of events to the core and effects from it."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from p2pllm.app.gateway import CoreGateway
from p2pllm.app.models import ModelLibrary
from p2pllm.core.effects import GenerationFailed, PathChosen, TokenGenerated
from p2pllm.core.events import Event, GenerationCancelled, GenerationSubmitted
from p2pllm.domain.errors import ModelNotFoundError, NoPathError
from p2pllm.domain.generation import (
    FinishReason,
    GenerationRequest,
    SampledToken,
    SamplingParameters,
)
from p2pllm.domain.ids import ModelId, SessionId
from p2pllm.domain.layers import LayerRange
from p2pllm.weights.references import References
from tests.core.swarm_worlds import MODEL, holding, member, model, node_id, record, view_of

SESSION = SessionId("5" * 32)
REQUEST = GenerationRequest(SESSION, MODEL, (1, 2), 3, SamplingParameters())


class Core:
    """Notes what is posted; says what it is given once a generation is submitted."""

    def __init__(self, *answers: PathChosen | TokenGenerated | GenerationFailed) -> None:
        self.posted: list[Event] = []
        self._answers = answers
        held = member(record(node_id(1), holdings=(holding(0, 2),)))
        view = view_of(held, models=(model(4),), self_id=node_id(1))
        self.gateway = CoreGateway(
            self.post, lambda: view, ModelLibrary(References({})), lambda _: 1_700_000_000
        )

    def post(self, event: Event) -> None:
        self.posted.append(event)
        if isinstance(event, GenerationSubmitted):
            for answer in self._answers:
                self.gateway.deliver(answer)


def token(index: int, finish: FinishReason | None = None) -> TokenGenerated:
    return TokenGenerated(SESSION, index, SampledToken(index), finish)


async def test_what_the_core_makes_comes_in_order_and_ends_after_the_last_token() -> None:
    said = [PathChosen(SESSION, 1, ()), token(0), token(1, FinishReason.LENGTH)]
    core = Core(*said, token(2))
    assert [effect async for effect in core.gateway.generate(REQUEST)] == said
    assert core.posted == [GenerationSubmitted(REQUEST), GenerationCancelled(SESSION)]


async def test_an_error_of_the_core_is_raised_after_what_came_before_it() -> None:
    core = Core(token(0), GenerationFailed(SESSION, NoPathError("layers 2-3")))
    events = core.gateway.generate(REQUEST)
    assert await anext(events) == token(0)
    with pytest.raises(NoPathError, match="2-3"):
        await anext(events)
    assert core.posted[-1] == GenerationCancelled(SESSION)


async def test_a_client_that_goes_cancels_the_work_and_hears_no_more() -> None:
    core = Core(token(0))
    async with aclosing(core.gateway.generate(REQUEST)) as events:
        assert await anext(events) == token(0)
    assert core.posted[-1] == GenerationCancelled(SESSION)
    core.gateway.deliver(token(1))

    waiting = asyncio.ensure_future(anext(Core().gateway.generate(REQUEST)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_models_are_shown_with_what_they_miss() -> None:
    (served,) = Core().gateway.models()
    assert served.spec.id == MODEL
    assert served.missing == (LayerRange(2, 4),)
    assert served.added_s == 1_700_000_000


async def test_a_model_that_is_not_served_has_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="/v1/models"):
        await Core().gateway.tokenizer(ModelId("nobody"))
