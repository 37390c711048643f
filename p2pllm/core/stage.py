"""One node's side of everybody's generations: take a step, run it, pass it on.

Theory of operation. A stage keeps one attempt per session: the newest it has heard of. An attempt
begins with the first step 0 that arrives for any of its hops here (a node that holds a window
wrapping around the model's end has two hops of one path): the stage checks the setup, leases KV
room for all its hops and all tokens, and from then on takes of each hop just the step it expects.

    sent by who may send it?    no: dropped, since a stranger must not end a session
    attempt older than ours?    dropped
    step seen already?          dropped
    anything else wrong?        SessionFailed to the gateway, with the reason; all is freed

Steps wait in a `StepQueue`; one batch runs at a time, and what arrives meanwhile goes into the
next. What comes out goes to the next hop. On the last hop a drawn token goes to the gateway and, at
the same time, to the first hop as the next step; so the gateway adds no time to a token.

An attempt ends here when

- its gateway closes it or begins a newer one,
- something goes wrong with it (its gateway is told),
- no step came for `idle_timeout_s`, or its gateway has been unreachable for `gateway_grace_s`,
- this node leaves and `leave_timeout_s` has passed.

What ended is remembered for a while, so that frames of it that are still under way (streams from
different peers are not in order with each other) do not begin it again.

A step of an attempt that is not known here cannot be answered, as only the setup names the
gateway; it is dropped. The gateway notices by the missing token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from p2pllm.core.effects import (
    Draw,
    Effect,
    FreeCache,
    Notify,
    RunSteps,
    SendStream,
    StageStep,
    WatchPeer,
)
from p2pllm.core.events import StepResult, StepsFinished
from p2pllm.core.kvblocks import KvRoom, kv_bytes
from p2pllm.core.scheduling import QueueLimits, StepQueue
from p2pllm.core.stepcheck import Refusal, may_send, refuse_setup, refuse_step
from p2pllm.domain.generation import SampledToken
from p2pllm.domain.ids import ModelId, NodeId, SessionId, short
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.messages import (
    DETAIL_LENGTH_MAX,
    CloseSession,
    FailureReason,
    Forward,
    SessionFailed,
    SessionSetup,
    TokenSampled,
)
from p2pllm.domain.models import ModelSpec

HoldsLayers = Callable[[ModelId, str, LayerRange], ModelSpec | None]
"""`(model, fingerprint, layers)` -> the spec, where just these files' layers are loaded here."""

RATE_WINDOW_S = 10.0
"""`tokens_per_s` is an exponential average over about this long."""


@dataclass(frozen=True, slots=True)
class StageLimits:
    """Bounds of a stage.

    Attributes:
        queue: of its waiting steps.
        sessions_max: sessions with a KV lease; bounds memory and the work per timer.
        idle_timeout_s: a session without a step for so long is freed; longer than any one step
            may take anywhere on a path. Nobody keeps a session alive: the tokens do.
        gateway_grace_s: how long after its gateway was found unreachable a session is freed; time
            for a broken stream to be opened again.
        leave_timeout_s: how long a leaving node goes on with the sessions it has.
        ended_max: how many ended attempts are remembered, the latest.
    """

    queue: QueueLimits = field(default_factory=QueueLimits)
    sessions_max: int = 256
    idle_timeout_s: float = 120.0
    gateway_grace_s: float = 10.0
    leave_timeout_s: float = 30.0
    ended_max: int = 4_096


@dataclass(slots=True)
class _HopState:
    """What one hop of one attempt expects next."""

    layers: LayerRange
    step: int = 0
    position: int = 0


@dataclass(slots=True)
class _Session:
    """The attempt of a session that this stage takes part in."""

    id: SessionId
    attempt: int
    setup: SessionSetup
    spec: ModelSpec
    # This node's hops of the path, by index.
    hops: dict[int, _HopState]
    # When the last step of it arrived or was finished.
    active_s: float
    # When its gateway was found unreachable; None once it is heard again.
    gateway_lost_s: float | None = None
    # Tokens whose last hop was handed to the engine here; empty where the last hop is elsewhere.
    history: list[int] = field(default_factory=list[int])
    # Whether the engine may hold a cache for it.
    cached: bool = False


