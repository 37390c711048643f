"""Drawing the next token from logits, in the same way on every node.

A draw is a function of the seed, the index of the generated token and the logits, and of nothing
else: no generator has a state that a crash could lose. The noise comes from a counter-based
generator (Philox, Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) keyed with
seed and index, and the token from the Gumbel-max trick (Gumbel 1954; Maddison et al., "A*
sampling", 2014): to each log-probability the noise of its token is added, and the largest wins.
Noise belongs to a token id and not to a rank, so a replay on a node whose logits differ in the last
digits draws the same token unless two were all but equal.

Steps, in the order transformers applies them: penalties and bias, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from p2pllm.core.effects import Draw
from p2pllm.domain.generation import SampledToken, SamplingParameters, TokenLogprob

GREEDY_BELOW_TEMPERATURE = 1e-5
"""Dividing by less overflows; what it would draw is the likeliest token anyway."""

_Floats = npt.NDArray[np.float64]


def sample(logits: npt.NDArray[np.float32], draw: Draw) -> SampledToken:
    """Draw one token.

    Args:
        logits: one per id of the vocabulary, `[ids]`.
        draw: how, and the tokens so far.

    Raises:
        ValueError: the logits are not numbers, so the model's weights or kernels are broken.
    """
    sampling = draw.sampling
    scores = logits.astype(np.float64)
    if not np.isfinite(scores.max(initial=-np.inf)) or np.isnan(scores).any():
        raise ValueError("the model returned logits that are not numbers")
    _penalise(scores, draw)
    _add_bias(scores, sampling)
    if sampling.temperature < GREEDY_BELOW_TEMPERATURE:
        token = int(np.argmax(scores))
    else:
        token = _draw(_truncate(scores / sampling.temperature, sampling), sampling.seed, draw.index)
    return _report(scores, token, sampling.logprobs)


def noise(seed: int, index: int, count: int) -> _Floats:
    """Uniform numbers in (0, 1), one per token id: the same on every machine.

    Philox's raw output is part of numpy's compatibility promise; its distributions are not, so
    the 53 high bits are turned into a fraction here.
    """
    generator = np.random.Philox(key=np.array([seed % 2**64, index], dtype=np.uint64))
    raw: npt.NDArray[np.uint64] = np.asarray(generator.random_raw(count), dtype=np.uint64)
    return ((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _penalise(scores: _Floats, draw: Draw) -> None:
    """Make tokens that were there before less likely.

    Repetition penalty: Keskar et al., "CTRL", 2019, over prompt and output. Presence and frequency
    penalties: the OpenAI API, over the output alone.
    """
    sampling = draw.sampling
    if sampling.repetition_penalty != 1:
        seen = _known(np.unique(np.array(draw.history, dtype=np.int64)), len(scores))
        penalty = sampling.repetition_penalty
        scores[seen] = np.where(scores[seen] > 0, scores[seen] / penalty, scores[seen] * penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        generated = np.array(draw.history[draw.prompt_length :], dtype=np.int64)
        tokens, counts = np.unique(_known(generated, len(scores)), return_counts=True)
        scores[tokens] -= sampling.presence_penalty + sampling.frequency_penalty * counts


def _known(tokens: npt.NDArray[np.int64], vocabulary_size: int) -> npt.NDArray[np.int64]:
    return tokens[(tokens >= 0) & (tokens < vocabulary_size)]


def _add_bias(scores: _Floats, sampling: SamplingParameters) -> None:
    for token, bias in sampling.logit_bias:
        if 0 <= token < len(scores):
            scores[token] += bias


def _truncate(scores: _Floats, sampling: SamplingParameters) -> _Floats:
    """Log-probabilities, unnormalised, of the tokens that stay; minus infinity for the others.

    top-k: Fan et al., "Hierarchical neural story generation", 2018. top-p: Holtzman et al., "The
    curious case of neural text degeneration", 2019. min-p: Nguyen et al., "Turning up the heat",
    2024. Each works on the distribution the one before it left; the likeliest token always stays.
    """
    if 0 < sampling.top_k < len(scores):
        # Ties at the limit go to lower ids, so that just k stay.
        keep = np.argsort(-scores, kind="stable")[: sampling.top_k]
        scores = _only(scores, keep)
    if sampling.top_p < 1:
        order = np.argsort(-scores, kind="stable")
        mass = np.cumsum(_probabilities(scores)[order])
        count = int(np.searchsorted(mass, sampling.top_p)) + 1
        scores = _only(scores, order[:count])
    if sampling.min_p > 0:
        keep = np.flatnonzero(scores >= scores.max() + np.log(min(sampling.min_p, 1.0)))
        scores = _only(scores, keep)
    return scores


def _only(scores: _Floats, keep: npt.NDArray[np.intp]) -> _Floats:
    kept = np.full_like(scores, -np.inf)
    kept[keep] = scores[keep]
    return kept


def _probabilities(scores: _Floats) -> _Floats:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def _draw(scores: _Floats, seed: int, index: int) -> int:
    candidates = np.flatnonzero(np.isfinite(scores))
    uniform = noise(seed, index, len(scores))[candidates]
    return int(candidates[np.argmax(scores[candidates] - np.log(-np.log(uniform)))])


def _report(scores: _Floats, token: int, logprobs: int | None) -> SampledToken:
    """With log-probabilities after penalties and bias, before temperature and truncation."""
    if logprobs is None:
        return SampledToken(token)
    highest = scores.max()
    logarithms = scores - (highest + np.log(np.exp(scores - highest).sum()))
    count = min(logprobs, len(scores))
    best = np.argpartition(-logarithms, count - 1)[:count] if count else np.array([], dtype=np.intp)
    best = best[np.lexsort((best, -logarithms[best]))]
    # JSON has no minus infinity, which a bias may lead to.
    floor = -1e9
    alternatives = tuple(
        TokenLogprob(int(candidate), max(float(logarithms[candidate]), floor)) for candidate in best
    )
    return SampledToken(token, max(float(logarithms[token]), floor), alternatives)
