"""What the core wants done, as data. Shells perform it and feed the outcome back as events."""

from __future__ import annotations

from dataclasses import dataclass, field

from p2pllm.domain.errors import P2PLLMError
from p2pllm.domain.generation import FinishReason, Path, SampledToken, SamplingParameters
from p2pllm.domain.gossip import GossipMessage
from p2pllm.domain.ids import ModelId, NodeId, SessionId
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.messages import Activation, SessionMessage, StreamProbe, StreamProbeAck
from p2pllm.domain.models import ModelSpec
from p2pllm.domain.records import Address


@dataclass(frozen=True, slots=True)
class SendDatagram:
    """Send, unreliably. Nothing comes back.

    Attributes:
        address: where to.
        message: what.
    """

    address: Address
    message: GossipMessage


@dataclass(frozen=True, slots=True)
class SendStream:
    """Send, reliably and in order per peer. A failure comes back as `PeerUnreachable`.

    A message to the node itself comes back as `StreamReceived`.
    """

    node: NodeId
    message: SessionMessage | StreamProbe | StreamProbeAck


@dataclass(frozen=True, slots=True)
class WatchPeer:
    """Keep a stream to `node` open, so that its end is noticed; comes back as `PeerUnreachable`."""

    node: NodeId


@dataclass(frozen=True, slots=True)
class StageStep:
    """One step of one session, for the engine.

    Attributes:
        session: whose KV cache to use.
        attempt: with `session`, the cache's key.
        model: which model.
        layers: what to run.
        position: of the first token.
        tokens: ids at these positions.
        activation: rows for the first layer; None where `layers` starts at 0.
        is_last: whether `layers` ends at the model's last layer.
        draw: what to draw with after this step; None for no draw.
    """

    session: SessionId
    attempt: int
    model: ModelId
    layers: LayerRange
    position: int
    tokens: tuple[int, ...]
    activation: Activation | None
    is_last: bool
    draw: Draw | None


@dataclass(frozen=True, slots=True)
class Draw:
    """Draw one token from the logits of the step's last position.

    Attributes:
        sampling: how.
        index: generated index of the token to draw; with the seed, it decides the draw.
        history: all tokens up to this step's last position.
        prompt_length: how many of them are the prompt.
    """

    sampling: SamplingParameters
    index: int
    history: tuple[int, ...]
    prompt_length: int


@dataclass(frozen=True, slots=True)
class RunSteps:
    """Run a batch; comes back as one `StepsFinished`. Never two at a time."""

    steps: tuple[StageStep, ...]


@dataclass(frozen=True, slots=True)
class FreeCache:
    """Free the KV cache of `(session, attempt)`; after the running batch, if it is in it."""

    session: SessionId
    attempt: int


@dataclass(frozen=True, slots=True)
class LoadLayers:
    """Load; comes back as `LayersLoaded` or `LayersFailed` with the same range."""

    model: ModelId
    layers: LayerRange


@dataclass(frozen=True, slots=True)
class DropLayers:
    """Free the weights of `layers`; no session uses them any more."""

    model: ModelId
    layers: LayerRange


@dataclass(frozen=True, slots=True)
class ResolveModel:
    """Find out whether this node can reach the model's files; comes back as `ModelResolved`."""

    spec: ModelSpec


@dataclass(frozen=True, slots=True)
class PathChosen:
    """A generation goes this way now; for its client.

    Attributes:
        session: whose.
        attempt: 1 at first, higher after each failure.
        path: the hops.
    """

    session: SessionId
    attempt: int
    path: Path


@dataclass(frozen=True, slots=True)
class TokenGenerated:
    """The next token, exactly once and in order; for the client."""

    session: SessionId
    index: int
    sampled: SampledToken
    finish: FinishReason | None


@dataclass(frozen=True, slots=True)
class GenerationFailed:
    """The generation is over without a finish reason; for the client."""

    session: SessionId
    error: P2PLLMError


@dataclass(frozen=True, slots=True)
class LeaveFinished:
    """The others know, and no session runs here any more: the process may end."""


@dataclass(frozen=True, slots=True)
class Notify:
    """Something worth a log line.

    Attributes:
        event: lower_snake_case, stable.
        level: debug, info, warning or error.
        fields: plain values; never a secret, a prompt or a generated text.
    """

    event: str
    level: str = "info"
    fields: dict[str, str | int | float | bool | None] = field(
        default_factory=dict[str, str | int | float | bool | None]
    )


Effect = (
    SendDatagram
    | SendStream
    | WatchPeer
    | RunSteps
    | FreeCache
    | LoadLayers
    | DropLayers
    | ResolveModel
    | PathChosen
    | TokenGenerated
    | GenerationFailed
    | LeaveFinished
    | Notify
)
