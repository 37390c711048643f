"""Does what the core wants done: effects to streams, datagrams, the engine and waiting clients."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

import structlog

from p2pllm.app.models import ModelLibrary
from p2pllm.app.progress import ProgressDisplay
from p2pllm.core.effects import (
    DropLayers,
    Effect,
    FreeCache,
    GenerationFailed,
    LeaveFinished,
    LoadLayers,
    Notify,
    PathChosen,
    ResolveModel,
    RunSteps,
    SendDatagram,
    SendStream,
    StageStep,
    TokenGenerated,
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
from p2pllm.domain.errors import P2PLLMError
from p2pllm.domain.ids import NodeId
from p2pllm.domain.models import ModelSpec
from p2pllm.domain.records import Address
from p2pllm.engine.runner import Engine
from p2pllm.net.datagrams import DatagramEndpoint
from p2pllm.net.streams import PeerStreams

log: structlog.stdlib.BoundLogger = structlog.get_logger("p2pllm")


class Clients(Protocol):
    """Where generations are delivered."""

    def deliver(self, effect: PathChosen | TokenGenerated | GenerationFailed) -> None:
        """Pass on to the client, if there still is one."""
        ...


class Performer:
    """Performs effects; what takes time runs as a task of `tasks` and comes back as an event.

    Args:
        self_id: this node.
        post: hands an event to the core.
        addresses_of: where to reach a peer.
        engine: runs steps.
        library: finds models' files.
        streams: to peers.
        datagrams: to peers.
        clients: of generations.
        tasks: lives as long as the node.
        on_left: called once the node has left the swarm.
        progress: shown while weights are read.
    """

    def __init__(
        self,
        *,
        self_id: NodeId,
        post: Callable[[Event], None],
        addresses_of: Callable[[NodeId], tuple[Address, ...]],
        engine: Engine,
        library: ModelLibrary,
        streams: PeerStreams,
        datagrams: DatagramEndpoint,
        clients: Clients,
        tasks: asyncio.TaskGroup,
        on_left: Callable[[], None],
        progress: ProgressDisplay,
    ) -> None:
        self._self_id = self_id
        self._post = post
        self._addresses_of = addresses_of
        self._engine = engine
        self._library = library
        self._streams = streams
        self._datagrams = datagrams
        self._clients = clients
        self._tasks = tasks
        self._on_left = on_left
        self._progress = progress

    def perform(self, effect: Effect) -> None:
        """Do one effect; never blocks, never raises.

        What raises here is a bug, such as a message that breaks our own protocol. It is logged and
        costs that effect: the core has timeouts for whatever does not come back.
        """
        try:
            self._perform(effect)
        except Exception:
            log.exception("effect_failed", effect=type(effect).__name__)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case SendStream():
                if effect.node == self._self_id:
                    self._post(StreamReceived(self._self_id, effect.message))
                else:
                    addresses = self._addresses_of(effect.node)
                    self._streams.send(effect.node, addresses, effect.message)
            case RunSteps():
                self._start(self._run(effect.steps))
            case TokenGenerated() | PathChosen() | GenerationFailed():
                self._clients.deliver(effect)
            case SendDatagram():
                self._datagrams.send(effect.address, effect.message)
            case WatchPeer():
                if effect.node != self._self_id:
                    self._streams.watch(effect.node, self._addresses_of(effect.node))
            case FreeCache():
                self._engine.free_cache(effect.session, effect.attempt)
            case LoadLayers():
                self._start(self._load(effect))
            case DropLayers():
                self._start(self._engine.drop_layers(effect.model, effect.layers))
            case ResolveModel():
                self._start(self._resolve(effect.spec))
            case LeaveFinished():
                self._on_left()
            case Notify():
                getattr(log, effect.level)(effect.event, **effect.fields)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.create_task(work)

    async def _run(self, steps: tuple[StageStep, ...]) -> None:
        try:
            finished = await self._engine.run(steps)
        except Exception as error:
            # A bug of the engine must cost its sessions, not the node.
            log.exception("engine_failed")
            detail = f"the engine failed: {type(error).__name__}"
            finished = StepsFinished(
                tuple(StepResult(step.session, step.attempt, error=detail) for step in steps), 0.0
            )
        self._post(finished)

    async def _load(self, effect: LoadLayers) -> None:
        what = f"{effect.model} layers {effect.layers}"
        try:
            await self._engine.load_layers(
                effect.model, effect.layers, partial(self._progress.show, what)
            )
        except P2PLLMError as error:
            self._post(LayersFailed(effect.model, effect.layers, str(error)))
        except Exception as error:
            log.exception("loading_failed", model=effect.model, layers=str(effect.layers))
            detail = f"loading failed: {type(error).__name__}: {error}"
            self._post(LayersFailed(effect.model, effect.layers, detail))
        else:
            log.info("layers_loaded", model=effect.model, layers=str(effect.layers))
            self._post(LayersLoaded(effect.model, effect.layers))
        finally:
            self._progress.finish(what)

    async def _resolve(self, spec: ModelSpec) -> None:
        try:
            found = await self._library.find(spec)
            await self._engine.add_model(spec, found.checkpoint)
        except P2PLLMError as error:
            self._post(ModelResolved(spec.id, False, str(error)))
        except Exception as error:
            log.exception("resolving_failed", model=spec.id)
            detail = f"{type(error).__name__}: {error}"
            self._post(ModelResolved(spec.id, False, detail))
        else:
            self._post(ModelResolved(spec.id, True))
