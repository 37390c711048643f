from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from p2pllm.core import session as session_module
from p2pllm.core.effects import (
    Effect,
    GenerationFailed,
    Notify,
    PathChosen,
    SendStream,
    TokenGenerated,
    WatchPeer,
)
from p2pllm.core.session import GenerationLimits, Generations
from p2pllm.domain.errors import (
    ClientError,
    ContextLengthError,
    DeadlineExceededError,
    ModelNotFoundError,
    NoPathError,
    OverloadedError,
    P2PLLMError,
    SwarmError,
)
from p2pllm.domain.generation import (
    FinishReason,
    GenerationRequest,
    Hop,
    Path,
    Priority,
    SampledToken,
)
from p2pllm.domain.ids import ModelId, NodeId
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.messages import (
    CloseSession,
    FailureReason,
    Forward,
    SessionFailed,
    TokenSampled,
)
from tests.core.generation_world import MODEL, make_request, make_spec, node_id, session_id

G, A, B, C, D = map(node_id, range(5))
S = session_id(0)
SPEC = make_spec(4, context=100)


def path_of(*nodes: NodeId) -> Path:
    size = 4 // len(nodes)
    return tuple(Hop(node, LayerRange(i * size, (i + 1) * size)) for i, node in enumerate(nodes))


class Driven:
    """A gateway whose invariants are checked after every call."""

    def __init__(self, *paths: tuple[NodeId, ...], **limits: float) -> None:
        self.paths = [path_of(*nodes) for nodes in paths]
        self.blamed: list[tuple[NodeId, float]] = []
        self.asked_tokens: int | None = None
        self.route_error: P2PLLMError = NoPathError("layers 2-3 of tiny have no holder")
        self.generations = Generations(
            G,
            GenerationLimits(**limits),
            self.find_path,
            lambda model: replace(SPEC, id=model) if model.startswith("tiny") else None,
            lambda node, now: self.blamed.append((node, now)),
            random.Random(1),
        )

    def find_path(self, model: ModelId, excluded: frozenset[NodeId], tokens: int) -> Path:
        self.asked_tokens = tokens
        for path in self.paths:
            if not any(hop.node in excluded for hop in path):
                return path
        raise self.route_error

    def submit(self, now: float = 0.0, **request: object) -> list[Effect]:
        return self.do("submit", make_request(**request), now)

    def do(self, name: str, *arguments: object) -> list[Effect]:
        call: Callable = getattr(self.generations, name)
        effects = call(*arguments)
        self.generations.check()
        return effects

    def token(
        self,
        index: int,
        token: int = 7,
        *,
        now: float = 0.0,
        attempt: int = 1,
        sender: NodeId = B,
        finish: FinishReason | None = None,
    ) -> list[Effect]:
        message = TokenSampled(S, attempt, index, SampledToken(token), finish)
        return self.do("receive", sender, message, now)

    def fail(
        self,
        reason: FailureReason,
        sender: NodeId = A,
        blamed: NodeId | None = None,
        *,
        attempt: int = 1,
        now: float = 0.0,
    ) -> list[Effect]:
        message = SessionFailed(S, attempt, reason, blamed, "because")
        return self.do("receive", sender, message, now)


def only(kind: type, effects: list[Effect]) -> list:
    return [effect for effect in effects if isinstance(effect, kind)]


def error(effects: list[Effect]) -> P2PLLMError:
    (item,) = only(GenerationFailed, effects)
    return item.error


def chosen(effects: list[Effect]) -> tuple[NodeId, ...] | None:
    found = only(PathChosen, effects)
    return tuple(hop.node for hop in found[0].path) if found else None


def forwards(effects: list[Effect]) -> list[Forward]:
    return [x.message for x in only(SendStream, effects) if isinstance(x.message, Forward)]


def closed(effects: list[Effect]) -> list[tuple[NodeId, int]]:
    return [
        (x.node, x.message.attempt)
        for x in only(SendStream, effects)
        if isinstance(x.message, CloseSession)
    ]


