"""Stages and a gateway joined by in-memory links, with an engine whose tokens prove the order.

The engine hashes instead of multiplying: each layer mixes a row with everything its cache has seen,
so a token is right only if every layer ran on every position once, in order, on one cache.
"""

from __future__ import annotations

import heapq
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b

from p2pllm.core.effects import (
    Draw,
    Effect,
    FreeCache,
    GenerationFailed,
    PathChosen,
    RunSteps,
    SendStream,
    StageStep,
    TokenGenerated,
    WatchPeer,
)
from p2pllm.core.events import StepResult, StepsFinished
from p2pllm.core.session import GenerationLimits, Generations
from p2pllm.core.stage import Stage, StageLimits
from p2pllm.domain.errors import NoPathError, P2PLLMError
from p2pllm.domain.generation import GenerationRequest, Hop, Path, SampledToken, SamplingParameters
from p2pllm.domain.ids import ModelId, NodeId, SessionId
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.messages import Activation, ActivationType, SessionFailed, TokenSampled
from p2pllm.domain.models import LayerRun, ModelSpec

MODEL = ModelId("tiny")
HIDDEN = 2
VOCABULARY = 97


def make_spec(layers: int = 6, context: int = 256) -> ModelSpec:
    return ModelSpec(
        id=MODEL,
        reference="builtin",
        fingerprint="f" * 32,
        architecture="Tiny",
        runs=(LayerRun(layers, 10, 4),),
        embedding_parameters=1,
        head_parameters=1,
        hidden_size=HIDDEN,
        context_length_max=context,
        vocabulary_size=VOCABULARY,
    )


def node_id(index: int) -> NodeId:
    return NodeId(f"{index:032x}")


def session_id(index: int) -> SessionId:
    return SessionId(f"{index + 2**60:032x}")


def mix(*values: object) -> int:
    return int.from_bytes(blake2b(repr(values).encode(), digest_size=8).digest(), "little")


class HashEngine:
    """Runs steps as the real one does, cache and all."""

    def __init__(self) -> None:
        # (session, attempt) -> layer -> (positions seen, digest of them).
        self.caches: dict[tuple[str, int], dict[int, tuple[int, int]]] = {}

    def run(self, steps: tuple[StageStep, ...]) -> StepsFinished:
        return StepsFinished(tuple(map(self._step, steps)), 0.001)

    def free(self, effect: FreeCache) -> None:
        del self.caches[effect.session, effect.attempt]

    def _step(self, step: StageStep) -> StepResult:
        cache = self.caches.setdefault((step.session, step.attempt), {})
        if step.layers.start == 0:
            rows = [mix("embed", token) for token in step.tokens]
        else:
            rows = list(struct.unpack(f"<{len(step.tokens)}Q", step.activation.data))
        for layer in range(step.layers.start, step.layers.stop):
            for row, value in enumerate(rows):
                seen, digest = cache.get(layer, (0, 0))
                assert seen == step.position + row, "a layer saw its positions out of order"
                digest = mix(digest, value, layer)
                cache[layer] = (seen + 1, digest)
                rows[row] = digest
        if not step.is_last:
            data = struct.pack(f"<{len(rows)}Q", *rows)
            activation = Activation(ActivationType.FLOAT32, len(rows), HIDDEN, data)
            return StepResult(step.session, step.attempt, activation=activation)
        if step.draw is None:
            return StepResult(step.session, step.attempt)
        draw = step.draw
        assert len(draw.history) == step.position + len(step.tokens)
        assert draw.index == len(draw.history) - draw.prompt_length
        token = mix(rows[-1], draw.index, draw.history, draw.sampling.seed) % VOCABULARY
        return StepResult(step.session, step.attempt, sampled=SampledToken(token))


def reference(request: GenerationRequest, spec: ModelSpec) -> list[int]:
    """What one engine that holds all layers generates."""
    engine = HashEngine()
    history = list(request.prompt)
    pending = tuple(history)
    out: list[int] = []
    while True:
        draw = Draw(request.sampling, len(out), tuple(history), len(request.prompt))
        position = len(history) - len(pending)
        step = StageStep(
            request.session, 1, MODEL, spec.layers, position, pending, None, True, draw
        )
        token = engine.run((step,)).results[0].sampled.token
        out.append(token)
        if token in request.stop_tokens or len(out) == request.tokens_max:
            return out
        history.append(token)
        pending = (token,)


