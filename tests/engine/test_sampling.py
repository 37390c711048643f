"""Draws that are the same everywhere, from the distribution that was asked for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from p2pllm.core.effects import Draw
from p2pllm.domain.generation import SampledToken, SamplingParameters
from p2pllm.engine.sampling import noise, sample

LOGITS = np.array([1.0, 3.0, 2.0, -1.0, 0.5], dtype=np.float32)


def draw_of(
    *, index: int = 0, history: tuple[int, ...] = (), prompt_length: int = 0, **sampling: Any
) -> Draw:
    return Draw(SamplingParameters(**sampling), index, history, prompt_length)


def drawn(logits: np.ndarray[Any, Any] = LOGITS, **asked: Any) -> SampledToken:
    return sample(logits.astype(np.float32), draw_of(**asked))


def frequencies(count: int = 4_000, **sampling: Any) -> list[float]:
    counts = np.zeros(len(LOGITS))
    for index in range(count):
        counts[drawn(index=index, **sampling).token] += 1
    return list(counts / count)


def softmax(scores: Any) -> Any:
    weights = np.exp(np.asarray(scores, dtype=np.float64) - np.max(scores))
    return weights / weights.sum()


def test_temperature_zero_takes_the_likeliest() -> None:
    assert drawn(temperature=0, seed=9).token == 1


def test_a_tie_goes_to_the_lower_id() -> None:
    assert drawn(np.array([0.0, 2.0, 2.0]), temperature=0).token == 1


def test_the_same_seed_and_index_draw_the_same() -> None:
    logits = np.random.Generator(np.random.Philox(1)).normal(size=1_000)
    first = [drawn(logits, index=index, seed=7).token for index in range(20)]
    assert first == [drawn(logits, index=index, seed=7).token for index in range(20)]
    assert first != [drawn(logits, index=index, seed=8).token for index in range(20)]
    assert len(set(first)) > 10


def test_the_noise_is_the_same_on_every_machine() -> None:
    # Nodes that disagree here would break the promise that a replay draws the same tokens.
    assert noise(42, 3, 4).tolist() == [
        0.7122142960324449,
        0.07050661802753061,
        0.39397774899621946,
        0.12638127632230617,
    ]


@given(seed=st.integers(-(2**63), 2**64), index=st.integers(0, 2**24))
def test_noise_lies_strictly_between_zero_and_one(seed: int, index: int) -> None:
    uniform = noise(seed, index, 32)
    assert ((uniform > 0) & (uniform < 1)).all()


def test_noise_of_a_token_does_not_depend_on_the_size_of_the_vocabulary() -> None:
    assert noise(5, 1, 10).tolist() == noise(5, 1, 1_000)[:10].tolist()


def test_draws_follow_the_distribution() -> None:
    assert frequencies(temperature=1.0) == pytest.approx(list(softmax(LOGITS)), abs=0.03)
    assert frequencies(temperature=2.0) == pytest.approx(list(softmax(LOGITS / 2)), abs=0.03)


def test_logits_that_differ_in_the_last_digits_draw_the_same() -> None:
    generator = np.random.Generator(np.random.Philox(2))
    logits = generator.normal(size=5_000) * 3
    drifted = logits + generator.normal(size=5_000) * 1e-6
    for index in range(200):
        assert drawn(logits, index=index).token == drawn(drifted, index=index).token


@pytest.mark.parametrize(
    ("sampling", "warper"),
    [
        ({"top_k": 2}, TopKLogitsWarper(2)),
        ({"top_k": 1}, TopKLogitsWarper(1)),
        ({"top_p": 0.8}, TopPLogitsWarper(0.8)),
        ({"top_p": 0.3}, TopPLogitsWarper(0.3)),
        ({"top_p": 0.95}, TopPLogitsWarper(0.95)),
        ({"min_p": 0.2}, MinPLogitsWarper(0.2)),
        ({"min_p": 1.0}, MinPLogitsWarper(1.0)),
    ],
)
def test_what_is_kept_is_what_transformers_keeps(sampling: dict[str, Any], warper: Any) -> None:
    kept = torch.isfinite(warper(None, torch.from_numpy(LOGITS)[None])[0]).numpy()
    seen = np.array(frequencies(2_000, **sampling)) > 0
    assert seen.tolist() == kept.tolist()


def test_top_k_beyond_the_vocabulary_keeps_all() -> None:
    assert all(frequency > 0 for frequency in frequencies(top_k=500))


def test_the_repetition_penalty_is_the_one_of_transformers() -> None:
    history = (1, 3, 3)
    expected = RepetitionPenaltyLogitsProcessor(1.5)(
        torch.tensor([history]), torch.from_numpy(LOGITS.copy())[None]
    )[0]
    result = drawn(
        temperature=0, repetition_penalty=1.5, history=history, prompt_length=3, logprobs=5
    )
    assert {item.token: item.logprob for item in result.alternatives} == pytest.approx(
        dict(enumerate(torch.log_softmax(expected.double(), 0).tolist()))
    )


def test_presence_and_frequency_count_the_output_alone() -> None:
    history = (1, 1, 1, 2, 2, 0)
    result = drawn(
        temperature=0,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        history=history,
        prompt_length=3,
        logprobs=5,
    )
    expected = LOGITS.astype(np.float64) - np.array([0.75, 0, 1.0, 0, 0])
    assert {item.token: item.logprob for item in result.alternatives} == pytest.approx(
        dict(enumerate(np.log(softmax(expected))))
    )


def test_a_bias_can_force_and_forbid() -> None:
    assert drawn(temperature=0, logit_bias=((4, 100.0),)).token == 4
    assert drawn(temperature=0, logit_bias=((1, -100.0),)).token == 2


def test_tokens_outside_the_vocabulary_are_no_error() -> None:
    result = drawn(
        temperature=0,
        logit_bias=((99, 5.0), (-1, 5.0)),
        history=(99, -1),
        repetition_penalty=2.0,
        frequency_penalty=1.0,
    )
    assert result.token == 1


def test_logprobs_are_reported_best_first_and_only_where_asked_for() -> None:
    assert drawn(temperature=0).logprob is None
    result = drawn(temperature=0, logprobs=2)
    assert [item.token for item in result.alternatives] == [1, 2]
    assert result.logprob == result.alternatives[0].logprob
    assert result.logprob == pytest.approx(math.log(softmax(LOGITS)[1]))
    bare = drawn(temperature=0, logprobs=0)
    assert bare.alternatives == ()
    assert bare.logprob == result.logprob


def test_logprobs_are_those_before_temperature_and_truncation() -> None:
    result = drawn(temperature=0.1, top_k=1, logprobs=5)
    assert [item.logprob for item in result.alternatives] == pytest.approx(
        sorted(np.log(softmax(LOGITS)), reverse=True)
    )


def test_a_logprob_is_always_a_number() -> None:
    logits = np.array([0.0, -np.inf, 1.0])
    result = drawn(logits, temperature=0, logprobs=3)
    assert all(math.isfinite(item.logprob) for item in result.alternatives)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_numbers_are_an_error(bad: float) -> None:
    with pytest.raises(ValueError, match="not numbers"):
        drawn(np.array([0.0, bad]))


@given(
    logits=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40),
    temperature=st.floats(0, 5),
    top_k=st.integers(0, 50),
    top_p=st.floats(0.001, 1),
    min_p=st.floats(0, 1),
    seed=st.integers(0, 2**64 - 1),
)
def test_any_parameters_draw_a_token_of_the_vocabulary(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    result = drawn(
        np.array(logits),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        logprobs=3,
    )
    assert 0 <= result.token < len(logits)
    assert result.logprob is not None
    assert result.logprob <= 1e-12