def test_a_submission_sends_the_prompt_along_a_path_and_watches_its_hops() -> None:
    it = Driven((G, B))
    effects = it.submit(stop_tokens=(9,), priority=Priority.HIGH)
    assert effects[:2] == [PathChosen(S, 1, path_of(G, B)), WatchPeer(B)]
    (forward,) = forwards(effects)
    assert (forward.step, forward.hop, forward.position, forward.sample) == (0, 0, 0, True)
    assert forward.tokens == (1, 2, 3)
    setup = forward.setup
    assert setup is not None
    assert (setup.gateway, setup.path, setup.prompt_length) == (G, path_of(G, B), 3)
    assert (setup.tokens_max, setup.stop_tokens, setup.priority) == (5, (9,), Priority.HIGH)
    assert (setup.model, setup.fingerprint) == (MODEL, SPEC.fingerprint)
    assert it.asked_tokens == 8
    assert it.generations.sessions == 1


def test_a_long_prompt_goes_in_chunks_of_which_the_last_draws() -> None:
    it = Driven((A, B), chunk_tokens=4)
    chunks = forwards(it.submit(prompt=tuple(range(10))))
    assert [chunk.tokens for chunk in chunks] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]
    assert [chunk.position for chunk in chunks] == [0, 4, 8]
    assert [chunk.step for chunk in chunks] == [0, 1, 2]
    assert [chunk.sample for chunk in chunks] == [False, False, True]
    assert [chunk.setup is None for chunk in chunks] == [False, True, True]


def test_tokens_are_passed_on_once_and_in_order_and_the_end_closes_every_hop() -> None:
    it = Driven((A, B))
    it.submit(tokens_max=3)
    assert it.token(0) == [TokenGenerated(S, 0, SampledToken(7), None)]
    assert it.token(0) == []
    assert it.token(1, 8) == [TokenGenerated(S, 1, SampledToken(8), None)]
    effects = it.token(2, finish=FinishReason.LENGTH)
    assert only(TokenGenerated, effects)[0].finish is FinishReason.LENGTH
    assert closed(effects) == [(A, 1), (B, 1)]
    assert it.generations.sessions == 0
    assert it.token(3) == []


def test_a_cancelled_generation_is_closed_and_forgotten() -> None:
    it = Driven((A, B))
    it.submit()
    effects = it.do("cancel", S, 1.0)
    assert closed(effects) == [(A, 1), (B, 1)]
    assert only(GenerationFailed, effects) == []
    assert it.do("cancel", S, 1.0) == []
    assert it.token(0) == []


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"prompt": ()}, ClientError, "needs a prompt"),
        ({"tokens_max": 0}, ClientError, "at least one token"),
        ({"prompt": (1,) * 100}, ContextLengthError, "100 tokens"),
        ({"prompt": (97,)}, ClientError, "vocabulary of 97"),
    ],
)
def test_requests_that_cannot_be_served_are_refused_in_words(
    change: dict, kind: type, words: str
) -> None:
    it = Driven((A, B))
    refusal = error(it.submit(**change))
    assert type(refusal) is kind
    assert words in str(refusal)
    assert it.generations.sessions == 0


def test_an_answer_ends_where_the_context_does() -> None:
    it = Driven((A, B))
    (forward,) = forwards(it.submit(prompt=(1,) * 99, tokens_max=50))
    assert forward.setup is not None
    assert forward.setup.tokens_max == 1


def test_an_unknown_model_is_refused() -> None:
    it = Driven((A, B))
    request = replace(make_request(), model=ModelId("other"))
    assert isinstance(error(it.do("submit", request, 0.0)), ModelNotFoundError)


def test_live_generations_are_bounded() -> None:
    it = Driven((A, B), sessions_max=1, retry_after_s=3.0)
    it.submit()
    refusal = error(it.submit(index=1))
    assert isinstance(refusal, OverloadedError)
    assert refusal.retry_after_s == 3.0


