from __future__ import annotations

from dataclasses import replace

import pytest

from p2pllm.core.effects import Effect, FreeCache, Notify, RunSteps, SendStream, WatchPeer
from p2pllm.core.events import StepResult, StepsFinished
from p2pllm.core.scheduling import QueueLimits
from p2pllm.core.stage import Stage, StageLimits
from p2pllm.domain.generation import FinishReason, Hop, SampledToken, SamplingParameters
from p2pllm.domain.ids import NodeId
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.messages import (
    Activation,
    ActivationType,
    CloseSession,
    FailureReason,
    Forward,
    SessionFailed,
    SessionSetup,
    TokenSampled,
)
from tests.core.generation_world import MODEL, make_spec, node_id, session_id

G, ME, NEXT, LAST, OTHER = map(node_id, range(5))
S = session_id(0)
SPEC = make_spec(6, context=100)
ALL = LayerRange(0, 6)
LEASE_BYTES = (3 + 5) * 2 * 4 * 2
"""What SETUP takes for two layers."""


def setup_for(*hops: tuple[NodeId, int, int], **more: object) -> SessionSetup:
    values: dict = {
        "gateway": G,
        "model": MODEL,
        "fingerprint": SPEC.fingerprint,
        "path": tuple(Hop(node, LayerRange(start, stop)) for node, start, stop in hops),
        "prompt_length": 3,
        "tokens_max": 5,
        "sampling": SamplingParameters(),
    }
    return SessionSetup(**(values | more))


SETUP = setup_for((ME, 0, 2), (NEXT, 2, 4), (LAST, 4, 6))
AS_LAST = setup_for((NEXT, 0, 4), (ME, 4, 6))


def first(setup: SessionSetup = SETUP, **more: object) -> Forward:
    values: dict = {
        "session": S,
        "attempt": 1,
        "step": 0,
        "hop": 0,
        "position": 0,
        "tokens": (1, 2, 3),
        "sample": True,
        "setup": setup,
    }
    return Forward(**(values | more))


def rows(count: int = 3) -> Activation:
    return Activation(ActivationType.FLOAT32, count, 2, bytes(8 * count))


def as_last(**more: object) -> Forward:
    return first(AS_LAST, hop=1, activation=rows(), **more)


class Driven:
    """A stage whose invariants are checked after every call."""

    def __init__(self, *, held: tuple[LayerRange, ...] = (ALL,), **options: object) -> None:
        limits = StageLimits(**options.pop("limits", {}))
        capacity = options.pop("kv_capacity_bytes", 10**6)

        def holds(model, fingerprint, layers):
            right = model == MODEL and fingerprint == SPEC.fingerprint
            return SPEC if right and any(item.covers(layers) for item in held) else None

        self.stage = Stage(ME, limits, holds, element_bytes=2, kv_capacity_bytes=capacity)

    def receive(self, sender: NodeId, message, now: float = 0.0) -> list[Effect]:
        return self.checked(self.stage.receive(sender, message, now))

    def finish(self, *results: StepResult, now: float = 0.0) -> list[Effect]:
        return self.checked(self.stage.steps_finished(StepsFinished(results, 0.01), now))

    def fire(self, now: float) -> list[Effect]:
        return self.checked(self.stage.fire(now))

    def lost(self, node: NodeId, now: float = 0.0) -> list[Effect]:
        return self.checked(self.stage.peer_unreachable(node, now))

    def checked(self, effects: list[Effect]) -> list[Effect]:
        self.stage.check()
        return effects


def sent(effects: list[Effect]) -> list[tuple[NodeId, object]]:
    return [(item.node, item.message) for item in effects if isinstance(item, SendStream)]


def failure(effects: list[Effect]) -> SessionFailed:
    (item,) = [message for _, message in sent(effects) if isinstance(message, SessionFailed)]
    return item


def batch(effects: list[Effect]) -> RunSteps:
    (item,) = [effect for effect in effects if isinstance(effect, RunSteps)]
    return item


def out(attempt: int = 1, session=S) -> StepResult:
    return StepResult(session, attempt, activation=rows())


