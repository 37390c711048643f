"""What a node says of itself, and what everybody may say of the swarm.

A node writes only its own record, so two versions never conflict: the higher
`(incarnation, version)` holds, without a clock. It comes in two parts of different pace: the
*node record* changes when something is loaded or dropped, the *load record* all the time. The few
facts with many writers (which models the swarm serves) carry a hybrid logical clock instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Annotated

from p2pllm.domain.bounds import Bounds, Length
from p2pllm.domain.ids import ModelId, NodeId
from p2pllm.domain.layers import LayerRange, merge_ranges
from p2pllm.domain.models import LAYERS_MAX, ModelSpec

INCARNATION_MAX = 2**62
"""Far beyond any real one; a higher one is an attack on the counter and is refused."""

HOLDINGS_MAX = 16
ADDRESSES_MAX = 8
MODELS_MAX = 8
NODE_NAME_LENGTH_MAX = 32
HOST_LENGTH_MAX = 253
"""Longest DNS name."""

VERSION_MAX = 2**62
BYTES_MAX = 2**62
"""Far beyond any memory or speed there is."""

WALL_MS_MAX = 2**48
"""The year 10889."""

COUNTER_MAX = 2**31
"""Of facts stamped within one millisecond, or stated anew since."""


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """Where a node listens; TLS streams and datagrams share the port number."""

    host: Annotated[str, Length(HOST_LENGTH_MAX)]
    port: Annotated[int, Bounds(0, 65_535)]

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class HoldingState(IntEnum):
    """How far a node is with a layer range."""

    LOADING = 1
    READY = 2
    DRAINING = 3
    """Still served to sessions that run, to be dropped soon; not for new ones if others hold it."""


@dataclass(frozen=True, slots=True)
class Holding:
    """A range of one model's layers on one node. A wrapping window is two holdings."""

    model: ModelId
    layers: LayerRange
    state: HoldingState


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """The part of a node's record that changes seldom.

    Attributes:
        node: who says it; the only one who may.
        incarnation: rises at every start and at every refuted accusation.
        version: rises with every change within an incarnation.
        name: for people; not unique.
        addresses: where to reach it, best first.
        api: where its HTTP API listens, or None where that is bound to loopback.
        memory_bytes: what it offers for weights and KV cache together.
        layers_max: an upper bound on held layers the owner set, or None.
        parameter_bytes: bytes of one weight or cached element in the dtype it runs.
        speed_bytes_s: weight bytes it streams through a decode step per second, measured.
        models: those whose files it can reach, so may be given layers of.
        holdings: what it has.
        leaving: it is on its way out: give it nothing new.
    """

    node: NodeId
    incarnation: Annotated[int, Bounds(0, INCARNATION_MAX)]
    version: Annotated[int, Bounds(0, VERSION_MAX)]
    name: Annotated[str, Length(NODE_NAME_LENGTH_MAX)]
    addresses: Annotated[tuple[Address, ...], Length(ADDRESSES_MAX)]
    api: Address | None
    memory_bytes: Annotated[int, Bounds(0, BYTES_MAX)]
    layers_max: Annotated[int, Bounds(0, LAYERS_MAX)] | None
    parameter_bytes: Annotated[int, Bounds(1, 8)]
    speed_bytes_s: Annotated[int, Bounds(0, BYTES_MAX)]
    models: Annotated[tuple[ModelId, ...], Length(MODELS_MAX)] = ()
    holdings: Annotated[tuple[Holding, ...], Length(HOLDINGS_MAX)] = ()
    leaving: bool = False

    @property
    def stamp(self) -> tuple[int, int]:
        """What decides which of two versions is newer."""
        return (self.incarnation, self.version)

    def ready(self, model: ModelId) -> tuple[LayerRange, ...]:
        """Ranges of `model` that answer now, merged; DRAINING counts, LOADING does not."""
        return merge_ranges(
            item.layers
            for item in self.holdings
            if item.model == model and item.state is not HoldingState.LOADING
        )


@dataclass(frozen=True, slots=True)
class LoadRecord:
    """The part of a node's record that changes all the time.

    Attributes:
        node: who says it.
        incarnation: of the node record it belongs to.
        version: rises with every change within an incarnation; counted apart from the record's.
        queue_steps: steps waiting at its stage.
        sessions: sessions with a KV lease there.
        kv_free_bytes: room for further leases.
        tokens_per_s: decode steps it finished per second, lately.
    """

    node: NodeId
    incarnation: Annotated[int, Bounds(0, INCARNATION_MAX)]
    version: Annotated[int, Bounds(0, VERSION_MAX)]
    queue_steps: Annotated[int, Bounds(0, 2**31)]
    sessions: Annotated[int, Bounds(0, 2**31)]
    kv_free_bytes: Annotated[int, Bounds(0, BYTES_MAX)]
    tokens_per_s: Annotated[float, Bounds(0, 1e12)]

    @property
    def stamp(self) -> tuple[int, int]:
        """What decides which of two versions is newer."""
        return (self.incarnation, self.version)


@dataclass(frozen=True, slots=True, order=True)
class HybridTime:
    """A hybrid logical clock stamp: wall time first, then a counter, then the writer.

    Source: Kulkarni et al., "Logical Physical Clocks", 2014.
    """

    wall_ms: Annotated[int, Bounds(0, WALL_MS_MAX)]
    counter: Annotated[int, Bounds(0, COUNTER_MAX)]
    writer: NodeId


@dataclass(frozen=True, slots=True)
class ModelFact:
    """Whether the swarm serves a model. The highest stamp holds; `spec` is None once removed."""

    model: ModelId
    stamp: HybridTime
    spec: ModelSpec | None


class MemberState(IntEnum):
    """What a node believes of another; worse is higher, so of two claims the maximum holds."""

    ALIVE = 1
    SUSPECT = 2
    DEAD = 3
    LEFT = 4


@dataclass(frozen=True, slots=True)
class Member:
    """One peer as seen from here."""

    record: NodeRecord
    state: MemberState
    load: LoadRecord | None = None


@dataclass(frozen=True, slots=True)
class SwarmView:
    """Everything placement and routing are functions of, at one moment, as seen from one node.

    Attributes:
        self_id: whose view it is; its own member entry is always ALIVE.
        members: every known member, in ascending order of id.
        models: what the swarm serves, in ascending order of id.
        blacklisted: peers that failed a call moments ago; not to be routed to.
        round_trip_s: measured round trips from here to peers.
    """

    self_id: NodeId
    members: tuple[Member, ...]
    models: tuple[ModelSpec, ...]
    blacklisted: frozenset[NodeId] = frozenset()
    round_trip_s: dict[NodeId, float] = field(default_factory=dict[NodeId, float])

    def model(self, model: ModelId) -> ModelSpec | None:
        """The spec of a served model."""
        return next((spec for spec in self.models if spec.id == model), None)

    def usable(self) -> tuple[Member, ...]:
        """Members that may be given work: alive or merely suspected, and not on their way out.

        A suspect stays usable, since most suspicions are refuted; a peer that failed a call is
        blacklisted instead.
        """
        return tuple(
            member
            for member in self.members
            if member.state in (MemberState.ALIVE, MemberState.SUSPECT)
            and not member.record.leaving
        )
