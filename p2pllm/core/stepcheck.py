"""What a stage demands of a step before it believes it.

Every function answers what is wrong, or None. They are pure, so that each way in which a peer may
be wrong is one line here and one line in the tests.
"""

from __future__ import annotations

from dataclasses import dataclass

from p2pllm.domain.generation import Path
from p2pllm.domain.ids import NodeId
from p2pllm.domain.messages import (
    CHUNK_TOKENS_MAX,
    FailureReason,
    Forward,
    SessionSetup,
)
from p2pllm.domain.models import ModelSpec


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a step is not taken.

    Attributes:
        reason: for the gateway to act on.
        detail: for people.
    """

    reason: FailureReason
    detail: str


def may_send(sender: NodeId, forward: Forward, setup: SessionSetup) -> bool:
    """Whether `sender` is who sends this hop its steps.

    The first hop hears from the gateway and, once tokens are drawn, from the last hop; any other
    from the hop before it. A step from anybody else says nothing about the session.
    """
    if forward.hop >= len(setup.path):
        return False
    if forward.hop > 0:
        return sender == setup.path[forward.hop - 1].node
    return sender == setup.gateway or (forward.step > 0 and sender == setup.path[-1].node)


def joins_up(path: Path, spec: ModelSpec) -> bool:
    """Whether the hops' layers are all of the model's, each once and in order."""
    layer = 0
    for hop in path:
        if hop.layers.start != layer:
            return False
        layer = hop.layers.stop
    return layer == spec.num_layers


def refuse_setup(setup: SessionSetup, spec: ModelSpec) -> Refusal | None:
    """What is wrong with a setup, for a stage that holds its layers of `spec`."""
    if not joins_up(setup.path, spec):
        return _malformed("the layers of the path do not join up to the model")
    if setup.prompt_length < 1 or setup.tokens_max < 1:
        return _malformed("a generation needs a prompt and a token to generate")
    if setup.kv_tokens > spec.context_length_max:
        return _malformed(
            f"{setup.kv_tokens} tokens exceed the model's context of {spec.context_length_max}"
        )
    return None


def refuse_step(
    forward: Forward, setup: SessionSetup, spec: ModelSpec, *, step: int, position: int
) -> Refusal | None:
    """What is wrong with a step that may be sent and is no duplicate.

    Args:
        forward: the step.
        setup: of its attempt.
        spec: of its model.
        step: the number this hop expects next.
        position: the position this hop expects next.
    """
    if forward.step != step:
        return Refusal(
            FailureReason.OUT_OF_STEP, f"step {forward.step} came where {step} was expected"
        )
    if (forward.setup is None) != (forward.step > 0):
        return _malformed("the setup belongs to step 0 and to no other")
    if forward.position != position:
        return Refusal(
            FailureReason.OUT_OF_STEP,
            f"position {forward.position} came where {position} was expected",
        )
    count = len(forward.tokens)
    if not 1 <= count <= CHUNK_TOKENS_MAX:
        return _malformed(f"a step of {count} tokens")
    after = position + count
    if after >= setup.kv_tokens:
        return _malformed(f"position {after - 1} lies beyond what the session may reach")
    if forward.sample and after < setup.prompt_length:
        return _malformed("a token is to be drawn before the prompt is complete")
    if not all(0 <= token < spec.vocabulary_size for token in forward.tokens):
        return _malformed("a token id is not in the model's vocabulary")
    return _refuse_activation(forward, spec)


def _refuse_activation(forward: Forward, spec: ModelSpec) -> Refusal | None:
    activation = forward.activation
    if forward.hop == 0:
        return None if activation is None else _bad_activation("the first hop takes token ids")
    if activation is None:
        return _bad_activation("there is none")
    if (activation.rows, activation.columns) != (len(forward.tokens), spec.hidden_size):
        return _bad_activation(
            f"{activation.rows} x {activation.columns} came where"
            f" {len(forward.tokens)} x {spec.hidden_size} was expected"
        )
    if memoryview(activation.data).nbytes != activation.size_bytes:
        return _bad_activation(f"its data do not measure {activation.size_bytes} bytes")
    return None


def _malformed(detail: str) -> Refusal:
    return Refusal(FailureReason.MALFORMED, detail)


def _bad_activation(detail: str) -> Refusal:
    return Refusal(FailureReason.BAD_ACTIVATION, f"activation: {detail}")