def drawn(token: int, attempt: int = 1) -> StepResult:
    return StepResult(S, attempt, sampled=SampledToken(token))


def test_a_step_runs_and_its_result_goes_to_the_next_hop() -> None:
    it = Driven()
    effects = it.receive(G, first())
    assert effects[0] == WatchPeer(G)
    (step,) = batch(effects).steps
    assert (step.layers, step.position, step.tokens) == (LayerRange(0, 2), 0, (1, 2, 3))
    assert (step.is_last, step.draw, step.activation) == (False, None, None)
    ((target, onward),) = sent(it.finish(out()))
    assert target == NEXT
    assert onward == first(hop=1, activation=rows())


def test_the_last_hop_tells_the_gateway_and_the_first_hop_at_the_same_time() -> None:
    it = Driven()
    (step,) = batch(it.receive(NEXT, as_last())).steps
    assert step.is_last
    assert step.draw is not None
    assert (step.draw.index, step.draw.history, step.draw.prompt_length) == (0, (1, 2, 3), 3)
    effects = it.finish(drawn(7))
    assert sent(effects) == [
        (NEXT, Forward(S, 1, 1, 0, 3, (7,), sample=True)),
        (G, TokenSampled(S, 1, 0, SampledToken(7))),
    ]
    step_1 = Forward(S, 1, 1, 1, 3, (7,), sample=True, activation=rows(1))
    (step,) = batch(it.receive(NEXT, step_1)).steps
    assert step.draw is not None
    assert (step.draw.index, step.draw.history) == (1, (1, 2, 3, 7))


@pytest.mark.parametrize(
    ("change", "finish"),
    [({"stop_tokens": (7,)}, FinishReason.STOP), ({"tokens_max": 1}, FinishReason.LENGTH)],
)
def test_the_last_token_goes_to_the_gateway_alone(change: dict, finish: FinishReason) -> None:
    it = Driven()
    setup = replace(AS_LAST, **change)
    it.receive(NEXT, first(setup, hop=1, activation=rows()))
    assert sent(it.finish(drawn(7))) == [(G, TokenSampled(S, 1, 0, SampledToken(7), finish))]


def test_chunks_that_draw_nothing_end_at_the_last_hop() -> None:
    it = Driven()
    it.receive(NEXT, first(AS_LAST, hop=1, activation=rows(2), tokens=(1, 2), sample=False))
    assert sent(it.finish(StepResult(S, 1))) == []
    (step,) = batch(
        it.receive(NEXT, Forward(S, 1, 1, 1, 2, (3,), sample=True, activation=rows(1)))
    ).steps
    assert step.draw is not None
    assert step.draw.history == (1, 2, 3)


def test_what_arrives_while_a_batch_runs_goes_into_the_next_one() -> None:
    it = Driven()
    it.receive(G, first())
    for index in (1, 2):
        assert it.receive(G, first(session=session_id(index)))[-1:] == [WatchPeer(G)]
    assert it.stage.queue_steps == 2
    assert len(batch(it.finish(out())).steps) == 1
    assert it.stage.sessions == 3


def test_a_wrapping_holder_runs_both_its_hops_on_one_lease() -> None:
    wrapped = setup_for((ME, 0, 1), (NEXT, 1, 4), (ME, 4, 6))
    it = Driven(held=(LayerRange(0, 1), LayerRange(4, 6)))
    it.receive(G, first(wrapped))
    it.finish(out())
    assert 10**6 - it.stage.kv_free_bytes == 8 * 3 * 4 * 2
    (step,) = batch(it.receive(NEXT, first(wrapped, hop=2, activation=rows()))).steps
    assert step.layers == LayerRange(4, 6)
    assert sent(it.finish(drawn(7)))[0] == (ME, Forward(S, 1, 1, 0, 3, (7,), sample=True))
    assert it.stage.sessions == 1
    assert it.receive(G, CloseSession(S, 1)) == [FreeCache(S, 1)]
    assert it.stage.kv_free_bytes == 10**6