def make_request(
    index: int = 0,
    *,
    prompt: tuple[int, ...] = (1, 2, 3),
    tokens_max: int = 5,
    **more: object,
) -> GenerationRequest:
    return GenerationRequest(
        session=session_id(index),
        model=MODEL,
        prompt=prompt,
        tokens_max=tokens_max,
        sampling=SamplingParameters(seed=index),
        **more,
    )


@dataclass
class Client:
    """What the gateway's client has seen of one generation."""

    request: GenerationRequest
    tokens: list[int] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    finished: bool = False
    error: P2PLLMError | None = None
    cancelled: bool = False
    at_s: float = 0.0

    @property
    def over(self) -> bool:
        return self.finished or self.error is not None or self.cancelled


class World:
    """Virtual time, links with delays, nodes that die. Node 0 is the gateway."""

    def __init__(
        self,
        holdings: dict[NodeId, tuple[LayerRange, ...]],
        *,
        spec: ModelSpec | None = None,
        seed: int = 0,
        duplicates: float = 0.0,
        kv_bytes: int = 10**9,
        stage_limits: StageLimits | None = None,
        generation_limits: GenerationLimits | None = None,
    ) -> None:
        self.spec = spec or make_spec()
        self.random = random.Random(seed)
        self.duplicates = duplicates
        self.holdings = holdings
        self.now = 0.0
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.sequence = 0
        self.dead: set[NodeId] = set()
        self.hung: set[NodeId] = set()
        self.frozen: dict[NodeId, list[Callable[[], None]]] = {}
        self.watchers: dict[NodeId, dict[NodeId, None]] = {}
        self.link_free_s: dict[tuple[NodeId, NodeId], float] = {}
        self.link_epoch: dict[tuple[NodeId, NodeId], int] = {}
        self.view_dead: set[NodeId] = set()
        self.clients: dict[SessionId, Client] = {}
        self.blamed: list[NodeId] = []
        self.log: list[tuple[float, NodeId, Effect]] = []
        self.gateway_id = node_id(0)
        self.stage_limits = stage_limits or StageLimits()
        self.kv_bytes = kv_bytes
        self.engines: dict[NodeId, HashEngine] = {}
        self.stages: dict[NodeId, Stage] = {}
        for node in holdings:
            self.start(node)
        self.stages.setdefault(self.gateway_id, self.make_stage(self.gateway_id))
        self.engines.setdefault(self.gateway_id, HashEngine())
        self.generations = Generations(
            self.gateway_id,
            generation_limits or GenerationLimits(chunk_tokens=4),
            self.find_path,
            lambda model: self.spec if model == MODEL else None,
            lambda node, now: self.blamed.append(node),
            random.Random(seed + 1),
        )

    def make_stage(self, node: NodeId) -> Stage:
        def holds(model: ModelId, fingerprint: str, layers: LayerRange) -> ModelSpec | None:
            held = self.holdings.get(node, ())
            right = model == MODEL and fingerprint == self.spec.fingerprint
            return self.spec if right and any(item.covers(layers) for item in held) else None

        return Stage(
            node, self.stage_limits, holds, element_bytes=2, kv_capacity_bytes=self.kv_bytes
        )

    def start(self, node: NodeId) -> None:
        self.stages[node] = self.make_stage(node)
        self.engines[node] = HashEngine()
        self.dead.discard(node)
        self.view_dead.discard(node)

    def find_path(self, model: ModelId, excluded: frozenset[NodeId], tokens: int) -> Path:
        """Some path of nodes believed alive; a random one, as routing's taste is not at issue."""
        hops: list[Hop] = []
        layer = 0
        while layer < self.spec.num_layers:
            choices = [
                (node, item)
                for node, held in self.holdings.items()
                if node not in excluded and node not in self.view_dead
                for item in held
                if layer in item
            ]
            if not choices:
                raise NoPathError(f"layer {layer} has no holder; start a node")
            node, item = self.random.choice(choices)
            stop = item.stop if self.random.random() < 0.7 else layer + 1
            hops.append(Hop(node, LayerRange(layer, stop)))
            layer = stop
        return tuple(hops)

    # Time.

    def at(self, delay_s: float, action: Callable[[], None]) -> None:
        self.sequence += 1
        heapq.heappush(self.events, (self.now + delay_s, self.sequence, action))

    def run(self, until_s: float) -> None:
        while True:
            timers = [
                (due, node)
                for node in self.stages
                if node not in self.dead
                and node not in self.hung
                and (due := self.stages[node].deadline()) is not None
            ]
            if self.gateway_id not in self.dead and self.gateway_id not in self.hung:
                due = self.generations.deadline()
                if due is not None:
                    timers.append((due, NodeId("gateway")))
            next_timer = min(timers, default=None)
            next_event_s = self.events[0][0] if self.events else None
            if next_timer is not None and (next_event_s is None or next_timer[0] < next_event_s):
                if next_timer[0] > until_s:
                    break
                self.now = max(self.now, next_timer[0])
                if next_timer[1] == "gateway":
                    self.perform(self.gateway_id, self.generations.fire(self.now))
                else:
                    stage = self.stages[next_timer[1]]
                    self.perform(next_timer[1], stage.fire(self.now))
            elif next_event_s is not None and next_event_s <= until_s:
                self.now, _, action = heapq.heappop(self.events)
                action()
            else:
                break
            self.check()
        self.now = max(self.now, until_s)

    def check(self) -> None:
        self.generations.check()
        for node, stage in self.stages.items():
            if node not in self.dead:
                stage.check()

    # What nodes do.

    def perform(self, node: NodeId, effects: list[Effect]) -> None:
        for effect in effects:
            self.log.append((self.now, node, effect))
            match effect:
                case SendStream(target, message):
                    self.send(node, target, message)
                case WatchPeer(target):
                    assert target != node
                    self.watchers.setdefault(target, {})[node] = None
                    if target in self.dead:
                        self.at(0.01, lambda t=target: self.unreachable(node, t))
                case RunSteps(steps):
                    finished = self.engines[node].run(steps)
                    stage = self.stages[node]
                    took = self.random.uniform(0.001, 0.01)
                    self.at(took, lambda s=stage, f=finished: self.finished(node, s, f))
                case FreeCache():
                    self.engines[node].free(effect)
                case PathChosen():
                    self.clients[effect.session].paths.append(effect.path)
                case TokenGenerated():
                    client = self.clients[effect.session]
                    assert not client.over
                    assert effect.index == len(client.tokens)
                    client.tokens.append(effect.sampled.token)
                    client.at_s = self.now
                    client.finished = effect.finish is not None
                case GenerationFailed():
                    client = self.clients[effect.session]
                    assert not client.over
                    client.error = effect.error
                    client.at_s = self.now
                case _:
                    pass

    def alive(self, node: NodeId, action: Callable[[], None]) -> None:
        if node in self.hung:
            self.frozen.setdefault(node, []).append(action)
        elif node not in self.dead:
            action()

    def finished(self, node: NodeId, stage: Stage, event: StepsFinished) -> None:
        def act() -> None:
            if self.stages[node] is stage:
                self.perform(node, stage.steps_finished(event, self.now))

        self.alive(node, act)

    def send(self, source: NodeId, target: NodeId, message: object) -> None:
        if target in self.dead:
            self.at(0.01, lambda: self.unreachable(source, target))
            return
        if source != target:
            # A stream is known broken at both ends.
            self.watchers.setdefault(target, {})[source] = None
            self.watchers.setdefault(source, {})[target] = None
        link = (source, target)
        copies = 2 if self.random.random() < self.duplicates else 1
        for _ in range(copies):
            arrival = self.now + self.random.choice([0.0, 0.001, 0.01, 0.05])
            arrival = max(arrival, self.link_free_s.get(link, 0.0))
            self.link_free_s[link] = arrival
            epoch = self.link_epoch.get(link, 0)
            stage = self.stages[target]
            self.at(
                arrival - self.now,
                lambda e=epoch, s=stage: self.deliver(source, target, message, e, s),
            )

    def deliver(
        self, source: NodeId, target: NodeId, message: object, epoch: int, stage: Stage
    ) -> None:
        def act() -> None:
            if (
                self.link_epoch.get((source, target), 0) != epoch
                or self.stages[target] is not stage
            ):
                return
            if isinstance(message, TokenSampled | SessionFailed):
                effects = self.generations.receive(source, message, self.now)
            else:
                effects = stage.receive(source, message, self.now)
            self.perform(target, effects)

        self.alive(target, act)

    def unreachable(self, node: NodeId, peer: NodeId) -> None:
        def act() -> None:
            self.perform(node, self.stages[node].peer_unreachable(peer, self.now))
            if node == self.gateway_id:
                self.perform(node, self.generations.peer_unreachable(peer, self.now))

        self.alive(node, act)

    # What happens to them.

    def submit(self, request: GenerationRequest) -> Client:
        client = self.clients[request.session] = Client(request)
        self.perform(self.gateway_id, self.generations.submit(request, self.now))
        return client

    def cancel(self, client: Client) -> None:
        if not client.over and self.gateway_id not in self.dead:
            client.cancelled = True
            session = client.request.session
            self.perform(self.gateway_id, self.generations.cancel(session, self.now))

    def kill(self, node: NodeId) -> None:
        if node in self.dead:
            return
        self.dead.add(node)
        self.hung.discard(node)
        self.frozen.pop(node, None)
        for watcher in self.watchers.pop(node, {}):
            self.at(self.random.uniform(0.0, 0.05), lambda w=watcher: self.unreachable(w, node))
        for link in list(self.link_free_s):
            if node in link:
                self.link_epoch[link] = self.link_epoch.get(link, 0) + 1
        self.at(1.0, lambda: self.view_changes(node))

    def view_changes(self, node: NodeId) -> None:
        if node in self.dead:
            self.view_dead.add(node)
        self.alive(
            self.gateway_id,
            lambda: self.perform(self.gateway_id, self.generations.view_changed(self.now)),
        )

    def restart(self, node: NodeId) -> None:
        if node in self.dead:
            self.start(node)
            self.at(0.5, lambda: self.view_changes(node))

    def hang(self, node: NodeId, for_s: float) -> None:
        if node not in self.dead:
            self.hung.add(node)
            self.at(for_s, lambda: self.wake(node))

    def wake(self, node: NodeId) -> None:
        self.hung.discard(node)
        for action in self.frozen.pop(node, []):
            self.alive(node, action)

    def cut(self, one: NodeId, other: NodeId) -> None:
        """Break the streams between two nodes; what is on them is lost, new ones can be opened."""
        if one == other:
            return
        for link in ((one, other), (other, one)):
            self.link_epoch[link] = self.link_epoch.get(link, 0) + 1
            self.at(self.random.uniform(0.0, 0.02), lambda k=link: self.unreachable(*k))

    # What must hold in the end.

    def assert_quiet(self) -> None:
        """Everybody is done, and nothing is held anywhere."""
        if self.gateway_id not in self.dead:
            assert self.generations.sessions == 0
            assert all(client.over for client in self.clients.values())
            assert self.generations.deadline() is None or self.generations.fire(self.now) == []
        for node, stage in self.stages.items():
            if node in self.dead:
                continue
            assert stage.sessions == 0
            assert stage.queue_steps == 0
            assert stage.kv_free_bytes == self.kv_bytes
            assert not self.engines[node].caches
            assert stage.fire(self.now) == []
            assert stage.deadline() is None

    def assert_right(self) -> None:
        """What clients saw is a part of what one machine would say, and all of it at the end."""
        for client in self.clients.values():
            expected = reference(client.request, self.spec)
            assert client.tokens == expected[: len(client.tokens)]
            if client.finished:
                assert client.tokens == expected
