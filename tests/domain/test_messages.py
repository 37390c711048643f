from __future__ import annotations

import pytest

from p2pllm.domain.generation import FinishReason, SamplingParameters
from p2pllm.domain.ids import ModelId, NodeId
from p2pllm.domain.messages import (
    PROTOCOL_VERSION,
    PROTOCOL_VERSION_MIN,
    Activation,
    ActivationType,
    SessionSetup,
)

SETUP = SessionSetup(
    gateway=NodeId("a" * 32),
    model=ModelId("m"),
    fingerprint="f",
    path=(),
    prompt_length=7,
    tokens_max=3,
    sampling=SamplingParameters(),
    stop_tokens=(2, 5),
)


@pytest.mark.parametrize(
    ("kind", "size_bytes"),
    [(ActivationType.FLOAT32, 24), (ActivationType.BFLOAT16, 12), (ActivationType.FLOAT16, 12)],
)
def test_the_size_of_an_activation_follows_from_its_type_and_shape(
    kind: ActivationType, size_bytes: int
) -> None:
    assert Activation(kind, 2, 3, b"").size_bytes == size_bytes


def test_a_lease_has_room_for_prompt_and_answer() -> None:
    assert SETUP.kv_tokens == 10


def test_a_stop_token_ends_a_generation_at_any_index() -> None:
    assert SETUP.finish_reason(5, 0) is FinishReason.STOP


def test_the_last_allowed_token_ends_a_generation_and_none_before() -> None:
    assert [SETUP.finish_reason(9, index) for index in range(3)] == [
        None,
        None,
        FinishReason.LENGTH,
    ]


def test_a_stop_token_at_the_last_index_is_a_stop() -> None:
    assert SETUP.finish_reason(2, 2) is FinishReason.STOP


def test_this_node_speaks_the_versions_it_offers() -> None:
    assert 1 <= PROTOCOL_VERSION_MIN <= PROTOCOL_VERSION
