"""Effects are done by who does them, and what comes of them is told to the core."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from p2pllm.app.effects import Performer
from p2pllm.app.progress import ProgressDisplay
from p2pllm.core.effects import (
    DropLayers,
    Effect,
    FreeCache,
    GenerationFailed,
    LeaveFinished,
    LoadLayers,
    Notify,
    ResolveModel,
    RunSteps,
    SendStream,
    StageStep,
    WatchPeer,
)
from p2pllm.core.events import (
    Event,
    LayersFailed,
    LayersLoaded,
    ModelResolved,
    StepResult,
    StepsFinished,
    StreamReceived,
)
from p2pllm.domain.errors import ModelNotFoundError, ModelRefusedError, SwarmError
from p2pllm.domain.ids import NodeId, SessionId
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.messages import StreamProbe
from p2pllm.domain.records import Address
from tests.core.swarm_worlds import MODEL, model, node_id

SELF, PEER = node_id(1), node_id(2)
THERE = (Address("10.0.0.2", 7),)
LAYERS = LayerRange(0, 2)
STEP = StageStep(SessionId("5" * 32), 2, MODEL, LAYERS, 0, (1,), None, False, None)


class Everything:
    """All that a performer uses: notes each call, and fails where told to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.error = error
        self.checkpoint = object()

    def __getattr__(self, name: str) -> Any:
        def note(*arguments: Any) -> None:
            self.calls.append((name, *arguments))

        return note

    async def _work(self, *call: Any) -> Any:
        self.calls.append(call)
        if self.error is not None:
            raise self.error
        return self

    async def run(self, steps: tuple[StageStep, ...]) -> StepsFinished:
        await self._work("run", steps)
        return StepsFinished(tuple(StepResult(step.session, step.attempt) for step in steps), 0.1)

    async def load_layers(self, *arguments: Any) -> None:
        await self._work("load_layers", *arguments)

    async def drop_layers(self, *arguments: Any) -> None:
        await self._work("drop_layers", *arguments)

    async def add_model(self, *arguments: Any) -> None:
        await self._work("add_model", *arguments)

    async def find(self, *arguments: Any) -> Any:
        return await self._work("find", *arguments)


async def perform(
    effect: Effect, error: Exception | None = None
) -> tuple[list[Event], list[tuple[Any, ...]]]:
    """The events that come of an effect, and who was asked to do what."""
    events: list[Event] = []
    everything = Everything(error)
    stand_in = cast(Any, everything)

    def addresses_of(node: NodeId) -> tuple[Address, ...]:
        assert node == PEER
        return THERE

    async with asyncio.TaskGroup() as tasks:
        Performer(
            self_id=SELF,
            post=events.append,
            addresses_of=addresses_of,
            engine=stand_in,
            library=stand_in,
            streams=stand_in,
            datagrams=stand_in,
            clients=stand_in,
            tasks=tasks,
            on_left=stand_in.left,
            progress=ProgressDisplay(on_terminal=False),
        ).perform(effect)
    return events, everything.calls


async def test_a_message_to_a_peer_goes_out_and_one_to_itself_comes_back() -> None:
    message = StreamProbe(1)
    assert await perform(SendStream(PEER, message)) == ([], [("send", PEER, THERE, message)])
    assert await perform(SendStream(SELF, message)) == ([StreamReceived(SELF, message)], [])
    assert await perform(WatchPeer(PEER)) == ([], [("watch", PEER, THERE)])
    assert await perform(WatchPeer(SELF)) == ([], [])


async def test_steps_come_back_with_results() -> None:
    events, calls = await perform(RunSteps((STEP,)))
    assert calls == [("run", (STEP,))]
    assert events == [StepsFinished((StepResult(STEP.session, 2),), 0.1)]


@pytest.mark.filterwarnings("ignore::UserWarning")
async def test_a_bug_of_the_engine_costs_the_session_and_not_the_node() -> None:
    with capture_logs() as logs:
        events, _ = await perform(RunSteps((STEP,)), RuntimeError("a bug"))
    (event,) = events
    assert isinstance(event, StepsFinished)
    assert event.results[0].error == "the engine failed: RuntimeError"
    assert [entry["event"] for entry in logs] == ["engine_failed"]


async def test_loading_ends_in_one_of_two_events() -> None:
    effect = LoadLayers(MODEL, LAYERS)
    with capture_logs() as logs:
        events, calls = await perform(effect)
        assert [call[:3] for call in calls] == [("load_layers", MODEL, LAYERS)]
        assert events == [LayersLoaded(MODEL, LAYERS)]
        events, _ = await perform(effect, ModelRefusedError("a tensor is missing"))
        assert events == [LayersFailed(MODEL, LAYERS, "a tensor is missing")]
        events, _ = await perform(effect, MemoryError("no room"))
        assert events == [LayersFailed(MODEL, LAYERS, "loading failed: MemoryError: no room")]
    assert [entry["event"] for entry in logs] == ["layers_loaded", "loading_failed"]


async def test_whether_a_model_can_be_reached_is_told_with_the_reason() -> None:
    spec = model(4)
    with capture_logs():
        events, calls = await perform(ResolveModel(spec))
        assert [call[:2] for call in calls] == [("find", spec), ("add_model", spec)]
        assert events == [ModelResolved(MODEL, True)]
        events, _ = await perform(ResolveModel(spec), ModelNotFoundError("not here"))
        assert events == [ModelResolved(MODEL, False, "not here")]
        events, _ = await perform(ResolveModel(spec), OSError("disk"))
        assert events == [ModelResolved(MODEL, False, "OSError: disk")]


async def test_the_rest_is_passed_on() -> None:
    failed = GenerationFailed(STEP.session, SwarmError("gone"))
    assert await perform(failed) == ([], [("deliver", failed)])
    assert await perform(FreeCache(STEP.session, 2)) == ([], [("free_cache", STEP.session, 2)])
    assert await perform(DropLayers(MODEL, LAYERS)) == ([], [("drop_layers", MODEL, LAYERS)])
    assert await perform(LeaveFinished()) == ([], [("left",)])
    with capture_logs() as logs:
        await perform(Notify("peer_joined", "warning", {"node": "1a2b"}))
    assert logs == [{"event": "peer_joined", "log_level": "warning", "node": "1a2b"}]
