"""A generation: what a client asks for, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Annotated

from p2pllm.domain.bounds import Bounds, Length
from p2pllm.domain.ids import ModelId, NodeId, SessionId
from p2pllm.domain.layers import LayerRange

TOP_LOGPROBS_MAX = 20
STOP_TOKENS_MAX = 64
LOGIT_BIAS_MAX = 300
TOKEN_ID_MAX = 2**31 - 1

TokenId = Annotated[int, Bounds(0, TOKEN_ID_MAX)]


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How the next token is drawn from the logits.

    Attributes:
        temperature: 0 takes the likeliest token.
        top_p: nucleus mass kept, in (0, 1].
        top_k: likeliest tokens kept; 0 keeps all.
        min_p: least probability kept, as a share of the likeliest's.
        seed: draws are a function of `(seed, index of the generated token)` alone, so a replay
            on another node draws the same.
        repetition_penalty: > 1 makes tokens seen in prompt or output less likely (CTRL paper).
        presence_penalty: subtracted once from tokens already generated (OpenAI).
        frequency_penalty: subtracted per occurrence from tokens already generated (OpenAI).
        logit_bias: (token id, bias) pairs, added to the logits.
        logprobs: None for none, else how many alternatives to report besides the chosen one.
    """

    temperature: Annotated[float, Bounds(0, 100)] = 1.0
    top_p: Annotated[float, Bounds(0, 1)] = 1.0
    top_k: Annotated[int, Bounds(0, 2**31 - 1)] = 0
    min_p: Annotated[float, Bounds(0, 1)] = 0.0
    seed: Annotated[int, Bounds(-(2**63), 2**64 - 1)] = 0
    repetition_penalty: Annotated[float, Bounds(0, 100)] = 1.0
    presence_penalty: Annotated[float, Bounds(-100, 100)] = 0.0
    frequency_penalty: Annotated[float, Bounds(-100, 100)] = 0.0
    logit_bias: Annotated[tuple[tuple[TokenId, float], ...], Length(LOGIT_BIAS_MAX)] = ()
    logprobs: Annotated[int, Bounds(0, TOP_LOGPROBS_MAX)] | None = None


class Priority(IntEnum):
    """Which waiting step goes first; lower is sooner."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


class FinishReason(StrEnum):
    """Why a generation ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One choice of one request, already tokenised.

    Attributes:
        session: its id, drawn by the gateway.
        model: which model.
        prompt: token ids, at least one.
        tokens_max: most tokens to generate, at least one.
        sampling: how to draw.
        stop_tokens: ids that end the generation (the model's end-of-sequence ids).
        priority: its place in the stages' queues.
        deadline_s: seconds from submission after which it ends with an error.
    """

    session: SessionId
    model: ModelId
    prompt: tuple[int, ...]
    tokens_max: int
    sampling: SamplingParameters
    stop_tokens: tuple[int, ...] = ()
    priority: Priority = Priority.NORMAL
    deadline_s: float = 600.0


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of one candidate, natural logarithm, before temperature and truncation."""

    token: TokenId
    logprob: float


@dataclass(frozen=True, slots=True)
class SampledToken:
    """One drawn token.

    Attributes:
        token: its id.
        logprob: of the drawn token, or None where not asked for.
        alternatives: the likeliest candidates, best first, as many as asked for.
    """

    token: TokenId
    logprob: float | None = None
    alternatives: Annotated[tuple[TokenLogprob, ...], Length(TOP_LOGPROBS_MAX)] = ()


@dataclass(frozen=True, slots=True)
class Hop:
    """One stage of a path: `node` computes `layers`."""

    node: NodeId
    layers: LayerRange


Path = tuple[Hop, ...]
"""Hops whose layers join up to the whole model, in order. A node may stand in it twice."""
