"""Worlds of whole nodes: the core that ships, with make-believe engines and clients.

An engine here takes a time that follows from bytes and speed, and draws tokens that are a function
of the whole history, so a token that is lost, doubled or out of order shows at once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

from p2pllm.core.effects import (
    DropLayers,
    Effect,
    FreeCache,
    GenerationFailed,
    LeaveFinished,
    LoadLayers,
    PathChosen,
    ResolveModel,
    RunSteps,
    StageStep,
    TokenGenerated,
    WatchPeer,
)
from p2pllm.core.events import (
    Event,
    GenerationCancelled,
    GenerationSubmitted,
    LayersLoaded,
    LeaveRequested,
    ModelAdded,
    ModelResolved,
    PeerDiscovered,
    StepResult,
    StepsFinished,
)
from p2pllm.core.node import CoreConfig, Node
from p2pllm.domain.errors import P2PLLMError
from p2pllm.domain.generation import (
    FinishReason,
    GenerationRequest,
    Path,
    SampledToken,
    SamplingParameters,
)
from p2pllm.domain.ids import ModelId, SessionId
from p2pllm.domain.messages import Activation, ActivationType
from p2pllm.domain.models import LayerRun, ModelSpec
from p2pllm.domain.records import MemberState
from sim.network import Link
from sim.swarms import WALL_MS, PlainSigner, address_of, node_id, own_record
from sim.world import Host, World

VOCABULARY_SIZE = 1_000
LOAD_BYTES_S = 1e9
"""What a disk reads."""


def model_spec(name: str = "tiny", layers: int = 12, parameters: int = 1_000_000) -> ModelSpec:
    """A model of equal layers."""
    return ModelSpec(
        id=ModelId(name),
        reference=name,
        fingerprint=hashlib.sha256(name.encode()).hexdigest()[:32],
        architecture="SimulatedForCausalLM",
        runs=(LayerRun(layers, parameters, 128),),
        embedding_parameters=0,
        head_parameters=0,
        hidden_size=8,
        context_length_max=4_096,
        vocabulary_size=VOCABULARY_SIZE,
    )


def reference_tokens(prompt: tuple[int, ...], count: int) -> list[int]:
    """What any path must generate."""
    history = list(prompt)
    for _ in range(count):
        history.append(_draw(tuple(history)))
    return history[len(prompt) :]


def _draw(history: tuple[int, ...]) -> int:
    digest = hashlib.blake2b(repr(history).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % VOCABULARY_SIZE


@dataclass(slots=True)
class Answer:
    """What a client got so far.

    Attributes:
        tokens: in order of their coming.
        times_s: when each came.
        paths: every path that was chosen.
        finish: why it ended well.
        error: why it did not.
    """

    tokens: list[int] = field(default_factory=list[int])
    times_s: list[float] = field(default_factory=list[float])
    paths: list[Path] = field(default_factory=list[Path])
    finish: FinishReason | None = None
    error: P2PLLMError | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.finish is not None or self.error is not None


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """What a simulated machine is like.

    Attributes:
        memory_bytes: what it offers.
        layers_max: most layers it takes.
        speed_bytes_s: weight bytes per second of a decode step.
    """

    memory_bytes: int = 2**30
    layers_max: int | None = None
    speed_bytes_s: int = 20_000_000_000


class NodeWorld:
    """Whole nodes on a virtual network.

    Args:
        machines: one entry per host; none is switched on yet.
        seed: decides everything.
        link: between all of them.
        config: of every node.
        checks: whether every machine checks its invariants after every event.
        traces: whether to hash everything that happens.
    """

    def __init__(
        self,
        machines: list[MachineSpec],
        seed: int,
        *,
        link: Link | None = None,
        config: CoreConfig | None = None,
        checks: bool = True,
        traces: bool = False,
    ) -> None:
        self.machines = machines
        self.config = config or CoreConfig()
        self.world: World[Node] = World(
            seed, link=link, checks=checks, traces=traces, perform=self._perform
        )
        self.hosts = [self.world.add(node_id(i), address_of(i)) for i in range(len(machines))]
        self.answers: dict[SessionId, Answer] = {}
        # All and only the hosts that have said farewell since they were last switched on.
        self.left: set[int] = set()
        # (number, session, attempt) of every cache that an engine holds.
        self.caches: set[tuple[int, SessionId, int]] = set()
        self._incarnations: dict[int, int] = {}

    @property
    def now(self) -> float:
        """Virtual seconds since the world began."""
        return self.world.now

    def start(self, number: int, *, knows: tuple[int, ...] = (0,)) -> None:
        """Switch a host on; it has heard of the addresses of some others."""
        spec = self.machines[number]
        incarnation = self._incarnations.get(number, 0) + 1
        self._incarnations[number] = incarnation
        self.left.discard(number)
        record = replace(
            own_record(number, incarnation),
            memory_bytes=spec.memory_bytes,
            layers_max=spec.layers_max,
            speed_bytes_s=spec.speed_bytes_s,
        )
        node = Node(
            record,
            config=self.config,
            sign=PlainSigner(),
            random=self.world.random(f"node {number} {incarnation}"),
            now=self.now,
        )
        self.world.start(self.hosts[number], node)
        for other in knows:
            if other != number:
                self.tell(number, PeerDiscovered(self.hosts[other].address))

    def tell(self, number: int, event: Event) -> None:
        """Let something happen at a host."""
        self.world.act(self.hosts[number], lambda node: node.handle(event, now=self.now))

    def serve(self, number: int, spec: ModelSpec) -> None:
        """Ask a host that the swarm serve a model."""
        self.tell(number, ModelAdded(spec, WALL_MS + int(self.now * 1_000)))

    def crash(self, number: int) -> None:
        """Switch a host off without a word."""
        self._incarnations[number] = self.node(number).swarm.incarnation
        self.caches = {key for key in self.caches if key[0] != number}
        self.world.crash(self.hosts[number])

    def leave(self, number: int) -> None:
        """Ask a host to leave gracefully."""
        self.tell(number, LeaveRequested())

    def ask(
        self, number: int, model: ModelId, prompt: tuple[int, ...], tokens_max: int
    ) -> tuple[SessionId, Answer]:
        """Have a client ask a host for a generation."""
        session = SessionId(hashlib.sha256(f"{len(self.answers)}".encode()).hexdigest()[:32])
        self.answers[session] = Answer()
        sampling = SamplingParameters(temperature=0.0)
        request = GenerationRequest(session, model, prompt, tokens_max, sampling)
        self.tell(number, GenerationSubmitted(request))
        return session, self.answers[session]

    def cancel(self, number: int, session: SessionId) -> None:
        """Let a client go away."""
        self.tell(number, GenerationCancelled(session))

    def node(self, number: int) -> Node:
        """The node of a host that is on."""
        node = self.hosts[number].machine
        assert node is not None
        return node

    def holders(self, model: ModelId, observer: int) -> dict[int, set[int]]:
        """Which layers the members that `observer` believes alive say they have ready."""
        numbers = {host.node: host.number for host in self.hosts}
        return {
            numbers[member.record.node]: {
                layer
                for layers in member.record.ready(model)
                for layer in range(layers.start, layers.stop)
            }
            for member in self.node(observer).swarm.view().members
            if member.state is MemberState.ALIVE
        }

    def covered(self, spec: ModelSpec, observer: int) -> bool:
        """Whether `observer` sees a ready holder for every layer."""
        held: set[int] = set().union(*self.holders(spec.id, observer).values())
        return held == set(range(spec.num_layers))

    # -- what the shells would do

    def _perform(self, host: Host[Node], effect: Effect) -> None:
        match effect:
            case RunSteps():
                elapsed_s = self._elapsed_s(host.number, effect.steps)
                results = tuple(self._result(host.number, step) for step in effect.steps)
                self._later(host, elapsed_s, StepsFinished(results, elapsed_s))
            case LoadLayers():
                size_bytes = len(effect.layers) * 2_000_000
                event = LayersLoaded(effect.model, effect.layers)
                self._later(host, size_bytes / LOAD_BYTES_S, event)
            case ResolveModel():
                self._later(host, 0.001, ModelResolved(effect.spec.id, True))
            case FreeCache():
                self.caches.discard((host.number, effect.session, effect.attempt))
            case PathChosen():
                self.answers[effect.session].paths.append(effect.path)
            case TokenGenerated():
                answer = self.answers[effect.session]
                assert effect.index == len(answer.tokens)
                answer.tokens.append(effect.sampled.token)
                answer.times_s.append(self.now)
                answer.finish = effect.finish
            case GenerationFailed():
                self.answers[effect.session].error = effect.error
            case LeaveFinished():
                self.left.add(host.number)
            case _:
                assert isinstance(effect, DropLayers | WatchPeer)

    def _later(self, host: Host[Node], delay_s: float, event: Event) -> None:
        life = host.life

        def happen() -> None:
            if host.life == life:
                self.world.act(host, lambda node: node.handle(event, now=self.now))

        self.world.at(self.now + delay_s, happen)

    def _elapsed_s(self, number: int, steps: tuple[StageStep, ...]) -> float:
        layers = sum(len(step.layers) for step in steps)
        return 0.0001 + layers * 2_000_000 / self.machines[number].speed_bytes_s

    def _result(self, number: int, step: StageStep) -> StepResult:
        self.caches.add((number, step.session, step.attempt))
        if step.layers.start > 0:
            assert step.activation is not None
            assert bytes(step.activation.data[:4]) == _mark(step.position, step.layers.start)
        if not step.is_last:
            data = _mark(step.position, step.layers.stop) + bytes(32 * len(step.tokens) - 4)
            activation = Activation(ActivationType.FLOAT32, len(step.tokens), 8, data)
            return StepResult(step.session, step.attempt, activation=activation)
        if step.draw is None:
            return StepResult(step.session, step.attempt)
        return StepResult(
            step.session, step.attempt, sampled=SampledToken(_draw(step.draw.history))
        )


def _mark(position: int, layer: int) -> bytes:
    """Stands in an activation's first bytes, so that a wrong hand-over is caught."""
    return position.to_bytes(2, "big") + layer.to_bytes(2, "big")
