from __future__ import annotations

import dataclasses
import typing

from p2pllm.domain.bounds import Bounds
from p2pllm.domain.generation import FinishReason, Priority, SamplingParameters


def test_sampling_that_nobody_asked_to_change_draws_from_the_models_own_distribution() -> None:
    assert SamplingParameters() == SamplingParameters(
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        repetition_penalty=1.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        logit_bias=(),
        logprobs=None,
    )


def test_every_default_of_sampling_lies_in_its_bounds() -> None:
    hints = typing.get_type_hints(SamplingParameters, include_extras=True)
    checked = 0
    for field in dataclasses.fields(SamplingParameters):
        for mark in typing.get_args(hints[field.name])[1:]:
            if isinstance(mark, Bounds):
                assert mark.minimum <= field.default <= mark.maximum, field.name
                checked += 1
    assert checked >= 8


def test_a_higher_priority_is_a_lower_number() -> None:
    assert sorted(Priority) == [Priority.HIGH, Priority.NORMAL, Priority.LOW]


def test_finish_reasons_are_those_of_openai() -> None:
    assert {str(reason) for reason in FinishReason} == {"stop", "length"}