def test_a_session_id_used_twice_is_a_bug() -> None:
    it = Driven((A, B))
    it.submit()
    with pytest.raises(ValueError, match="live already"):
        it.submit()


def test_what_is_not_theirs_to_say_is_dropped() -> None:
    it = Driven((A, B))
    it.submit()
    assert it.token(0, sender=A) == []
    assert it.token(0, attempt=2) == []
    assert it.fail(FailureReason.ENGINE, sender=C) == []
    assert it.fail(FailureReason.ENGINE, attempt=2) == []
    assert it.generations.sessions == 1


def test_a_lost_hop_is_gone_around_with_prompt_and_tokens_replayed() -> None:
    it = Driven((A, B), (A, C), chunk_tokens=4)
    it.submit(prompt=(1, 2, 3))
    it.token(0, 7)
    it.token(1, 8)
    effects = it.do("peer_unreachable", B, 1.0)
    assert closed(effects) == [(A, 1), (B, 1)]
    assert chosen(effects) == (A, C)
    chunks = forwards(effects)
    assert [chunk.tokens for chunk in chunks] == [(1, 2, 3, 7), (8,)]
    assert {chunk.attempt for chunk in chunks} == {2}
    assert chunks[0].setup is not None
    assert chunks[0].setup.prompt_length == 3
    assert only(Notify, effects)[0].event == "attempt_failed"
    assert it.token(2, sender=B) == []
    assert only(TokenGenerated, it.token(2, 9, attempt=2, sender=C))
    assert closed(it.do("cancel", S, 1.0)) == [(A, 2), (B, 2), (C, 2)]


def test_a_token_of_an_older_attempt_is_dropped_even_from_the_same_hop() -> None:
    it = Driven((A, B), (C, B))
    it.submit()
    assert chosen(it.do("peer_unreachable", A, 0.0)) == (C, B)
    assert it.token(0, attempt=1) == []
    assert it.token(0, attempt=2)


def test_a_lost_bystander_changes_nothing() -> None:
    it = Driven((A, B))
    it.submit()
    assert it.do("peer_unreachable", C, 1.0) == []


def test_hop_lost_excludes_and_blames_the_one_named() -> None:
    it = Driven((A, B), (A, C))
    it.submit()
    assert chosen(it.fail(FailureReason.HOP_LOST, A, B, now=3.0)) == (A, C)
    assert it.blamed == [(B, 3.0)]


@pytest.mark.parametrize("blamed", [None, D])
def test_hop_lost_without_a_hop_named_excludes_its_sender(blamed: NodeId | None) -> None:
    it = Driven((A, B), (C, B))
    it.submit()
    assert chosen(it.fail(FailureReason.HOP_LOST, A, blamed)) == (C, B)
    assert it.blamed == [(A, 0.0)]


def test_where_the_lost_hop_is_the_only_holder_its_reporter_is_left_out_instead() -> None:
    it = Driven((A, B), (C, B))
    it.submit()
    assert chosen(it.fail(FailureReason.HOP_LOST, A, B)) == (C, B)


def test_the_gateway_is_never_blamed_to_its_own_node() -> None:
    it = Driven((G, B), (A, C))
    it.submit()
    assert chosen(it.fail(FailureReason.HOP_LOST, B, G)) == (A, C)
    assert it.blamed == []


@pytest.mark.parametrize("reason", [FailureReason.NOT_HELD, FailureReason.LEAVING])
def test_absent_stages_are_excluded_and_blamed(reason: FailureReason) -> None:
    it = Driven((A, B), (C, B))
    it.submit()
    assert chosen(it.fail(reason, A)) == (C, B)
    assert it.blamed == [(A, 0.0)]


@pytest.mark.parametrize(
    "reason", [FailureReason.NO_KV_ROOM, FailureReason.QUEUE_FULL, FailureReason.ENGINE]
)
def test_overloaded_or_failing_stages_are_excluded_without_blame(reason: FailureReason) -> None:
    it = Driven((A, B), (C, B))
    it.submit()
    assert chosen(it.fail(reason, A)) == (C, B)
    assert it.blamed == []