def test_duplicates_are_dropped() -> None:
    it = Driven()
    it.receive(G, first())
    assert it.receive(G, first()) == []
    it.finish(out())
    assert it.receive(G, first()) == []
    assert it.stage.sessions == 1


def test_a_gap_is_an_error_that_names_its_sender() -> None:
    it = Driven()
    it.receive(NEXT, as_last())
    effects = it.receive(NEXT, Forward(S, 1, 2, 1, 4, (7,), sample=True, activation=rows(1)))
    assert failure(effects).reason is FailureReason.OUT_OF_STEP
    assert failure(effects).blamed == NEXT
    assert it.stage.sessions == 0


def test_the_gateway_is_not_blamed_to_itself() -> None:
    it = Driven()
    effects = it.receive(G, first(position=1))
    assert failure(effects).reason is FailureReason.OUT_OF_STEP
    assert failure(effects).blamed is None


def test_a_step_of_an_unknown_session_is_dropped() -> None:
    it = Driven()
    assert it.receive(LAST, Forward(S, 1, 1, 0, 3, (7,), sample=True)) == []
    it.receive(G, first())
    assert it.receive(LAST, Forward(S, 2, 1, 0, 3, (7,), sample=True)) == []


def test_strangers_cannot_touch_a_session() -> None:
    it = Driven()
    assert it.receive(OTHER, first()) == [
        Notify("step_from_stranger_dropped", "warning", {"sender": OTHER, "session": S, "hop": 0})
    ]
    it.receive(G, first())
    (note,) = it.receive(OTHER, Forward(S, 1, 1, 0, 3, (7,), sample=True))
    assert isinstance(note, Notify)
    (note,) = it.receive(OTHER, first(replace(SETUP, gateway=OTHER), attempt=2))
    assert isinstance(note, Notify)
    assert it.receive(OTHER, CloseSession(S, 1)) == []
    assert it.stage.sessions == 1


def test_a_newer_attempt_takes_the_place_of_the_older() -> None:
    it = Driven()
    it.receive(G, first())
    assert it.receive(G, first(attempt=2))[0] == FreeCache(S, 1)
    assert it.receive(G, first()) == []
    assert it.stage.sessions == 1
    effects = it.finish(out())
    assert sent(effects) == []
    (step,) = batch(effects).steps
    assert step.attempt == 2


def test_closing_frees_and_is_remembered() -> None:
    it = Driven()
    it.receive(G, first())
    assert it.receive(G, CloseSession(S, 1)) == [FreeCache(S, 1)]
    assert it.finish(out()) == []
    assert it.receive(G, first()) == []
    assert it.stage.sessions == 0
    it.receive(G, first(attempt=2))
    assert it.stage.sessions == 1
    assert it.receive(G, CloseSession(S, 1)) == []
    assert it.stage.sessions == 1


def test_a_close_that_overtakes_the_first_step_is_heeded() -> None:
    it = Driven()
    assert it.receive(G, CloseSession(S, 1)) == []
    assert it.receive(NEXT, as_last()) == []
    assert it.stage.sessions == 0


def test_a_session_that_never_ran_has_no_cache_to_free() -> None:
    it = Driven()
    it.receive(G, first())
    it.receive(G, first(session=session_id(1)))
    assert it.receive(G, CloseSession(session_id(1), 1)) == []


def test_what_is_remembered_is_bounded() -> None:
    it = Driven(limits={"ended_max": 2})
    for index in range(3):
        it.receive(G, CloseSession(session_id(index), 1))
    it.receive(G, first(session=session_id(2)))
    assert it.stage.sessions == 0
    it.receive(G, first(session=session_id(0)))
    assert it.stage.sessions == 1


