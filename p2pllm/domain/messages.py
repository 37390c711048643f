"""What nodes say to each other over streams while they generate.

Datagram messages stand in `p2pllm.domain.gossip`, those of a join in `p2pllm.domain.enrolment`.

The life of a generation, gateway G and a path of stages A, B, C:

    G -> A   Forward(hop=0, step=0, tokens=prompt, setup=...)     prefill, in chunks
    A -> B   Forward(hop=1, step=0, tokens, setup, activation)
    B -> C   Forward(hop=2, step=0, tokens, setup, activation)
    C -> G   TokenSampled(index=0)         } at the same time: the direct token loop
    C -> A   Forward(hop=0, step=1)        }
    ...
    C -> G   TokenSampled(index=n, finish=STOP)
    G -> A, B, C   CloseSession

Every Forward carries the token ids of its positions, so the first stage can embed them and the
last one knows the history that penalties need. `step` counts Forwards within an attempt from 0 on;
a stage takes just the one it expects next, so a duplicate is dropped and a gap is an error. A new
path is a new `attempt` that starts again at step 0 with all tokens so far; whatever still arrives
of an older attempt is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from p2pllm.domain.bounds import Bounds, Length
from p2pllm.domain.generation import (
    STOP_TOKENS_MAX,
    FinishReason,
    Hop,
    Priority,
    SampledToken,
    SamplingParameters,
    TokenId,
)
from p2pllm.domain.ids import ModelId, NodeId, SessionId, SwarmId

PROTOCOL_VERSION = 1
PROTOCOL_VERSION_MIN = 1

CHUNK_TOKENS_MAX = 512
"""Most positions in one Forward: bounds a frame, and how long a step may hold up others."""

HOPS_MAX = 256
CONTEXT_TOKENS_MAX = 2**24
ATTEMPT_MAX = 2**31 - 1
DETAIL_LENGTH_MAX = 512


class ActivationType(IntEnum):
    """Element type of an activation on the wire."""

    FLOAT32 = 1
    BFLOAT16 = 2
    FLOAT16 = 3

    @property
    def itemsize_bytes(self) -> int:
        """Bytes of one element."""
        return 4 if self is ActivationType.FLOAT32 else 2


@dataclass(frozen=True, slots=True)
class Activation:
    """Hidden states of one step: `rows` positions of `columns` elements, row after row.

    Attributes:
        type: element type.
        rows: positions.
        columns: the model's hidden size.
        data: `rows * columns * type.itemsize_bytes` bytes, little endian; travels beside the
            message header, not in it.
    """

    type: ActivationType
    rows: Annotated[int, Bounds(1, CHUNK_TOKENS_MAX)]
    columns: Annotated[int, Bounds(1, 2**20)]
    data: bytes | bytearray | memoryview

    @property
    def size_bytes(self) -> int:
        """What `data` must measure."""
        return self.rows * self.columns * self.type.itemsize_bytes


@dataclass(frozen=True, slots=True)
class SessionSetup:
    """What a stage must know of a session; sent with the first step of each attempt.

    Attributes:
        gateway: who gets the tokens and may close the session.
        model: which model.
        fingerprint: of the model's files; a stage that holds others refuses.
        path: all hops, in order.
        prompt_length: tokens of the prompt; tokens after it were generated. The generated index
            of the token drawn after position p is p + 1 - prompt_length.
        tokens_max: most tokens to generate.
        sampling: for the last stage.
        stop_tokens: end the generation; for the last stage.
        priority: of its steps in the stages' queues.
    """

    gateway: NodeId
    model: ModelId
    fingerprint: Annotated[str, Length(64)]
    path: Annotated[tuple[Hop, ...], Length(HOPS_MAX)]
    prompt_length: Annotated[int, Bounds(1, CONTEXT_TOKENS_MAX)]
    tokens_max: Annotated[int, Bounds(1, CONTEXT_TOKENS_MAX)]
    sampling: SamplingParameters
    stop_tokens: Annotated[tuple[TokenId, ...], Length(STOP_TOKENS_MAX)] = ()
    priority: Priority = Priority.NORMAL

    @property
    def kv_tokens(self) -> int:
        """Positions the KV lease of every stage must have room for."""
        return self.prompt_length + self.tokens_max

    def finish_reason(self, token: int, index: int) -> FinishReason | None:
        """Why the generation ends with `token` at generated `index`; None where it goes on."""
        if token in self.stop_tokens:
            return FinishReason.STOP
        return FinishReason.LENGTH if index + 1 >= self.tokens_max else None


@dataclass(frozen=True, slots=True)
class Forward:
    """One step for the stage at `hop`.

    Attributes:
        session: whose step.
        attempt: which path of the session, counted from 1.
        step: consecutive within the attempt, from 0.
        hop: index into the path of the stage this is for.
        position: of the first token, 0 at the start of the prompt.
        tokens: ids at the positions of this step.
        sample: whether the last stage draws a token after it; false for all but the last chunk
            of a prefill.
        setup: on step 0 only.
        activation: on every hop but the first; one row per token.
    """

    session: SessionId
    attempt: Annotated[int, Bounds(1, ATTEMPT_MAX)]
    step: Annotated[int, Bounds(0, CONTEXT_TOKENS_MAX)]
    hop: Annotated[int, Bounds(0, HOPS_MAX - 1)]
    position: Annotated[int, Bounds(0, CONTEXT_TOKENS_MAX)]
    tokens: Annotated[tuple[TokenId, ...], Length(CHUNK_TOKENS_MAX)]
    sample: bool
    setup: SessionSetup | None = None
    activation: Activation | None = None


@dataclass(frozen=True, slots=True)
class TokenSampled:
    """The last stage drew a token; for the gateway.

    Attributes:
        session: whose token.
        attempt: under which path.
        index: 0 for the first generated token; the gateway takes just the next one.
        sampled: the token.
        finish: set on the last token.
    """

    session: SessionId
    attempt: Annotated[int, Bounds(1, ATTEMPT_MAX)]
    index: Annotated[int, Bounds(0, CONTEXT_TOKENS_MAX)]
    sampled: SampledToken
    finish: FinishReason | None = None


class FailureReason(IntEnum):
    """Why a stage gave a session up."""

    HOP_LOST = 1
    """The next hop cannot be reached; `blamed` names it."""
    NOT_HELD = 2
    """This stage does not hold these layers of this model (any more)."""
    NO_KV_ROOM = 3
    QUEUE_FULL = 4
    OUT_OF_STEP = 5
    """A step is missing or the session is not known here."""
    BAD_ACTIVATION = 6
    """Shape or type do not fit the model."""
    ENGINE = 7
    """The computation failed."""
    LEAVING = 8
    MALFORMED = 9
    """Somebody broke the protocol; `blamed` names who sent it."""
    EXPIRED = 10
    """No step came for too long, or the gateway could not be reached for too long."""


@dataclass(frozen=True, slots=True)
class SessionFailed:
    """A stage gave an attempt up and freed what it held of it; for the gateway."""

    session: SessionId
    attempt: Annotated[int, Bounds(1, ATTEMPT_MAX)]
    reason: FailureReason
    blamed: NodeId | None
    detail: Annotated[str, Length(DETAIL_LENGTH_MAX)]


@dataclass(frozen=True, slots=True)
class CloseSession:
    """The gateway is done with `attempt` and every older one; free what you hold of them."""

    session: SessionId
    attempt: Annotated[int, Bounds(1, ATTEMPT_MAX)]


@dataclass(frozen=True, slots=True)
class StreamProbe:
    """Are you there? SWIM's last resort where datagrams do not get through."""

    sequence: Annotated[int, Bounds(0, 2**62)]


@dataclass(frozen=True, slots=True)
class StreamProbeAck:
    """I am."""

    sequence: Annotated[int, Bounds(0, 2**62)]


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame on a stream, both ways.

    Attributes:
        version_min: oldest protocol version the sender speaks.
        version_max: newest one; the highest both speak is used, none means the stream is closed.
        node: the sender; must be the one its certificate names.
        swarm: the sender's swarm.
        software: name and version, for people.
    """

    version_min: Annotated[int, Bounds(1, 65_535)]
    version_max: Annotated[int, Bounds(1, 65_535)]
    node: NodeId
    swarm: SwarmId
    software: Annotated[str, Length(64)]


@dataclass(frozen=True, slots=True)
class Goodbye:
    """The sender closes the stream and says why, in a line for people."""

    reason: Annotated[str, Length(DETAIL_LENGTH_MAX)]


SessionMessage = Forward | TokenSampled | SessionFailed | CloseSession
"""What the session machines exchange."""
