"""The gateway's side of its generations: choose a path, count the tokens, go on when a hop fails.

Theory of operation. The gateway keeps all tokens of a generation, so whatever happens to a path, it
can be replaced: the next *attempt* sends prompt and tokens so far as one prefill along another
path and goes on at the next index. Draws are a function of seed and index, so the sentence is the
one it would have been.

    waiting   no path. Tried again when the view changes and every `retry_interval_s`; given up
              when `path_wait_s` were waited since the last token, or at the request's deadline.
    running   attempt n goes along a path. Only the token with the next index, of this attempt, from
              the last hop of its path, is taken; so nothing is emitted twice or skipped.

What ends an attempt, and who is left out of the next ones for `exclusion_s`:

    a hop's stream broke here            that hop
    HOP_LOST                             the hop named; its reporter instead, where that leaves no
                                         path, since it may be the reporter's own network
    NOT_HELD, LEAVING, ENGINE            the sender
    NO_KV_ROOM, QUEUE_FULL               the sender; OverloadedError where no other path is left
    no token in time                     nobody for sure: all hops are suspects (`core.detour`)
    OUT_OF_STEP, MALFORMED,              likewise: the sender and whom it blames are suspects
    BAD_ACTIVATION, EXPIRED
    a token is missing                   likewise: the last hop is a suspect
    a token that cannot be               the last hop

Nothing is waited for that only the request itself can cause: a generation that has given no token
yet and finds every path overloaded or every engine failing ends at once with that error.

At its end, and whenever an attempt ends, every hop is told by `CloseSession`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from p2pllm.core.detour import OVERLOAD, Detour
from p2pllm.core.effects import (
    Effect,
    GenerationFailed,
    Notify,
    PathChosen,
    SendStream,
    TokenGenerated,
    WatchPeer,
)
from p2pllm.core.pace import Pace
from p2pllm.core.stepcheck import joins_up
from p2pllm.domain.errors import (
    ClientError,
    ContextLengthError,
    DeadlineExceededError,
    ModelNotFoundError,
    OverloadedError,
    P2PLLMError,
    SwarmError,
)
from p2pllm.domain.generation import GenerationRequest, Path
from p2pllm.domain.ids import ModelId, NodeId, SessionId, short
from p2pllm.domain.messages import (
    CloseSession,
    FailureReason,
    Forward,
    SessionFailed,
    SessionSetup,
    TokenSampled,
)
from p2pllm.domain.models import ModelSpec

FindPath = Callable[[ModelId, frozenset[NodeId], int], Path]
"""`(model, nodes to leave out, KV tokens)` -> path; raises P2PLLMError where there is none."""

_ABSENT = (FailureReason.HOP_LOST, FailureReason.NOT_HELD, FailureReason.LEAVING)

PREFILL_RATES_MAX = 64
"""Models whose prefill rate is remembered; far more than a swarm serves."""


@dataclass(frozen=True, slots=True)
class GenerationLimits:
    """Bounds of a gateway.

    Attributes:
        sessions_max: live generations; beyond it, clients are asked to come back later.
        chunk_tokens: tokens in one prefill frame; enough to use the machine fully, few enough that
            the tokens of others, which wait for one chunk per stage, stay fluent.
        attempts_max: attempts in a row that gave no token, before a generation is given up.
        path_wait_s: longest wait for a path.
        retry_interval_s: how often a path is looked for meanwhile.
        exclusion_s: how long a generation leaves out a node that failed it.
        retry_after_s: what an overloaded swarm asks clients to wait.
        leave_timeout_s: how long a leaving gateway goes on with the generations it has.
    """

    sessions_max: int = 256
    chunk_tokens: int = 256
    attempts_max: int = 16
    path_wait_s: float = 30.0
    retry_interval_s: float = 0.5
    exclusion_s: float = 10.0
    retry_after_s: float = 1.0
    leave_timeout_s: float = 30.0


@dataclass(slots=True)
class _Generation:
    """One live generation."""

    request: GenerationRequest
    spec: ModelSpec
    # Of its attempts, but for the path.
    setup: SessionSetup
    deadline_s: float
    detour: Detour
    pace: Pace
    # When the last token came, or it was submitted.
    token_s: float
    # When something must happen next: a token come, or a path be looked for.
    due_s: float
    attempt: int = 0
    # Of this attempt; None while waiting.
    path: Path | None = None
    # Since when there is none, and how long there was none before, since the last token.
    waiting_since_s: float | None = None
    waited_s: float = 0.0
    # When this attempt's prefill was sent, until its first token came.
    prefill_sent_s: float | None = None
    tokens: list[int] = field(default_factory=list[int])
    # Everybody who was ever a hop, in order of appearance; a dict for want of an ordered set.
    hops: dict[NodeId, None] = field(default_factory=dict[NodeId, None])
    # Attempts, and waits that ran out with nobody to blame, since the last token.
    failures: int = 0
    timeouts: int = 0
    failure_detail: str = ""

    @property
    def session(self) -> SessionId:
        return self.request.session

    @property
    def sequence(self) -> tuple[int, ...]:
        return (*self.request.prompt, *self.tokens)


class Generations:
    """All live generations of one gateway.

    Args:
        self_id: this node.
        limits: bounds.
        find_path: routing.
        spec_of: what the swarm serves.
        blame: called with a node that another peer's failure report, or what it sent itself, shows
            unfit to route to for now, for the caller to blacklist. Not called for what the caller
            hears first (an unreachable peer), nor for what is no fault (overload), nor where the
            request itself may be the cause (a failed engine).
        random: spreads retries.
    """

    def __init__(
        self,
        self_id: NodeId,
        limits: GenerationLimits,
        find_path: FindPath,
        spec_of: Callable[[ModelId], ModelSpec | None],
        blame: Callable[[NodeId, float], None],
        random: random.Random,
    ) -> None:
        self._self_id = self_id
        self._limits = limits
        self._find_path = find_path
        self._spec_of = spec_of
        self._blame = blame
        self._random = random
        self._live: dict[SessionId, _Generation] = {}
        # Nothing is due before; None where nothing is live.
        self._wake_s: float | None = None
        self._leave_by_s: float | None = None
        # Latest observed, per model; where a new path starts from.
        self._prefill_rates: dict[ModelId, float] = {}

    @property
    def sessions(self) -> int:
        """Live generations."""
        return len(self._live)

    def submit(self, request: GenerationRequest, now: float) -> list[Effect]:
        """Begin a generation; a refusal comes as `GenerationFailed`.

        Raises:
            ValueError: the session is live already: a bug, ids are drawn at random.
        """
        if request.session in self._live:
            raise ValueError(f"session {request.session} is live already")
        spec = self._spec_of(request.model)
        if spec is None:
            detail = f"the swarm serves no model {request.model}; see the list of models"
            return [GenerationFailed(request.session, ModelNotFoundError(detail))]
        error = self._refuse(request, spec)
        if error is not None:
            return [GenerationFailed(request.session, error)]
        generation = self._generation(request, spec, now)
        self._live[request.session] = generation
        effects: list[Effect] = []
        self._seek(generation, now, effects)
        return effects

    def cancel(self, session: SessionId, now: float) -> list[Effect]:
        """The client wants no more; nothing happens where the generation has ended."""
        generation = self._live.get(session)
        effects: list[Effect] = []
        if generation is not None:
            self._end(generation, effects)
        return effects

    def receive(
        self, sender: NodeId, message: TokenSampled | SessionFailed, now: float
    ) -> list[Effect]:
        """Take what a stage reports; what is late or not theirs to say is dropped."""
        effects: list[Effect] = []
        generation = self._live.get(message.session)
        if (
            generation is not None
            and generation.path is not None
            and generation.attempt == message.attempt
        ):
            if isinstance(message, SessionFailed):
                if any(hop.node == sender for hop in generation.path):
                    self._failed(generation, generation.path, sender, message, now, effects)
            elif generation.path[-1].node == sender:
                self._sampled(generation, sender, message, now, effects)
        return effects

    def peer_unreachable(self, node: NodeId, now: float) -> list[Effect]:
        """A stream to `node` broke: every generation through it goes another way."""
        effects: list[Effect] = []
        for generation in tuple(self._live.values()):
            if generation.path is not None and any(hop.node == node for hop in generation.path):
                generation.detour.exclude(node, FailureReason.HOP_LOST, now)
                detail = f"the stream to {short(node)} broke"
                self._restart(generation, now, detail, effects)
        return effects

    def view_changed(self, now: float) -> list[Effect]:
        """Somebody came, went or loaded: what waits may find a path."""
        effects: list[Effect] = []
        for generation in tuple(self._live.values()):
            if generation.path is None:
                self._seek(generation, now, effects)
        return effects

    def leave(self, now: float) -> list[Effect]:
        """Take no new generation; go on with those there are, for `leave_timeout_s` at most."""
        if self._leave_by_s is None:
            self._leave_by_s = now + self._limits.leave_timeout_s
            self._wake_by(self._leave_by_s)
        return []

    def fire(self, now: float) -> list[Effect]:
        """Do what has become due."""
        effects: list[Effect] = []
        is_over = self._leave_by_s is not None and now >= self._leave_by_s
        self._wake_s = None
        for generation in tuple(self._live.values()):
            if is_over:
                left = SwarmError("the node that served this request has left; ask another one")
                self._end(generation, effects, left)
            elif now >= generation.deadline_s:
                self._end(generation, effects, _deadline_error(generation))
            elif now < generation.due_s:
                self._wake_by(min(generation.due_s, generation.deadline_s))
            elif generation.path is None:
                self._seek(generation, now, effects)
            else:
                generation.timeouts += 1
                suspects = [hop.node for hop in generation.path]
                self._restart(generation, now, "no token came in time", effects, suspects)
        if self._leave_by_s is not None and self._live:
            self._wake_by(self._leave_by_s)
        return effects

    def deadline(self) -> float | None:
        """When `fire` is due; it may find nothing to do yet."""
        return self._wake_s

    def check(self) -> None:
        """Assert that every live generation is well formed and something will wake it."""
        assert len(self._live) <= self._limits.sessions_max
        assert len(self._prefill_rates) <= PREFILL_RATES_MAX
        for session, generation in self._live.items():
            assert generation.session == session
            assert len(generation.tokens) < generation.setup.tokens_max
            assert generation.failures <= self._limits.attempts_max
            if generation.path is not None:
                assert joins_up(generation.path, generation.spec)
                assert generation.attempt >= 1
                assert all(hop.node in generation.hops for hop in generation.path)
            assert self._wake_s is not None
            assert self._wake_s <= min(generation.due_s, generation.deadline_s)

    def _refuse(self, request: GenerationRequest, spec: ModelSpec) -> P2PLLMError | None:
        """Why a request cannot be taken."""
        length, context = len(request.prompt), spec.context_length_max
        if length < 1 or request.tokens_max < 1:
            return ClientError("a generation needs a prompt and at least one token to generate")
        if length >= context:
            return ContextLengthError(
                f"the prompt has {length} tokens and leaves no room for an answer in the model's"
                f" context of {context}; shorten it"
            )
        if not all(0 <= token < spec.vocabulary_size for token in request.prompt):
            return ClientError(
                f"the prompt has token ids outside the vocabulary of {spec.vocabulary_size};"
                " use the model's own tokenizer"
            )
        if self._leave_by_s is not None:
            return SwarmError("this node is leaving the swarm; ask another one")
        if len(self._live) >= self._limits.sessions_max:
            return OverloadedError(
                f"{len(self._live)} generations run here already; try again later",
                retry_after_s=self._limits.retry_after_s,
            )
        return None

    def _generation(self, request: GenerationRequest, spec: ModelSpec, now: float) -> _Generation:
        length = len(request.prompt)
        setup = SessionSetup(
            gateway=self._self_id,
            model=request.model,
            fingerprint=spec.fingerprint,
            path=(),
            prompt_length=length,
            tokens_max=min(request.tokens_max, spec.context_length_max - length),
            sampling=request.sampling,
            stop_tokens=request.stop_tokens,
            priority=request.priority,
        )

        def ask(excluded: frozenset[NodeId]) -> Path:
            return self._find_path(request.model, excluded, setup.kv_tokens)

        return _Generation(
            request=request,
            spec=spec,
            setup=setup,
            deadline_s=now + request.deadline_s,
            detour=Detour(ask, exclusion_s=self._limits.exclusion_s),
            pace=self._new_pace(request.model),
            token_s=now,
            due_s=now,
        )

    def _sampled(
        self,
        generation: _Generation,
        sender: NodeId,
        message: TokenSampled,
        now: float,
        effects: list[Effect],
    ) -> None:
        index, token = len(generation.tokens), message.sampled.token
        if message.index < index:
            return
        request = generation.request
        finish = generation.setup.finish_reason(token, index)
        if message.index > index:
            detail = f"token {message.index} came where {index} was expected"
            self._restart(generation, now, detail, effects, [sender])
            return
        if message.finish != finish or not 0 <= token < generation.spec.vocabulary_size:
            generation.detour.exclude(sender, FailureReason.MALFORMED, now)
            self._blame_peer(sender, now)
            detail = f"{short(sender)} sent a token {index} that cannot be"
            self._restart(generation, now, detail, effects)
            return
        pace = generation.pace
        if generation.prefill_sent_s is None:
            pace.step_took(now - generation.token_s)
        else:
            tokens = len(request.prompt) + index
            rate = pace.prefill_took(tokens, now - generation.prefill_sent_s)
            generation.prefill_sent_s = None
            self._remember_prefill_rate(request.model, rate)
        generation.tokens.append(token)
        generation.token_s = now
        generation.failures = generation.timeouts = 0
        generation.waited_s = 0.0
        effects.append(TokenGenerated(generation.session, index, message.sampled, finish))
        if finish is not None:
            self._end(generation, effects)
            return
        self._due(generation, now + pace.step_allowance_s())

    def _failed(
        self,
        generation: _Generation,
        path: Path,
        sender: NodeId,
        message: SessionFailed,
        now: float,
        effects: list[Effect],
    ) -> None:
        """A hop of `path` gave the attempt up."""
        blamed = message.blamed if any(hop.node == message.blamed for hop in path) else None
        suspects: list[NodeId] = []
        instead: tuple[NodeId, NodeId] | None = None
        reason = message.reason
        if reason is FailureReason.HOP_LOST:
            culprit = sender if blamed is None else blamed
            generation.detour.exclude(culprit, reason, now)
            self._blame_peer(culprit, now)
            instead = None if culprit == sender else (culprit, sender)
        elif reason in OVERLOAD or reason is FailureReason.ENGINE:
            generation.detour.exclude(sender, reason, now)
        elif reason in _ABSENT:
            generation.detour.exclude(sender, reason, now)
            self._blame_peer(sender, now)
        else:
            suspects = [sender] if blamed is None else [blamed, sender]
        detail = f"{reason.name.lower()} from {short(sender)}: {message.detail}"
        self._restart(generation, now, detail, effects, suspects, instead)

    def _restart(
        self,
        generation: _Generation,
        now: float,
        detail: str,
        effects: list[Effect],
        suspects: Iterable[NodeId] = (),
        instead: tuple[NodeId, NodeId] | None = None,
    ) -> None:
        """End this attempt and begin another, or wait for a path."""
        generation.failures += 1
        generation.failure_detail = detail
        fields: dict[str, str | int | float | bool | None] = {
            "session": generation.session,
            "attempt": generation.attempt,
            "tokens": len(generation.tokens),
            "detail": detail,
        }
        effects.append(Notify("attempt_failed", "warning", fields))
        if generation.failures >= self._limits.attempts_max:
            error = SwarmError(
                f"{generation.failures} attempts failed in a row, the last one because {detail};"
                " see the log"
            )
            self._end(generation, effects, error)
            return
        self._close(generation, (hop.node for hop in generation.path or ()), effects)
        generation.path = None
        self._seek(generation, now, effects, suspects, instead)

    def _seek(
        self,
        generation: _Generation,
        now: float,
        effects: list[Effect],
        suspects: Iterable[NodeId] = (),
        instead: tuple[NodeId, NodeId] | None = None,
    ) -> None:
        """Begin an attempt where there is a path; else wait, or give up."""
        path = generation.detour.choose(now, tuple(dict.fromkeys(suspects)), instead)
        if path is not None:
            self._begin(generation, path, now, effects)
            return
        error, is_worth_waiting = generation.detour.why_none(
            generation.failure_detail, retry_after_s=self._limits.retry_after_s
        )
        if generation.waiting_since_s is None:
            generation.waiting_since_s = now
        waited_s = generation.waited_s + (now - generation.waiting_since_s)
        give_up_s = now + (self._limits.path_wait_s - waited_s)
        if now >= give_up_s or not (is_worth_waiting or generation.tokens):
            self._end(generation, effects, error)
            return
        pause_s = self._limits.retry_interval_s * self._random.uniform(0.75, 1.25)
        self._due(generation, min(now + pause_s, give_up_s))

    def _begin(
        self, generation: _Generation, path: Path, now: float, effects: list[Effect]
    ) -> None:
        request = generation.request
        if generation.waiting_since_s is not None:
            generation.waited_s += now - generation.waiting_since_s
            generation.waiting_since_s = None
        generation.attempt += 1
        generation.path = path
        generation.pace = self._new_pace(request.model)
        generation.prefill_sent_s = now
        nodes = dict.fromkeys(hop.node for hop in path)
        generation.hops.update(nodes)
        effects.append(PathChosen(generation.session, generation.attempt, path))
        effects.extend(WatchPeer(node) for node in nodes if node != self._self_id)
        sequence = generation.sequence
        self._send_prefill(generation, path, sequence, effects)
        allowance_s = generation.pace.prefill_allowance_s(len(sequence), generation.timeouts)
        self._due(generation, now + allowance_s)

    def _send_prefill(
        self,
        generation: _Generation,
        path: Path,
        sequence: tuple[int, ...],
        effects: list[Effect],
    ) -> None:
        setup = replace(generation.setup, path=path)
        chunk_tokens = self._limits.chunk_tokens
        for step, position in enumerate(range(0, len(sequence), chunk_tokens)):
            chunk = Forward(
                session=generation.session,
                attempt=generation.attempt,
                step=step,
                hop=0,
                position=position,
                tokens=sequence[position : position + chunk_tokens],
                sample=position + chunk_tokens >= len(sequence),
                setup=setup if step == 0 else None,
            )
            effects.append(SendStream(path[0].node, chunk))

    def _end(
        self, generation: _Generation, effects: list[Effect], error: P2PLLMError | None = None
    ) -> None:
        del self._live[generation.session]
        self._close(generation, generation.hops, effects)
        if error is not None:
            effects.append(GenerationFailed(generation.session, error))

    def _close(
        self, generation: _Generation, nodes: Iterable[NodeId], effects: list[Effect]
    ) -> None:
        message = CloseSession(generation.session, generation.attempt)
        effects.extend(SendStream(node, message) for node in dict.fromkeys(nodes))

    def _blame_peer(self, node: NodeId, now: float) -> None:
        if node != self._self_id:
            self._blame(node, now)

    def _new_pace(self, model: ModelId) -> Pace:
        return Pace(self._prefill_rates.get(model), chunk_tokens=self._limits.chunk_tokens)

    def _remember_prefill_rate(self, model: ModelId, s_per_token: float) -> None:
        self._prefill_rates.pop(model, None)
        self._prefill_rates[model] = s_per_token
        if len(self._prefill_rates) > PREFILL_RATES_MAX:
            del self._prefill_rates[next(iter(self._prefill_rates))]

    def _due(self, generation: _Generation, at_s: float) -> None:
        generation.due_s = at_s
        self._wake_by(min(at_s, generation.deadline_s))

    def _wake_by(self, at_s: float) -> None:
        self._wake_s = at_s if self._wake_s is None else min(self._wake_s, at_s)


def _deadline_error(generation: _Generation) -> DeadlineExceededError:
    return DeadlineExceededError(
        f"the request's deadline of {generation.request.deadline_s:g} s passed after"
        f" {len(generation.tokens)} tokens; ask for fewer, or allow more time"
    )
