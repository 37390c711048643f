"""One node: the machines composed.

    Swarm         who is there and what they hold     (membership, gossip, records)
    Holdings      what this node is to hold           (placement)
    Stage         steps that pass through this node   (scheduling, KV accounting)
    Generations   what its clients asked for          (routing, replay)

Each event goes to the machines it concerns. Then the node settles: what the swarm learnt reaches
the holdings and the waiting generations, and what this node now holds and carries reaches the
swarm. A peer that failed a call is on the blacklist at once; the swarm notices later and slower.

Leaving takes three steps: the record says so, and nobody gives this node anything new; what runs
here ends, or a bound passes; the swarm is told, and the process may end.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from p2pllm.core.blacklist import Blacklist
from p2pllm.core.capacity import PlacementConfig, weight_bytes
from p2pllm.core.effects import Effect, LeaveFinished, Notify
from p2pllm.core.events import (
    CertificatesAged,
    DatagramReceived,
    Event,
    GenerationCancelled,
    GenerationSubmitted,
    LayersFailed,
    LayersLoaded,
    LeaveRequested,
    ModelAdded,
    ModelRemoved,
    ModelResolved,
    PeerDiscovered,
    PeerUnreachable,
    StepsFinished,
    StreamReceived,
    TimerFired,
)
from p2pllm.core.gossip import estimated_size
from p2pllm.core.holdings import Holdings, HoldingsConfig
from p2pllm.core.routing import DEFAULT_ROUTING, RoutingConfig, RoutingPolicy, choose_path
from p2pllm.core.session import GenerationLimits, Generations
from p2pllm.core.stage import Stage, StageLimits
from p2pllm.core.swarm import Load, Sign, Swarm, SwarmConfig
from p2pllm.domain.errors import ModelNotFoundError, P2PLLMError
from p2pllm.domain.generation import Path
from p2pllm.domain.gossip import GossipItem, Signed
from p2pllm.domain.ids import ModelId, NodeId
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.messages import (
    CloseSession,
    Forward,
    SessionFailed,
    StreamProbe,
    StreamProbeAck,
    TokenSampled,
)
from p2pllm.domain.models import ModelSpec
from p2pllm.domain.records import Address, Holding, HoldingState, ModelFact, NodeRecord, SwarmView


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """Patience and bounds of all machines.

    Attributes:
        swarm: membership and gossip.
        placement: what all nodes of a swarm must agree on.
        holdings: how this node carries its part of the plan out.
        stage: bounds of its stage.
        generations: bounds of its gateway.
        routing: the cost model of paths.
        policy: what paths are chosen for.
    """

    swarm: SwarmConfig = field(default_factory=SwarmConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    holdings: HoldingsConfig = field(default_factory=HoldingsConfig)
    stage: StageLimits = field(default_factory=StageLimits)
    generations: GenerationLimits = field(default_factory=GenerationLimits)
    routing: RoutingConfig = DEFAULT_ROUTING
    policy: RoutingPolicy = RoutingPolicy.MIN_LATENCY


class Node:
    """The core of one node.

    Args:
        record: this node's record at its start; its incarnation must be above any it ever used.
        config: patience and bounds.
        sign: signs what this node says.
        random: this node's own stream of chance.
        now: the time of construction.
        size_of: bytes of an item in a datagram.
    """

    def __init__(
        self,
        record: NodeRecord,
        *,
        config: CoreConfig,
        sign: Sign,
        random: random_module.Random,
        now: float,
        size_of: Callable[[GossipItem], int] = estimated_size,
    ) -> None:
        self._id = record.node
        self._config = config
        self._random = random
        self._blacklist = Blacklist()
        self._swarm = Swarm(
            record,
            config=config.swarm,
            sign=sign,
            random=random_module.Random(random.random()),
            now=now,
            size_of=size_of,
        )
        self._stage = Stage(
            record.node,
            config.stage,
            self._held_spec,
            element_bytes=record.parameter_bytes,
            kv_capacity_bytes=record.memory_bytes,
        )
        self._holdings = Holdings(
            record.node,
            config=config.holdings,
            placement=config.placement,
            in_use=self._stage.in_use,
        )
        self._generations = Generations(
            record.node,
            config.generations,
            self._find_path,
            lambda model: self._swarm.view().model(model),
            self._blacklist.add,
            random_module.Random(random.random()),
        )
        # The time of the event in hand; what the machines' questions are answered for.
        self._now = now
        # What the swarm was told that is held; None once that may have changed, which it never
        # does by a step, and most events are steps.
        self._said: tuple[tuple[Holding, ...], tuple[ModelId, ...]] | None = None
        self._seen_revision = -1
        self._leaving = False
        self._farewell = False
        self._left = False

    # -- what is known

    @property
    def swarm(self) -> Swarm:
        """Who is there; to look at, not to change."""
        return self._swarm

    @property
    def is_leaving(self) -> bool:
        """Whether nothing new is taken on."""
        return self._leaving

    def view(self, now: float) -> SwarmView:
        """The swarm as this node sees it, with those left out who failed it moments ago."""
        view = self._swarm.view()
        blacklisted = self._blacklist.active(now)
        return replace(view, blacklisted=blacklisted) if blacklisted else view

    def addresses_of(self, node: NodeId) -> tuple[Address, ...]:
        """Where to reach `node`."""
        return self._swarm.addresses_of(node)

    # -- the contract

    def handle(self, event: Event, *, now: float) -> list[Effect]:
        """Take an event and say what is to be done."""
        self._now = now
        return self._dispatch(event, now) + self._settle(now)

    def deadline(self) -> float | None:
        """When to hand in `TimerFired`."""
        machines = (self._swarm, self._holdings, self._stage, self._generations)
        due = [at for machine in machines if (at := machine.deadline()) is not None]
        return min(due, default=None)

    def check(self) -> None:
        """Assert the invariants of every machine."""
        for machine in (
            self._swarm,
            self._holdings,
            self._stage,
            self._generations,
            self._blacklist,
        ):
            machine.check()
        assert self._said in (None, (self._holdings.holdings, self._holdings.models))

    def restore(self, facts: Iterable[Signed[ModelFact]], *, now: float) -> list[Effect]:
        """Remember what the swarm served when this node last ran; proven by the shell."""
        self._now = now
        return self._swarm.restore(facts, now=now) + self._settle(now)

    # -- inside

    def _dispatch(self, event: Event, now: float) -> list[Effect]:
        match event:
            case StreamReceived():
                return self._receive_stream(event, now)
            case StepsFinished():
                return self._stage.steps_finished(event, now)
            case DatagramReceived():
                return self._swarm.receive(event, now=now, wall_ms=event.wall_ms)
            case TimerFired():
                return self._fire(now)
            case PeerDiscovered():
                return self._swarm.discovered(event.address, event.node, now=now)
            case PeerUnreachable():
                self._blacklist.add(event.node, now)
                effects = self._stage.peer_unreachable(event.node, now)
                return effects + self._generations.peer_unreachable(event.node, now)
            case GenerationSubmitted():
                return self._generations.submit(event.request, now)
            case GenerationCancelled():
                return self._generations.cancel(event.session, now)
            case ModelResolved() | LayersLoaded() | LayersFailed():
                self._said = None
                return self._holdings.handle(event, now=now)
            case ModelAdded():
                try:
                    return self._swarm.add_model(event.spec, wall_ms=event.wall_ms, now=now)
                except P2PLLMError as error:
                    return [Notify("model_refused", "warning", {"reason": str(error)})]
            case ModelRemoved():
                try:
                    return self._swarm.remove_model(event.model, wall_ms=event.wall_ms, now=now)
                except P2PLLMError as error:
                    return [Notify("model_not_removed", "warning", {"reason": str(error)})]
            case CertificatesAged():
                return self._swarm.sign_anew(own=event.own, facts=event.facts, now=now)
            case LeaveRequested():
                self._leaving = True
                effects = self._swarm.update_own(now=now, leaving=True)
                self._said = None
                self._holdings.leave()
                effects += self._stage.leave(now)
                return effects + self._generations.leave(now)

    def _receive_stream(self, event: StreamReceived, now: float) -> list[Effect]:
        if event.sender != self._id:
            self._blacklist.succeeded(event.sender)
        message = event.message
        match message:
            case Forward() | CloseSession():
                return self._stage.receive(event.sender, message, now)
            case TokenSampled() | SessionFailed():
                return self._generations.receive(event.sender, message, now)
            case StreamProbe() | StreamProbeAck():
                return self._swarm.receive_stream(event.sender, message, now=now)

    def _fire(self, now: float) -> list[Effect]:
        effects = self._swarm.fire(now=now)
        self._said = None
        effects += self._holdings.handle(TimerFired(), now=now)
        effects += self._stage.fire(now)
        return effects + self._generations.fire(now)

    def _settle(self, now: float) -> list[Effect]:
        """Carry changes from one machine to the others until nothing changes."""
        effects: list[Effect] = []
        while self._seen_revision != self._swarm.revision:
            self._seen_revision = self._swarm.revision
            self._said = None
            effects += self._holdings.observe(self._swarm.view(), now)
            effects += self._generations.view_changed(now)
            effects += self._publish(now)
        effects += self._publish(now)
        idle = self._stage.sessions == 0 and self._generations.sessions == 0
        if self._leaving and idle and not self._farewell:
            self._farewell = True
            effects += self._swarm.leave(now=now)
        if self._swarm.has_left and not self._left:
            self._left = True
            effects.append(LeaveFinished())
        return effects

    def _publish(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        if self._said is None:
            holdings, models = self._said = (self._holdings.holdings, self._holdings.models)
            self._stage.set_kv_capacity(self._kv_capacity_bytes())
            effects += self._swarm.update_own(now=now, holdings=holdings, models=models)
        load = Load(
            queue_steps=self._stage.queue_steps,
            sessions=self._stage.sessions,
            kv_free_bytes=max(0, self._stage.kv_free_bytes),
            # Rounded, so that a rate that fades is not news without end.
            tokens_per_s=round(self._stage.tokens_per_s(now), 1),
        )
        return effects + self._swarm.update_load(load, now=now)

    def _kv_capacity_bytes(self) -> int:
        """What the weights held, or being loaded, leave of this node's memory."""
        own = self._swarm.own
        capacity_bytes = own.memory_bytes
        for spec in self._swarm.view().models:
            sizes = weight_bytes(spec, own.parameter_bytes)
            for holding in self._holdings.holdings:
                if holding.model == spec.id:
                    capacity_bytes -= sum(sizes[holding.layers.start : holding.layers.stop])
        return max(0, capacity_bytes)

    def _held_spec(self, model: ModelId, fingerprint: str, layers: LayerRange) -> ModelSpec | None:
        spec = self._swarm.view().model(model)
        if spec is None or spec.fingerprint != fingerprint:
            return None
        wanted = set(range(layers.start, layers.stop))
        for holding in self._holdings.holdings:
            if holding.model == model and holding.state is not HoldingState.LOADING:
                wanted -= set(range(holding.layers.start, holding.layers.stop))
        return None if wanted else spec

    def _find_path(self, model: ModelId, excluded: frozenset[NodeId], tokens: int) -> Path:
        view = self.view(self._now)
        spec = view.model(model)
        # Generations asks only for what it was told is served; a model removed meanwhile is gone.
        if spec is None:
            raise ModelNotFoundError(f"the swarm no longer serves {model}; see `p2pllm models ls`")
        return choose_path(
            view,
            spec,
            random=self._random,
            policy=self._config.policy,
            excluded=excluded,
            prompt_tokens=tokens,
            config=self._config.routing,
        )