class Stage:
    """The stage of one node, for all models and layers it holds.

    Args:
        self_id: this node.
        limits: bounds.
        holds: what is loaded here.
        element_bytes: bytes of one cached element in the dtype the engine runs.
        kv_capacity_bytes: memory beside the weights.
    """

    def __init__(
        self,
        self_id: NodeId,
        limits: StageLimits,
        holds: HoldsLayers,
        *,
        element_bytes: int,
        kv_capacity_bytes: int,
    ) -> None:
        self._self_id = self_id
        self._limits = limits
        self._holds = holds
        self._element_bytes = element_bytes
        self._kv = KvRoom(kv_capacity_bytes, leases_max=limits.sessions_max)
        self._queue = StepQueue(limits.queue)
        self._sessions: dict[SessionId, _Session] = {}
        # Steps at the engine; empty where it is idle.
        self._running: tuple[Forward, ...] = ()
        # Highest attempt that ended, by (gateway, session), latest last. The gateway is part of
        # the key, so nobody can have a session of somebody else's refused.
        self._ended: dict[tuple[NodeId, SessionId], int] = {}
        # No session expires before; None where there is none.
        self._wake_s: float | None = None
        self._leave_by_s: float | None = None
        self._rate = 0.0
        self._rate_s = 0.0

    @property
    def queue_steps(self) -> int:
        """Steps that wait."""
        return len(self._queue)

    @property
    def sessions(self) -> int:
        """Sessions with a KV lease."""
        return len(self._sessions)

    @property
    def kv_free_bytes(self) -> int:
        """Room for further leases."""
        return self._kv.free_bytes

    def tokens_per_s(self, now: float) -> float:
        """Decode steps finished per second, lately."""
        return self._rate * math.exp((self._rate_s - now) / RATE_WINDOW_S)

    def set_kv_capacity(self, capacity_bytes: int) -> None:
        """Weights were loaded or dropped; sessions keep what they have."""
        self._kv.capacity_bytes = capacity_bytes

    def in_use(self, model: ModelId, layers: LayerRange) -> bool:
        """Whether a session needs any of `layers` of `model` here."""
        return any(
            session.setup.model == model
            and any(
                hop.layers.start < layers.stop and layers.start < hop.layers.stop
                for hop in session.hops.values()
            )
            for session in self._sessions.values()
        )

    def receive(self, sender: NodeId, message: Forward | CloseSession, now: float) -> list[Effect]:
        """Take what a peer, or this node itself, sent."""
        effects: list[Effect] = []
        if isinstance(message, Forward):
            self._receive_forward(sender, message, now, effects)
        else:
            self._receive_close(sender, message, effects)
        self._start_batch(effects)
        return effects

    def steps_finished(self, event: StepsFinished, now: float) -> list[Effect]:
        """Pass on what the engine made of the batch, and give it the next one.

        Raises:
            ValueError: the results are not those of the batch that runs: a bug of the engine.
        """
        running, self._running = self._running, ()
        if [(item.session, item.attempt) for item in running] != [
            (item.session, item.attempt) for item in event.results
        ]:
            raise ValueError("the engine's results are not those of the batch it was given")
        effects: list[Effect] = []
        decoded = 0
        for forward, result in zip(running, event.results, strict=True):
            decoded += len(forward.tokens) == 1 and result.error is None
            session = self._sessions.get(forward.session)
            if session is not None and session.attempt == forward.attempt:
                session.active_s = now
                self._pass_on(session, forward, result, effects)
        self._rate = self.tokens_per_s(now) + decoded / RATE_WINDOW_S
        self._rate_s = now
        self._start_batch(effects)
        return effects

    def peer_unreachable(self, node: NodeId, now: float) -> list[Effect]:
        """A stream to `node` broke: end what goes through it next, and start its own grace."""
        effects: list[Effect] = []
        for session in tuple(self._sessions.values()):
            path = session.setup.path
            if any(path[(index + 1) % len(path)].node == node for index in session.hops):
                detail = f"{short(self._self_id)} cannot reach the next hop {short(node)}"
                self._fail(session, Refusal(FailureReason.HOP_LOST, detail), node, effects)
            elif session.setup.gateway == node and session.gateway_lost_s is None:
                session.gateway_lost_s = now
                self._wake_by(now + self._limits.gateway_grace_s)
        return effects

    def leave(self, now: float) -> list[Effect]:
        """Take no new attempt; go on with those there are, for `leave_timeout_s` at most."""
        if self._leave_by_s is None:
            self._leave_by_s = now + self._limits.leave_timeout_s
            self._wake_by(self._leave_by_s)
        return []

    def fire(self, now: float) -> list[Effect]:
        """Free what has expired."""
        effects: list[Effect] = []
        if self._leave_by_s is not None and now >= self._leave_by_s:
            for session in tuple(self._sessions.values()):
                refusal = Refusal(FailureReason.LEAVING, f"{short(self._self_id)} has left")
                self._fail(session, refusal, None, effects)
        self._wake_s = None
        for session in tuple(self._sessions.values()):
            expires_s = self._expires_s(session, now)
            if expires_s > now:
                self._wake_by(expires_s)
                continue
            lost = session.gateway_lost_s is not None
            detail = "its gateway cannot be reached" if lost else "no step came for too long"
            self._fail(session, Refusal(FailureReason.EXPIRED, detail), None, effects)
        if self._leave_by_s is not None and self._sessions:
            self._wake_by(self._leave_by_s)
        return effects

    def deadline(self) -> float | None:
        """When `fire` is due; it may find that nothing has expired yet."""
        return self._wake_s

    def check(self) -> None:
        """Assert that leases, queue and sessions agree."""
        self._kv.check()
        self._queue.check()
        assert len(self._sessions) <= self._limits.sessions_max
        assert len(self._ended) <= self._limits.ended_max
        assert sorted(self._kv.leases()) == sorted(
            (session.id, session.attempt) for session in self._sessions.values()
        )
        for forward in self._queue.waiting():
            session = self._sessions[forward.session]
            assert session.attempt == forward.attempt
            assert forward.step < session.hops[forward.hop].step
        running = [forward.session for forward in self._running]
        assert len(running) == len(set(running))
        assert self._running or not self._queue
        for session in self._sessions.values():
            assert session.hops
            assert self._ended.get((session.setup.gateway, session.id), 0) < session.attempt
            assert self._wake_s is not None

    def _receive_forward(
        self, sender: NodeId, forward: Forward, now: float, effects: list[Effect]
    ) -> None:
        session = self._sessions.get(forward.session)
        if forward.setup is not None and forward.step == 0:
            session = self._admit(sender, forward, forward.setup, now, effects)
        if session is None or session.attempt != forward.attempt:
            return
        setup = session.setup
        if not may_send(sender, forward, setup):
            effects.append(_stranger(sender, forward))
            return
        if sender == setup.gateway:
            session.gateway_lost_s = None
        blamed = None if sender == setup.gateway else sender
        hop = session.hops.get(forward.hop)
        if hop is None:
            refusal = Refusal(
                FailureReason.MALFORMED, f"hop {forward.hop} is not {short(self._self_id)}"
            )
            self._fail(session, refusal, blamed, effects)
            return
        if forward.step < hop.step:
            return
        refusal = refuse_step(forward, setup, session.spec, step=hop.step, position=hop.position)
        if refusal is None and not self._queue.push(forward, setup.priority, now):
            refusal = Refusal(FailureReason.QUEUE_FULL, f"{short(self._self_id)} is overloaded")
        if refusal is not None:
            self._fail(session, refusal, blamed, effects)
            return
        hop.step += 1
        hop.position += len(forward.tokens)
        session.active_s = now

    def _admit(
        self,
        sender: NodeId,
        forward: Forward,
        setup: SessionSetup,
        now: float,
        effects: list[Effect],
    ) -> _Session | None:
        """The session a step 0 is for, begun where it is new; None where it is not to be run."""
        key = (setup.gateway, forward.session)
        session = self._sessions.get(forward.session)
        if not may_send(sender, forward, setup) or (
            session is not None and session.setup.gateway != setup.gateway
        ):
            effects.append(_stranger(sender, forward))
            return None
        if forward.attempt <= self._ended.get(key, 0):
            return None
        if session is not None and session.attempt >= forward.attempt:
            if session.attempt > forward.attempt or session.setup == setup:
                return session
            refusal = Refusal(FailureReason.MALFORMED, "two setups for one attempt")
            self._fail(session, refusal, None if sender == setup.gateway else sender, effects)
            return None
        if session is not None:
            self._free(session, effects)
        outcome = self._begin(forward, setup, now)
        if isinstance(outcome, Refusal):
            blamed = None
            if outcome.reason is FailureReason.MALFORMED and sender != setup.gateway:
                blamed = sender
            self._remember_ended(setup.gateway, forward.session, forward.attempt)
            effects.append(
                _failed(setup.gateway, forward.session, forward.attempt, outcome, blamed)
            )
            return None
        if setup.gateway != self._self_id:
            effects.append(WatchPeer(setup.gateway))
        return outcome

    def _begin(self, forward: Forward, setup: SessionSetup, now: float) -> _Session | Refusal:
        me = short(self._self_id)
        hops = {
            index: _HopState(hop.layers)
            for index, hop in enumerate(setup.path)
            if hop.node == self._self_id
        }
        if self._leave_by_s is not None:
            return Refusal(FailureReason.LEAVING, f"{me} is leaving")
        if forward.hop not in hops:
            return Refusal(FailureReason.MALFORMED, f"hop {forward.hop} is not {me}")
        spec: ModelSpec | None = None
        for hop in hops.values():
            spec = self._holds(setup.model, setup.fingerprint, hop.layers)
            if spec is None:
                detail = f"{me} does not hold layers {hop.layers} of {setup.model}"
                return Refusal(FailureReason.NOT_HELD, detail)
        assert spec is not None
        refusal = refuse_setup(setup, spec)
        if refusal is not None:
            return refusal
        if len(self._sessions) >= self._limits.sessions_max:
            return Refusal(FailureReason.QUEUE_FULL, f"{me} has too many sessions")
        size_bytes = kv_bytes(
            spec,
            [hop.layers for hop in hops.values()],
            tokens=setup.kv_tokens,
            element_bytes=self._element_bytes,
        )
        if not self._kv.lease(forward.session, forward.attempt, size_bytes):
            detail = f"{me} has no room for {size_bytes} bytes of KV cache"
            return Refusal(FailureReason.NO_KV_ROOM, detail)
        session = _Session(forward.session, forward.attempt, setup, spec, hops, active_s=now)
        self._sessions[session.id] = session
        self._wake_by(now + self._limits.idle_timeout_s)
        return session

    def _receive_close(self, sender: NodeId, message: CloseSession, effects: list[Effect]) -> None:
        session = self._sessions.get(message.session)
        if session is not None and session.setup.gateway == sender:
            if session.attempt > message.attempt:
                return
            self._free(session, effects)
        # Even where it is not known: its step 0 may still be under way along the path.
        self._remember_ended(sender, message.session, message.attempt)

    def _start_batch(self, effects: list[Effect]) -> None:
        if self._running or not self._queue:
            return
        self._running = self._queue.next_batch()
        effects.append(RunSteps(tuple(map(self._stage_step, self._running))))

    def _stage_step(self, forward: Forward) -> StageStep:
        session = self._sessions[forward.session]
        session.cached = True
        setup = session.setup
        is_last = forward.hop == len(setup.path) - 1
        draw = None
        if is_last:
            session.history.extend(forward.tokens)
            if forward.sample:
                history = tuple(session.history)
                index = len(history) - setup.prompt_length
                draw = Draw(setup.sampling, index, history, setup.prompt_length)
        return StageStep(
            session=forward.session,
            attempt=forward.attempt,
            model=setup.model,
            layers=session.hops[forward.hop].layers,
            position=forward.position,
            tokens=forward.tokens,
            activation=forward.activation,
            is_last=is_last,
            draw=draw,
        )

    def _pass_on(
        self, session: _Session, forward: Forward, result: StepResult, effects: list[Effect]
    ) -> None:
        path = session.setup.path
        is_last = forward.hop == len(path) - 1
        if result.error is not None:
            self._fail(session, Refusal(FailureReason.ENGINE, result.error), None, effects)
        elif not is_last and result.activation is not None:
            onward = Forward(
                session=forward.session,
                attempt=forward.attempt,
                step=forward.step,
                hop=forward.hop + 1,
                position=forward.position,
                tokens=forward.tokens,
                sample=forward.sample,
                setup=forward.setup,
                activation=result.activation,
            )
            effects.append(SendStream(path[onward.hop].node, onward))
        elif is_last and forward.sample and result.sampled is not None:
            self._pass_token(session, forward, result.sampled, effects)
        elif not is_last or forward.sample:
            refusal = Refusal(FailureReason.ENGINE, "the engine returned no result")
            self._fail(session, refusal, None, effects)

    def _pass_token(
        self, session: _Session, forward: Forward, sampled: SampledToken, effects: list[Effect]
    ) -> None:
        setup = session.setup
        position = forward.position + len(forward.tokens)
        index = position - setup.prompt_length
        finish = setup.finish_reason(sampled.token, index)
        token = TokenSampled(session.id, session.attempt, index, sampled, finish)
        if finish is None:
            step = Forward(
                session=session.id,
                attempt=session.attempt,
                step=forward.step + 1,
                hop=0,
                position=position,
                tokens=(sampled.token,),
                sample=True,
            )
            effects.append(SendStream(setup.path[0].node, step))
        effects.append(SendStream(setup.gateway, token))

    def _fail(
        self, session: _Session, refusal: Refusal, blamed: NodeId | None, effects: list[Effect]
    ) -> None:
        gateway = session.setup.gateway
        self._free(session, effects)
        self._remember_ended(gateway, session.id, session.attempt)
        effects.append(_failed(gateway, session.id, session.attempt, refusal, blamed))

    def _free(self, session: _Session, effects: list[Effect]) -> None:
        del self._sessions[session.id]
        self._queue.discard(session.id)
        self._kv.release(session.id, session.attempt)
        if session.cached:
            effects.append(FreeCache(session.id, session.attempt))

    def _remember_ended(self, gateway: NodeId, session: SessionId, attempt: int) -> None:
        attempt = max(attempt, self._ended.pop((gateway, session), 0))
        self._ended[gateway, session] = attempt
        if len(self._ended) > self._limits.ended_max:
            del self._ended[next(iter(self._ended))]

    def _expires_s(self, session: _Session, now: float) -> float:
        is_busy = session.id in self._queue or any(
            forward.session == session.id for forward in self._running
        )
        expires_s = (now if is_busy else session.active_s) + self._limits.idle_timeout_s
        if session.gateway_lost_s is not None:
            expires_s = min(expires_s, session.gateway_lost_s + self._limits.gateway_grace_s)
        return expires_s

    def _wake_by(self, at_s: float) -> None:
        self._wake_s = at_s if self._wake_s is None else min(self._wake_s, at_s)


def _failed(
    gateway: NodeId, session: SessionId, attempt: int, refusal: Refusal, blamed: NodeId | None
) -> SendStream:
    detail = refusal.detail.encode()[:DETAIL_LENGTH_MAX].decode(errors="ignore")
    return SendStream(gateway, SessionFailed(session, attempt, refusal.reason, blamed, detail))


def _stranger(sender: NodeId, forward: Forward) -> Notify:
    fields: dict[str, str | int | float | bool | None] = {
        "sender": sender,
        "session": forward.session,
        "hop": forward.hop,
    }
    return Notify("step_from_stranger_dropped", "warning", fields)
