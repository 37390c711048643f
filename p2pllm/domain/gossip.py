"""What nodes say to each other in datagrams, and what a signature is around.

Gossip spreads *headlines*: who has which version of what, and who is believed alive. A node that
reads of something newer than it has *pulls* the signed body, so a body with its certificate
crosses the network about once per node, while the few bytes of its headline go around redundantly.

    Ping, PingRequest, Ack, Nack       is it alive? (SWIM)
    Gossip                             headlines, every 200 ms while there are any
    Pull -> Bodies                     give me these; here they are
    SyncDigest -> SyncEntries -> Gossip    anti-entropy: do we know the same?

Only a signed `NodeRecord` raises an incarnation; a headline that names a higher one is merely a
reason to pull. So nobody can push a node's counter up but the node itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar

from p2pllm.domain.bounds import Bounds, Length
from p2pllm.domain.ids import ModelId, NodeId
from p2pllm.domain.records import (
    INCARNATION_MAX,
    HybridTime,
    LoadRecord,
    MemberState,
    ModelFact,
    NodeRecord,
)

T = TypeVar("T")

DATAGRAM_BYTES_MAX = 1_280 - 48
"""The smallest MTU IPv6 guarantees, less its header and that of UDP, so that no datagram is ever
fragmented."""

SEAL_BYTES = 64
"""Room for what encryption adds to a datagram."""

HEADLINES_MAX = 64
PULL_MAX = 32
BODIES_MAX = 16
DIGEST_BUCKETS = 256
DIGEST_HASH_BYTES = 4
DEAD_FOR_MAX_S = 2**24

Sequence = Annotated[int, Bounds(0, 2**62)]
Incarnation = Annotated[int, Bounds(0, INCARNATION_MAX)]
Version = Annotated[int, Bounds(0, 2**62)]


@dataclass(frozen=True, slots=True)
class Signed(Generic[T]):
    """A value with its writer's proof; passed on as it came.

    On the wire stand `payload`, `signature` and `certificate` alone; `value` is decoded from
    `payload` on receipt and never re-encoded, so a newer writer's unknown fields stay signed.

    Attributes:
        value: what was signed.
        payload: its bytes.
        signature: ed25519 over the kind of `value` and `payload`, by the key in `certificate`.
        certificate: the writer's membership certificate, X.509 in DER; with `--open` too.
    """

    value: T
    payload: Annotated[bytes, Length(1_024)]
    signature: Annotated[bytes, Length(64)]
    certificate: Annotated[bytes, Length(512)]


@dataclass(frozen=True, slots=True)
class Headline:
    """What the sender knows of one node, without the bodies.

    Attributes:
        node: whom it is about.
        incarnation: of the newest node record the sender holds; `state` is about this one.
        version: of that record.
        load: version of the newest load record of the same incarnation; 0 for none.
        state: what the sender believes.
        accuser: with SUSPECT, one who found the node silent; counts as a confirmation.
        dead_for_s: with DEAD and LEFT, for how long, so that everybody forgets at the same time.
    """

    node: NodeId
    incarnation: Incarnation
    version: Version
    load: Version
    state: MemberState
    accuser: NodeId | None = None
    dead_for_s: Annotated[int, Bounds(0, DEAD_FOR_MAX_S)] = 0

    @property
    def stamp(self) -> tuple[int, int]:
        """Of the node record it speaks of."""
        return (self.incarnation, self.version)


@dataclass(frozen=True, slots=True)
class FactHeadline:
    """Which version of a model fact the sender holds."""

    model: ModelId
    stamp: HybridTime


@dataclass(frozen=True, slots=True)
class News:
    """Headlines, as they ride on other messages."""

    members: Annotated[tuple[Headline, ...], Length(HEADLINES_MAX)] = ()
    facts: Annotated[tuple[FactHeadline, ...], Length(HEADLINES_MAX)] = ()


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there? Answered by an `Ack` with the same sequence.

    Attributes:
        sequence: the sender's; comes back.
        target: who should answer; any other node keeps silent. None where the sender has just an
            address and asks whoever is there.
        news: headlines; the first one is about the target where the sender suspects it.
    """

    sequence: Sequence
    target: NodeId | None
    news: News = News()


@dataclass(frozen=True, slots=True)
class Ack:
    """I am, or, from a helper: it is."""

    sequence: Sequence
    news: News = News()


@dataclass(frozen=True, slots=True)
class PingRequest:
    """Ping `target` for me. Answered by an `Ack` or, in time for the sender's verdict, a `Nack`."""

    sequence: Sequence
    target: NodeId
    news: News = News()


@dataclass(frozen=True, slots=True)
class Nack:
    """I tried and it kept silent; but you see that *we* can talk, so the fault is not yours."""

    sequence: Sequence


@dataclass(frozen=True, slots=True)
class Gossip:
    """Headlines alone."""

    news: News


@dataclass(frozen=True, slots=True)
class Pull:
    """Send me the bodies of these. Answered by `Bodies`, as many as it takes.

    Attributes:
        records: whose node records.
        loads: whose load records.
        facts: which model facts.
    """

    records: Annotated[tuple[NodeId, ...], Length(PULL_MAX)] = ()
    loads: Annotated[tuple[NodeId, ...], Length(PULL_MAX)] = ()
    facts: Annotated[tuple[ModelId, ...], Length(PULL_MAX)] = ()


@dataclass(frozen=True, slots=True)
class Bodies:
    """Signed records, and what the sender believes of those owners that are not simply alive."""

    records: Annotated[tuple[Signed[NodeRecord], ...], Length(BODIES_MAX)] = ()
    loads: Annotated[tuple[Signed[LoadRecord], ...], Length(BODIES_MAX)] = ()
    facts: Annotated[tuple[Signed[ModelFact], ...], Length(BODIES_MAX)] = ()
    news: News = News()


@dataclass(frozen=True, slots=True)
class SyncDigest:
    """A hash of each bucket of what the sender knows; answered where any of them differs.

    Attributes:
        hashes: `DIGEST_BUCKETS` hashes of `DIGEST_HASH_BYTES`, one after the other.
    """

    hashes: Annotated[bytes, Length(DIGEST_BUCKETS * DIGEST_HASH_BYTES)]


@dataclass(frozen=True, slots=True)
class SyncEntries:
    """What the sender knows in the buckets that differ; answered by `Gossip` of what it lacks.

    Attributes:
        buckets: one bit per bucket, lowest first: those this message is about.
        news: the sender's headlines in them.
    """

    buckets: Annotated[bytes, Length(DIGEST_BUCKETS // 8)]
    news: News


GossipMessage = Ping | Ack | PingRequest | Nack | Gossip | Pull | Bodies | SyncDigest | SyncEntries
"""All there is."""

SignedBody = Signed[NodeRecord] | Signed[LoadRecord] | Signed[ModelFact]

GossipItem = Headline | FactHeadline | SignedBody
"""What is packed into a message until it is full."""
