"""The newest record of every owner, and how two versions merge.

A node writes only its own record, so the higher `(incarnation, version)` holds and nothing else is
compared. Two different payloads under one stamp are *equivocation*: the owner (or who stole its
key) tells different things to different nodes. The first is kept, the owner is flagged.

Model facts have many writers. They carry a hybrid logical clock (Kulkarni et al., "Logical
Physical Clocks", 2014): wall time where clocks agree, causality where they do not. A stamp far in
the future would win for ever, so one beyond `CLOCK_AHEAD_MAX_MS` is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum, auto

from p2pllm.domain.gossip import Signed
from p2pllm.domain.ids import ModelId, NodeId
from p2pllm.domain.models import ModelSpec
from p2pllm.domain.records import INCARNATION_MAX, HybridTime, LoadRecord, ModelFact, NodeRecord

CLOCK_AHEAD_MAX_MS = 60_000
"""How far ahead of ours the clock of a fact's writer may be."""

FACTS_MAX = 256
"""Models served and removed ones not yet forgotten; far above `MODELS_MAX` per swarm, and
bounds what a member can make the others store."""

EQUIVOCATORS_MAX = 1_024
"""Flags kept; bounds the set where many stolen keys are abused."""


class Merge(Enum):
    """What became of a received record."""

    STORED = auto()
    KNOWN = auto()
    OLDER = auto()
    EQUIVOCATION = auto()
    REFUSED = auto()


class HybridClock:
    """Stamps that are higher than every stamp seen, and near wall time."""

    def __init__(self, writer: NodeId) -> None:
        self._writer = writer
        self._wall_ms = 0
        self._counter = 0

    def tick(self, wall_ms: int) -> HybridTime:
        """The stamp of something that happens here now."""
        if wall_ms > self._wall_ms:
            self._wall_ms, self._counter = wall_ms, 0
        else:
            self._counter += 1
        return HybridTime(self._wall_ms, self._counter, self._writer)

    def seen(self, stamp: HybridTime) -> None:
        """Take note of a stamp from elsewhere, so that the next one here is higher."""
        if (stamp.wall_ms, stamp.counter) > (self._wall_ms, self._counter):
            self._wall_ms, self._counter = stamp.wall_ms, stamp.counter