@pytest.mark.parametrize(
    "reason",
    [
        FailureReason.OUT_OF_STEP,
        FailureReason.MALFORMED,
        FailureReason.BAD_ACTIVATION,
        FailureReason.EXPIRED,
    ],
)
def test_where_one_of_two_failed_both_are_avoided_if_possible(reason: FailureReason) -> None:
    it = Driven((A, B), (A, C), (C, D))
    it.submit()
    assert chosen(it.fail(reason, B, A)) == (C, D)
    it = Driven((A, B))
    it.submit()
    assert chosen(it.fail(reason, B)) == (A, B)
    assert it.blamed == []


def test_overload_everywhere_ends_a_generation_that_has_not_begun() -> None:
    it = Driven((A, B), retry_after_s=2.5)
    it.submit()
    effects = it.fail(FailureReason.NO_KV_ROOM, A)
    refusal = error(effects)
    assert isinstance(refusal, OverloadedError)
    assert refusal.retry_after_s == 2.5
    assert it.generations.sessions == 0


def test_overload_everywhere_is_waited_for_in_the_middle_of_a_sentence() -> None:
    it = Driven((A, B), exclusion_s=1.0, path_wait_s=30.0)
    it.submit()
    it.token(0)
    assert only(GenerationFailed, it.fail(FailureReason.NO_KV_ROOM, A)) == []
    assert it.generations.sessions == 1
    assert chosen(it.do("fire", 1.1)) == (A, B)


def test_a_token_that_cannot_be_costs_its_sender_its_place() -> None:
    it = Driven((A, B), (A, C))
    it.submit(tokens_max=3)
    effects = it.token(0, 97)
    assert only(TokenGenerated, effects) == []
    assert chosen(effects) == (A, C)
    assert it.blamed == [(B, 0.0)]
    effects = it.token(0, 7, attempt=2, sender=C, finish=FinishReason.STOP)
    assert only(TokenGenerated, effects) == []


def test_a_missing_token_restarts_without_blame() -> None:
    it = Driven((A, B), (A, C))
    it.submit()
    effects = it.token(1)
    assert only(TokenGenerated, effects) == []
    assert chosen(effects) == (A, C)
    assert it.blamed == []


def wait_out(it: Driven) -> tuple[float, list[Effect]]:
    """Fire at deadlines until something happens."""
    while True:
        now = it.generations.deadline()
        assert now is not None
        effects = it.do("fire", now)
        if effects:
            return now, effects


def test_a_token_that_does_not_come_in_time_means_another_path() -> None:
    it = Driven((A, B), (A, C), (C, D))
    it.submit(tokens_max=50)
    for index in range(20):
        it.token(index, now=0.1 + index * 0.1)
    now, effects = wait_out(it)
    assert 0.5 < now - 2.0 - 0.1 < 1.0
    assert chosen(effects) == (C, D)
    assert it.blamed == []


def test_a_prefill_is_waited_for_longer_each_time() -> None:
    it = Driven((A, B))
    it.submit(deadline_s=10_000.0)
    first, _ = wait_out(it)
    second, _ = wait_out(it)
    third, _ = wait_out(it)
    assert first > 5.0
    assert second - first == pytest.approx(2 * first)
    assert third - second == pytest.approx(4 * first)


def test_attempts_in_a_row_are_bounded_and_a_token_starts_the_count_anew() -> None:
    it = Driven((A, B), attempts_max=3)
    it.submit()
    it.fail(FailureReason.OUT_OF_STEP)
    it.fail(FailureReason.OUT_OF_STEP, attempt=2)
    it.token(0, attempt=3)
    it.fail(FailureReason.OUT_OF_STEP, attempt=3)
    it.fail(FailureReason.OUT_OF_STEP, attempt=4)
    effects = it.fail(FailureReason.OUT_OF_STEP, attempt=5)
    assert "3 attempts failed in a row" in str(error(effects))
    assert closed(effects) == [(A, 5), (B, 5)]