@pytest.mark.parametrize(
    ("setup", "hop", "reason"),
    [
        (setup_for((NEXT, 0, 6)), 0, FailureReason.MALFORMED),
        (setup_for((ME, 0, 2), (NEXT, 2, 5)), 0, FailureReason.MALFORMED),
        (replace(SETUP, fingerprint="0" * 32), 0, FailureReason.NOT_HELD),
        (replace(SETUP, tokens_max=99), 0, FailureReason.MALFORMED),
        (replace(AS_LAST, tokens_max=99), 1, FailureReason.MALFORMED),
    ],
)
def test_setups_that_cannot_be_served_are_refused(
    setup: SessionSetup, hop: int, reason: FailureReason
) -> None:
    it = Driven()
    sender = G if hop == 0 else NEXT
    forward = first(setup, hop=hop)
    answer = failure(it.receive(sender, forward))
    assert answer.reason is reason
    assert answer.blamed == (None if hop == 0 else NEXT)
    assert it.receive(sender, forward) == []
    assert it.stage.sessions == 0


def test_a_hop_that_is_somebody_elses_is_refused() -> None:
    it = Driven()
    it.receive(G, first())
    answer = failure(it.receive(ME, first(hop=1, activation=rows())))
    assert answer.reason is FailureReason.MALFORMED
    assert answer.blamed == ME


def test_two_setups_for_one_attempt_end_it() -> None:
    wrapped = setup_for((ME, 0, 1), (NEXT, 1, 4), (ME, 4, 6))
    it = Driven()
    it.receive(G, first(wrapped))
    other = replace(wrapped, tokens_max=4)
    answer = failure(it.receive(NEXT, first(other, hop=2, activation=rows())))
    assert (answer.reason, answer.blamed) == (FailureReason.MALFORMED, NEXT)
    it.finish(out())
    it.receive(G, first(wrapped, attempt=2))
    answer = failure(it.receive(G, first(other, attempt=2)))
    assert (answer.reason, answer.blamed) == (FailureReason.MALFORMED, None)


def test_kv_room_is_promised_or_refused() -> None:
    it = Driven(kv_capacity_bytes=LEASE_BYTES)
    it.receive(G, first())
    assert it.stage.kv_free_bytes == 0
    refused = failure(it.receive(G, first(session=session_id(1))))
    assert refused.reason is FailureReason.NO_KV_ROOM
    it.stage.set_kv_capacity(2 * LEASE_BYTES)
    it.receive(G, first(session=session_id(2)))
    assert it.stage.sessions == 2


def test_sessions_and_queued_steps_are_bounded() -> None:
    it = Driven(limits={"sessions_max": 1})
    it.receive(G, first())
    refused = failure(it.receive(G, first(session=session_id(1))))
    assert refused.reason is FailureReason.QUEUE_FULL
    it = Driven(limits={"queue": QueueLimits(steps_max=1)})
    it.receive(G, first())
    it.receive(G, first(session=session_id(1)))
    refused = failure(it.receive(G, first(session=session_id(2))))
    assert refused.reason is FailureReason.QUEUE_FULL
    assert it.stage.sessions == 2


@pytest.mark.parametrize("result", [StepResult(S, 1, error="é" * 400), StepResult(S, 1), drawn(1)])
def test_a_failed_computation_ends_the_session_with_a_bounded_reason(result: StepResult) -> None:
    it = Driven()
    it.receive(G, first())
    answer = failure(it.finish(result))
    assert answer.reason is FailureReason.ENGINE
    assert len(answer.detail.encode()) <= 512
    assert it.stage.sessions == 0


def test_a_missing_draw_is_a_failed_computation() -> None:
    it = Driven()
    it.receive(NEXT, as_last())
    assert failure(it.finish(StepResult(S, 1))).reason is FailureReason.ENGINE


def test_results_of_another_batch_are_a_bug() -> None:
    it = Driven()
    it.receive(G, first())
    with pytest.raises(ValueError, match="not those of the batch"):
        it.stage.steps_finished(StepsFinished((out(attempt=2),), 0.0), 0.0)


def test_a_lost_next_hop_ends_the_sessions_that_go_through_it() -> None:
    it = Driven()
    it.receive(G, first())
    answer = failure(it.lost(NEXT))
    assert (answer.reason, answer.blamed) == (FailureReason.HOP_LOST, NEXT)
    it.finish(out())
    it.receive(NEXT, as_last(attempt=2))
    answer = failure(it.lost(NEXT))
    assert (answer.reason, answer.blamed) == (FailureReason.HOP_LOST, NEXT)