class RecordStore:
    """All records this node knows, its own included.

    Args:
        records_max: most owners; a further one is refused.
    """

    def __init__(self, records_max: int) -> None:
        self._records_max = records_max
        self._nodes: dict[NodeId, Signed[NodeRecord]] = {}
        # All loads belong to an owner in _nodes and to its incarnation there.
        self._loads: dict[NodeId, Signed[LoadRecord]] = {}
        self._facts: dict[ModelId, Signed[ModelFact]] = {}
        self._equivocators: dict[NodeId, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[NodeId]:
        return iter(self._nodes)

    @property
    def equivocators(self) -> tuple[NodeId, ...]:
        """Who was caught with two payloads under one stamp, in the order of discovery."""
        return tuple(self._equivocators)

    def node(self, node: NodeId) -> Signed[NodeRecord] | None:
        """The newest record of `node`."""
        return self._nodes.get(node)

    def load(self, node: NodeId) -> Signed[LoadRecord] | None:
        """The newest load of `node`, of the incarnation of its newest record."""
        return self._loads.get(node)

    def fact(self, model: ModelId) -> Signed[ModelFact] | None:
        """The newest fact about `model`."""
        return self._facts.get(model)

    def stamp(self, node: NodeId) -> tuple[int, int] | None:
        """Of the newest record of `node`."""
        signed = self._nodes.get(node)
        return None if signed is None else signed.value.stamp

    def load_version(self, node: NodeId) -> int:
        """Of the newest load of `node`; 0 for none."""
        signed = self._loads.get(node)
        return 0 if signed is None else signed.value.version

    def facts(self) -> Iterator[Signed[ModelFact]]:
        """All facts, removals included."""
        return iter(self._facts.values())

    def models(self) -> tuple[ModelSpec, ...]:
        """What the swarm serves, in ascending order of id."""
        specs = [fact.value.spec for fact in self._facts.values() if fact.value.spec is not None]
        return tuple(sorted(specs, key=lambda spec: spec.id))

    def merge_node(self, signed: Signed[NodeRecord]) -> Merge:
        """Store `signed` if it is newer."""
        record = signed.value
        if not 0 <= record.incarnation <= INCARNATION_MAX or record.version < 0:
            return Merge.REFUSED
        known = self._nodes.get(record.node)
        if known is None:
            if len(self._nodes) >= self._records_max:
                return Merge.REFUSED
        elif record.stamp < known.value.stamp:
            return Merge.OLDER
        elif record.stamp == known.value.stamp:
            return self._compare(record.node, record.stamp, known.payload == signed.payload)
        elif record.incarnation > known.value.incarnation:
            self._loads.pop(record.node, None)
        self._nodes[record.node] = signed
        return Merge.STORED

    def merge_load(self, signed: Signed[LoadRecord]) -> Merge:
        """Store `signed` if it is newer and belongs to the node record that is stored."""
        load = signed.value
        owner = self._nodes.get(load.node)
        if owner is None or load.version < 1 or load.incarnation > owner.value.incarnation:
            return Merge.REFUSED
        if load.incarnation < owner.value.incarnation:
            return Merge.OLDER
        known = self._loads.get(load.node)
        if known is not None:
            if load.version < known.value.version:
                return Merge.OLDER
            if load.version == known.value.version:
                return self._compare(load.node, load.stamp, known.payload == signed.payload)
        self._loads[load.node] = signed
        return Merge.STORED

    def merge_fact(self, signed: Signed[ModelFact], wall_ms: int | None) -> Merge:
        """Store `signed` if it is newer and, where the wall time is given, not from the future."""
        fact = signed.value
        if wall_ms is not None and fact.stamp.wall_ms > wall_ms + CLOCK_AHEAD_MAX_MS:
            return Merge.REFUSED
        if fact.spec is not None and fact.spec.id != fact.model:
            return Merge.REFUSED
        known = self._facts.get(fact.model)
        if known is None:
            if len(self._facts) >= FACTS_MAX:
                return Merge.REFUSED
        elif fact.stamp < known.value.stamp:
            return Merge.OLDER
        elif fact.stamp == known.value.stamp:
            stamp = (fact.stamp.wall_ms, fact.stamp.counter)
            return self._compare(fact.stamp.writer, stamp, known.payload == signed.payload)
        self._facts[fact.model] = signed
        return Merge.STORED

    def make_room(self) -> ModelId | None:
        """Forget the oldest removal where the table of facts is full; which one."""
        if len(self._facts) < FACTS_MAX:
            return None
        gone = [fact.value for fact in self._facts.values() if fact.value.spec is None]
        if not gone:
            return None
        oldest = min(gone, key=lambda fact: fact.stamp).model
        del self._facts[oldest]
        return oldest

    def forget(self, node: NodeId) -> None:
        """Drop all of `node`."""
        self._nodes.pop(node, None)
        self._loads.pop(node, None)

    def check(self) -> None:
        """Assert bounds and that every load has its record."""
        assert len(self._nodes) <= self._records_max
        assert len(self._facts) <= FACTS_MAX
        assert len(self._equivocators) <= EQUIVOCATORS_MAX
        for node, load in self._loads.items():
            assert self._nodes[node].value.incarnation == load.value.incarnation
        for node, record in self._nodes.items():
            assert record.value.node == node

    def _compare(self, owner: NodeId, stamp: tuple[int, int], same: bool) -> Merge:
        if same:
            return Merge.KNOWN
        if len(self._equivocators) < EQUIVOCATORS_MAX:
            self._equivocators[owner] = stamp
        return Merge.EQUIVOCATION
