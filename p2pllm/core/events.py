"""What happens to a node, in the past tense. Shells turn the world into these."""

from __future__ import annotations

from dataclasses import dataclass

from p2pllm.domain.generation import GenerationRequest, SampledToken
from p2pllm.domain.gossip import GossipMessage
from p2pllm.domain.ids import ModelId, NodeId, SessionId
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.messages import Activation, SessionMessage, StreamProbe, StreamProbeAck
from p2pllm.domain.models import ModelSpec
from p2pllm.domain.records import Address


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The time of `deadline()` has come."""


@dataclass(frozen=True, slots=True)
class PeerDiscovered:
    """mDNS, the command line or the memory of an earlier run named an address.

    Attributes:
        address: where somebody may listen.
        node: who, where that is known.
    """

    address: Address
    node: NodeId | None = None


@dataclass(frozen=True, slots=True)
class DatagramReceived:
    """An authenticated, decoded datagram; records in it have proven signatures.

    Attributes:
        sender: who sealed it.
        source: where it came from.
        message: what it says.
        wall_ms: wall time at receipt, to refuse facts from the future; None where there is no
            clock to trust.
    """

    sender: NodeId
    source: Address
    message: GossipMessage
    wall_ms: int | None = None


@dataclass(frozen=True, slots=True)
class StreamReceived:
    """A decoded frame from an authenticated peer, or one that this node sent itself."""

    sender: NodeId
    message: SessionMessage | StreamProbe | StreamProbeAck


@dataclass(frozen=True, slots=True)
class PeerUnreachable:
    """A stream to `node` broke or could not be opened; what was on it may be lost."""

    node: NodeId
    detail: str


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came out of one step of a batch.

    Attributes:
        session: whose.
        attempt: under which path.
        activation: for the next hop; None on the last.
        sampled: on the last hop where the step asked for a draw.
        error: set where this step failed; the others are None then.
    """

    session: SessionId
    attempt: int
    activation: Activation | None = None
    sampled: SampledToken | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class StepsFinished:
    """The engine is done with the batch it was given; one result per step, in order.

    Attributes:
        results: one per step of the batch.
        elapsed_s: how long the engine took.
    """

    results: tuple[StepResult, ...]
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class LayersLoaded:
    """The engine can run `layers` of `model`."""

    model: ModelId
    layers: LayerRange


@dataclass(frozen=True, slots=True)
class LayersFailed:
    """`layers` of `model` could not be loaded; `detail` is a line for people."""

    model: ModelId
    layers: LayerRange
    detail: str


@dataclass(frozen=True, slots=True)
class ModelResolved:
    """This node found out whether it can reach a model's files.

    Attributes:
        model: which.
        reachable: whether it may be given layers of it.
        detail: why not, for people.
    """

    model: ModelId
    reachable: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ModelAdded:
    """A user asked that the swarm serve a model."""

    spec: ModelSpec
    wall_ms: int


@dataclass(frozen=True, slots=True)
class ModelRemoved:
    """A user asked that the swarm serve a model no longer."""

    model: ModelId
    wall_ms: int


@dataclass(frozen=True, slots=True)
class GenerationSubmitted:
    """A client asked for a generation at this gateway."""

    request: GenerationRequest


@dataclass(frozen=True, slots=True)
class GenerationCancelled:
    """The client went away, or its text reached a stop string."""

    session: SessionId


@dataclass(frozen=True, slots=True)
class CertificatesAged:
    """What records carry to prove them runs out, and this node has a younger certificate for it.

    Attributes:
        own: whether of its own records: its certificate was renewed.
        facts: of which models; any member may state a fact anew.
    """

    own: bool
    facts: tuple[ModelId, ...] = ()


@dataclass(frozen=True, slots=True)
class LeaveRequested:
    """The owner wants this node to leave gracefully."""


Event = (
    TimerFired
    | PeerDiscovered
    | DatagramReceived
    | StreamReceived
    | PeerUnreachable
    | StepsFinished
    | LayersLoaded
    | LayersFailed
    | ModelResolved
    | ModelAdded
    | ModelRemoved
    | GenerationSubmitted
    | GenerationCancelled
    | CertificatesAged
    | LeaveRequested
)
