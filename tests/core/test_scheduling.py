from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.core.scheduling import QueueLimits, StepQueue
from p2pllm.domain.generation import Priority
from p2pllm.domain.messages import Activation, ActivationType, Forward
from tests.core.generation_world import session_id

NORMAL = Priority.NORMAL


def step(session: int, tokens: int = 1, number: int = 0, rows: int | None = None) -> Forward:
    activation = None
    if rows is not None:
        activation = Activation(ActivationType.FLOAT32, rows, 1, bytes(4 * rows))
    return Forward(
        session_id(session), 1, number, 0, 0, (5,) * tokens, sample=True, activation=activation
    )


def queue(**limits: float) -> StepQueue:
    return StepQueue(QueueLimits(**limits))


def names(batch: tuple[Forward, ...]) -> list[tuple[int, int]]:
    return [(int(item.session, 16) - 2**60, item.step) for item in batch]


def test_an_empty_queue_gives_an_empty_batch() -> None:
    assert queue().next_batch() == ()


def test_decodes_go_before_the_one_prefill_chunk() -> None:
    waiting = queue()
    for session, tokens in ((0, 9), (1, 9), (2, 1), (3, 1)):
        assert waiting.push(step(session, tokens), NORMAL, 0.0)
    assert len(waiting) == 4
    assert names(waiting.next_batch()) == [(2, 0), (3, 0), (0, 0)]
    assert names(waiting.next_batch()) == [(1, 0)]
    assert len(waiting) == 0
    waiting.check()


def test_decodes_in_a_batch_are_bounded_and_do_not_starve_the_chunk() -> None:
    waiting = queue(decode_steps_max=2)
    for session in range(5):
        waiting.push(step(session), NORMAL, 0.0)
    waiting.push(step(9, 100), NORMAL, 0.0)
    assert names(waiting.next_batch()) == [(0, 0), (1, 0), (9, 0)]
    assert QueueLimits(decode_steps_max=2).batch_tokens_max == 514


def test_steps_of_one_session_keep_their_order_and_never_share_a_batch() -> None:
    waiting = queue()
    waiting.push(step(0, 9, 0), NORMAL, 0.0)
    waiting.push(step(0, 1, 1), NORMAL, 0.0)
    waiting.push(step(1, 1, 0), NORMAL, 0.0)
    assert names(waiting.next_batch()) == [(1, 0), (0, 0)]
    assert names(waiting.next_batch()) == [(0, 1)]


def test_higher_priorities_go_first_and_equals_in_order_of_arrival() -> None:
    waiting = queue(decode_steps_max=1)
    waiting.push(step(0), Priority.LOW, 0.0)
    waiting.push(step(1), Priority.NORMAL, 0.1)
    waiting.push(step(2), Priority.HIGH, 0.2)
    waiting.push(step(3), Priority.HIGH, 0.2)
    order = [names(waiting.next_batch())[0][0] for _ in range(4)]
    assert order == [2, 3, 1, 0]


def test_a_low_priority_ages_past_a_stream_of_high_ones() -> None:
    waiting = queue(decode_steps_max=1, ageing_s=1.0)
    waiting.push(step(0), Priority.LOW, 0.0)
    served_at = None
    for tick in range(1, 100):
        now = tick / 10
        waiting.push(step(tick), Priority.HIGH, now)
        if names(waiting.next_batch())[0][0] == 0:
            served_at = now
            break
    assert served_at == 2.0


def test_steps_sessions_and_bytes_are_bounded() -> None:
    waiting = queue(steps_max=2, sessions_max=5)
    assert waiting.push(step(0), NORMAL, 0.0)
    assert waiting.push(step(0, 1, 1), NORMAL, 0.0)
    assert not waiting.push(step(0, 1, 2), NORMAL, 0.0)
    waiting = queue(sessions_max=1)
    assert waiting.push(step(0), NORMAL, 0.0)
    assert not waiting.push(step(1), NORMAL, 0.0)
    assert waiting.push(step(0, 1, 1), NORMAL, 0.0)
    waiting = queue(activation_bytes_max=10)
    assert waiting.push(step(0, 2, 0, rows=2), NORMAL, 0.0)
    assert not waiting.push(step(0, 1, 1, rows=1), NORMAL, 0.0)
    waiting.next_batch()
    assert waiting.push(step(0, 1, 1, rows=1), NORMAL, 0.0)
    waiting.check()


def test_a_sessions_steps_can_be_discarded() -> None:
    waiting = queue()
    waiting.push(step(0, 1, 0, rows=1), NORMAL, 0.0)
    waiting.push(step(0, 1, 1, rows=1), NORMAL, 0.0)
    waiting.push(step(1), NORMAL, 0.0)
    assert session_id(0) in waiting
    assert waiting.discard(session_id(0)) == 2
    assert waiting.discard(session_id(0)) == 0
    assert session_id(0) not in waiting
    assert names(waiting.waiting()) == [(1, 0)]
    waiting.check()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, 5), st.integers(1, 4), st.sampled_from(Priority)),
            st.just("batch"),
            st.integers(0, 5),
        ),
        max_size=60,
    )
)
def test_nothing_is_lost_doubled_or_reordered(actions: list) -> None:
    waiting = queue(steps_max=12, sessions_max=4, decode_steps_max=2)
    expected: dict[int, list[int]] = {}
    priorities: dict[int, Priority] = {}
    for number, action in enumerate(actions):
        if action == "batch":
            batch = names(waiting.next_batch())
            assert bool(batch) == any(expected.values())
            assert len({session for session, _ in batch}) == len(batch)
            for session, item in batch:
                assert expected[session].pop(0) == item
        elif isinstance(action, int):
            assert waiting.discard(session_id(action)) == len(expected.pop(action, []))
        else:
            session, tokens, priority = action
            priority = priorities.setdefault(session, priority)
            if waiting.push(step(session, tokens, number), priority, number / 10):
                expected.setdefault(session, []).append(number)
        assert len(waiting) == sum(map(len, expected.values()))
        waiting.check()
