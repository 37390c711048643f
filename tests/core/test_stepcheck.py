from __future__ import annotations

from dataclasses import replace

import pytest

from p2pllm.core.stepcheck import joins_up, may_send, refuse_setup, refuse_step
from p2pllm.domain.generation import Hop, SamplingParameters
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.messages import (
    Activation,
    ActivationType,
    FailureReason,
    Forward,
    SessionSetup,
)
from tests.core.generation_world import MODEL, make_spec, node_id, session_id

G, A, B = map(node_id, range(3))
SPEC = make_spec(4, context=100)
SETUP = SessionSetup(
    gateway=G,
    model=MODEL,
    fingerprint=SPEC.fingerprint,
    path=(Hop(A, LayerRange(0, 2)), Hop(B, LayerRange(2, 4))),
    prompt_length=3,
    tokens_max=5,
    sampling=SamplingParameters(),
)
FIRST = Forward(session_id(0), 1, 0, 0, 0, (1, 2, 3), sample=True, setup=SETUP)
ROWS = Activation(ActivationType.BFLOAT16, 3, 2, bytes(12))
SECOND = replace(FIRST, hop=1, activation=ROWS)
LATER = Forward(session_id(0), 1, 1, 0, 3, (4,), sample=True)


def test_each_hop_has_its_senders() -> None:
    assert may_send(G, FIRST, SETUP)
    assert not may_send(B, FIRST, SETUP)
    assert may_send(B, LATER, SETUP)
    assert may_send(G, LATER, SETUP)
    assert not may_send(A, LATER, SETUP)
    assert may_send(A, SECOND, SETUP)
    assert not may_send(G, SECOND, SETUP)
    assert not may_send(B, replace(FIRST, hop=2), SETUP)


@pytest.mark.parametrize(
    "ranges", [((1, 4),), ((0, 2), (3, 4)), ((0, 3), (2, 4)), ((0, 2),), ((0, 5),)]
)
def test_layers_that_do_not_join_up_are_noticed(ranges: tuple) -> None:
    path = tuple(Hop(A, LayerRange(*item)) for item in ranges)
    assert not joins_up(path, SPEC)
    refusal = refuse_setup(replace(SETUP, path=path), SPEC)
    assert refusal is not None
    assert refusal.reason is FailureReason.MALFORMED


@pytest.mark.parametrize("change", [{"prompt_length": 0}, {"tokens_max": 0}, {"tokens_max": 98}])
def test_setups_that_make_no_sense_are_refused(change: dict) -> None:
    assert refuse_setup(replace(SETUP, tokens_max=97), SPEC) is None
    refusal = refuse_setup(replace(SETUP, **change), SPEC)
    assert refusal is not None
    assert refusal.reason is FailureReason.MALFORMED


def test_right_steps_are_taken() -> None:
    assert refuse_step(FIRST, SETUP, SPEC, step=0, position=0) is None
    assert refuse_step(SECOND, SETUP, SPEC, step=0, position=0) is None
    assert refuse_step(LATER, SETUP, SPEC, step=1, position=3) is None
    view = replace(ROWS, data=memoryview(bytes(12)).cast("H"))
    assert refuse_step(replace(SECOND, activation=view), SETUP, SPEC, step=0, position=0) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"step": 1}, FailureReason.OUT_OF_STEP),
        ({"setup": None}, FailureReason.MALFORMED),
        ({"position": 1}, FailureReason.OUT_OF_STEP),
        ({"tokens": ()}, FailureReason.MALFORMED),
        ({"tokens": (1,) * 513}, FailureReason.MALFORMED),
        ({"tokens": (1,) * 8}, FailureReason.MALFORMED),
        ({"tokens": (1, 2)}, FailureReason.MALFORMED),
        ({"tokens": (1, 2, 97)}, FailureReason.MALFORMED),
        ({"activation": ROWS}, FailureReason.BAD_ACTIVATION),
        ({"hop": 1}, FailureReason.BAD_ACTIVATION),
        ({"hop": 1, "activation": replace(ROWS, rows=2)}, FailureReason.BAD_ACTIVATION),
        ({"hop": 1, "activation": replace(ROWS, columns=3)}, FailureReason.BAD_ACTIVATION),
        ({"hop": 1, "activation": replace(ROWS, data=bytes(11))}, FailureReason.BAD_ACTIVATION),
    ],
)
def test_each_wrong_step_is_refused_with_its_reason(change: dict, reason: FailureReason) -> None:
    refusal = refuse_step(replace(FIRST, **change), SETUP, SPEC, step=0, position=0)
    assert refusal is not None
    assert refusal.reason is reason


def test_a_setup_after_step_0_is_refused() -> None:
    refusal = refuse_step(replace(LATER, setup=SETUP), SETUP, SPEC, step=1, position=3)
    assert refusal is not None
    assert refusal.reason is FailureReason.MALFORMED


def test_a_chunk_that_draws_nothing_may_end_before_the_prompt_does() -> None:
    chunk = replace(FIRST, tokens=(1, 2), sample=False)
    assert refuse_step(chunk, SETUP, SPEC, step=0, position=0) is None