def test_a_lost_bystander_changes_nothing() -> None:
    it = Driven()
    it.receive(G, first())
    assert it.lost(LAST) == []
    assert it.lost(OTHER) == []
    assert it.stage.sessions == 1


def test_a_lost_gateways_sessions_are_freed_after_a_grace() -> None:
    it = Driven(limits={"gateway_grace_s": 10.0})
    it.receive(G, first())
    it.lost(G, 1.0)
    it.lost(G, 5.0)
    assert it.stage.deadline() == 11.0
    assert it.fire(10.9) == []
    assert failure(it.fire(11.0)).reason is FailureReason.EXPIRED
    assert it.stage.sessions == 0


def test_a_gateway_that_is_heard_again_keeps_its_sessions() -> None:
    it = Driven(limits={"gateway_grace_s": 10.0})
    it.receive(G, first(tokens=(1, 2), sample=False))
    it.lost(G, 1.0)
    it.receive(G, Forward(S, 1, 1, 0, 2, (3,), sample=True), 2.0)
    assert it.fire(11.0) == []
    assert it.stage.sessions == 1


def test_idle_sessions_expire_and_busy_ones_do_not() -> None:
    it = Driven(limits={"idle_timeout_s": 120.0})
    assert it.stage.deadline() is None
    it.receive(G, first())
    it.receive(G, first(session=session_id(1)))
    assert it.stage.deadline() == 120.0
    assert it.fire(150.0) == []
    it.finish(out(), now=200.0)
    it.finish(out(session=session_id(1)), now=210.0)
    assert it.stage.deadline() == 270.0
    assert it.fire(270.0) == []
    assert it.stage.deadline() == 320.0
    effects = it.fire(320.0)
    assert failure(effects).reason is FailureReason.EXPIRED
    assert FreeCache(S, 1) in effects
    assert it.stage.sessions == 1
    it.fire(330.0)
    assert it.stage.sessions == 0
    assert it.stage.deadline() is None


def test_a_leaving_stage_takes_nothing_new_and_lets_go_at_its_bound() -> None:
    it = Driven(limits={"leave_timeout_s": 30.0})
    it.receive(G, first())
    assert it.checked(it.stage.leave(10.0)) == []
    assert it.stage.leave(20.0) == []
    refused = failure(it.receive(G, first(session=session_id(1))))
    assert refused.reason is FailureReason.LEAVING
    assert it.stage.deadline() == 40.0
    assert sent(it.finish(out()))[0][0] == NEXT
    assert it.fire(39.0) == []
    assert it.stage.deadline() == 40.0
    assert failure(it.fire(40.0)).reason is FailureReason.LEAVING
    assert it.stage.sessions == 0
    assert it.stage.deadline() is None


def test_weights_in_use_are_known() -> None:
    it = Driven()
    it.receive(G, first())
    assert it.stage.in_use(MODEL, LayerRange(1, 6))
    assert not it.stage.in_use(MODEL, LayerRange(2, 6))
    assert not it.stage.in_use("other", ALL)


def test_the_token_rate_counts_decodes_and_decays() -> None:
    it = Driven(limits={})
    assert it.stage.tokens_per_s(5.0) == 0.0
    setup = replace(SETUP, prompt_length=1, tokens_max=90)
    now = 0.0
    it.receive(G, first(setup, tokens=(1,)), now)
    for number in range(1, 80):
        now += 0.5
        it.finish(out(), now=now)
        it.receive(LAST, Forward(S, 1, number, 0, number, (7,), sample=True), now)
    assert it.stage.tokens_per_s(now) == pytest.approx(2.0, rel=0.1)
    assert it.stage.tokens_per_s(now + 60.0) < 0.01


def test_a_node_that_is_its_own_gateway_does_not_watch_itself() -> None:
    it = Driven()
    effects = it.receive(ME, first(replace(SETUP, gateway=ME)))
    assert not any(isinstance(effect, WatchPeer) for effect in effects)