def test_without_a_path_it_waits_and_a_change_of_view_ends_the_wait() -> None:
    it = Driven()
    assert it.submit() == []
    assert it.token(0) == []
    assert it.do("peer_unreachable", A, 0.0) == []
    assert it.do("view_changed", 0.1) == []
    it.paths.append(path_of(A, B))
    assert chosen(it.do("view_changed", 0.2)) == (A, B)
    assert it.do("view_changed", 0.3) == []


def test_without_a_path_it_looks_again_by_itself() -> None:
    it = Driven(retry_interval_s=0.5)
    it.submit()
    it.paths.append(path_of(A, B))
    now, effects = wait_out(it)
    assert 0.3 < now < 0.7
    assert chosen(effects) == (A, B)


def test_a_wait_for_a_path_is_bounded_and_ends_with_the_layers_named() -> None:
    it = Driven(path_wait_s=30.0)
    it.submit()
    now, effects = wait_out(it)
    assert now == pytest.approx(30.0)
    assert "layers 2-3" in str(error(effects))


def test_waits_add_up_until_a_token_comes() -> None:
    it = Driven(path_wait_s=30.0)
    it.submit()
    for now, attempt in ((20.0, 1), (30.0, 2)):
        it.paths.append(path_of(A, B))
        it.do("view_changed", now)
        it.paths.clear()
        if attempt == 1:
            it.fail(FailureReason.EXPIRED, attempt=1, now=20.0)
        else:
            it.token(0, attempt=2, now=now)
            it.fail(FailureReason.EXPIRED, attempt=2, now=30.0)
    now, effects = wait_out(it)
    assert now == pytest.approx(60.0)
    it = Driven(path_wait_s=30.0)
    it.submit()
    it.paths.append(path_of(A, B))
    it.do("view_changed", 20.0)
    it.paths.clear()
    it.fail(FailureReason.EXPIRED, now=25.0)
    now, effects = wait_out(it)
    assert now == pytest.approx(35.0)
    assert isinstance(error(effects), NoPathError)


def test_the_requests_deadline_ends_it_wherever_it_is() -> None:
    it = Driven((A, B))
    it.submit(deadline_s=2.0)
    it.token(0)
    now, effects = wait_out(it)
    assert now == 2.0
    assert isinstance(error(effects), DeadlineExceededError)
    assert "2 s passed after 1 tokens" in str(error(effects))
    assert closed(effects) == [(A, 1), (B, 1)]
    it = Driven()
    it.submit(deadline_s=2.0)
    now, effects = wait_out(it)
    assert now == 2.0
    assert isinstance(error(effects), DeadlineExceededError)


def test_a_leaving_gateway_finishes_what_it_can_and_takes_nothing_new() -> None:
    it = Driven((A, B), leave_timeout_s=3.0)
    it.submit()
    assert it.do("leave", 10.0) == []
    assert it.do("leave", 12.0) == []
    assert "leaving" in str(error(it.submit(index=1)))
    assert only(TokenGenerated, it.token(0, now=12.0))
    assert it.do("fire", 12.5) == []
    assert it.generations.deadline() == 13.0
    effects = it.do("fire", 13.0)
    assert isinstance(error(effects), SwarmError)
    assert closed(effects) == [(A, 1), (B, 1)]
    assert it.generations.sessions == 0
    assert it.generations.deadline() is None


def test_prefill_rates_are_remembered_for_a_bounded_number_of_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session_module, "PREFILL_RATES_MAX", 2)
    it = Driven((A, B))
    for name in ("tiny", "tiny2", "tiny3"):
        request: GenerationRequest = replace(make_request(), model=ModelId(name))
        it.do("submit", request, 0.0)
        it.token(0, now=1.0)
        it.do("cancel", S, 1.0)
    it.submit()
    unknown, _ = wait_out(it)
    it.do("cancel", S, 100.0)
    it.do("submit", replace(make_request(), model=ModelId("tiny3")), 0.0)
    known, _ = wait_out(it)
    assert known < unknown
