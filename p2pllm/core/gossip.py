"""Spreading what is new, and finding what was missed.

Theory of operation. What changed is put into a queue and its headline told to a few random peers
every round, and on every ping and ack, until it was told a bounded number of times; rarely told
headlines go first. Who reads of something newer pulls the body from whoever told it. Push alone
leaves gaps at high loss, so now and then, and at every first contact, a node sends a digest of all
it knows to one peer, which answers with the headlines of the buckets that differ, and is answered
with what it lacks in turn.

    A -> B   SyncDigest(hashes)
    B -> A   SyncEntries(buckets that differ, B's headlines there)     A pulls what B has newer
    A -> B   Gossip(A's headlines there that B lacks)                  B pulls what A has newer

What a key's headline or body is at the moment of sending is asked of the `Library`, so the queue
holds keys only and a change overtakes its predecessor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from p2pllm.core.digests import Digests, from_bits, to_bits
from p2pllm.core.effects import Effect, SendDatagram
from p2pllm.core.timers import TimerKey, Timers
from p2pllm.domain.gossip import (
    BODIES_MAX,
    DATAGRAM_BYTES_MAX,
    DIGEST_BUCKETS,
    HEADLINES_MAX,
    PULL_MAX,
    SEAL_BYTES,
    Bodies,
    FactHeadline,
    Gossip,
    GossipItem,
    Headline,
    News,
    Pull,
    Signed,
    SignedBody,
    SyncDigest,
    SyncEntries,
)
from p2pllm.domain.ids import ModelId, NodeId
from p2pllm.domain.records import Address, LoadRecord, MemberState, ModelFact, NodeRecord

NODE = "node"
LOAD = "load"
FACT = "fact"

HEADER_BYTES = 48
"""What a message takes around its items: tags, lengths, sequence and target."""

NEWS_BYTES_MAX = DATAGRAM_BYTES_MAX - SEAL_BYTES - HEADER_BYTES

WANTS_MAX = 65_536
"""Bodies waited for: every node of the largest swarm, with its load. Beyond it, anti-entropy asks
again later."""

SOURCES_MAX = 3
"""Who told of a wanted body, kept for when the last one does not answer."""

_ROUND = ("round", "")
_SYNC = ("sync", "")


@dataclass(frozen=True, slots=True)
class GossipConfig:
    """How much to talk.

    Attributes:
        interval_s: between two rounds.
        fanout: peers told per round.
        retransmit_multiplier: of log10(N + 1), rounded up: how often a headline is told.
        sync_interval_s: between two digests.
        sync_datagrams_max: in answer to one digest; the rest is found by the next one.
        sync_first_s: until the first one; the pauses double from there up to `sync_interval_s`,
            since a newcomer whose first digest was lost should not wait long.
        pull_timeout_s: until a body is asked for again; the same for the first `pull_eager`
            attempts, since at heavy loss half of them fail, doubling from there on.
        pull_timeout_max_s: at most.
        pull_eager: see there.
        pull_attempts: until anti-entropy has to find it.
        pulls_max: bodies asked for at a time; keeps the answers from overflowing our own socket.
    """

    interval_s: float = 0.2
    fanout: int = 3
    retransmit_multiplier: int = 4
    sync_interval_s: float = 5.0
    sync_first_s: float = 0.5
    sync_datagrams_max: int = 64
    pull_timeout_s: float = 0.2
    pull_timeout_max_s: float = 1.6
    pull_eager: int = 5
    pull_attempts: int = 10
    pulls_max: int = 64


class Library(Protocol):
    """What gossip has to know of whoever composes it."""

    def headline(self, node: NodeId, now: float) -> Headline | None:
        """What is known of `node`, or None."""
        ...

    def fact_headline(self, model: ModelId) -> FactHeadline | None:
        """What is known of `model`, or None."""
        ...

    def body(self, key: TimerKey) -> SignedBody | None:
        """The newest body of `key`, or None."""
        ...

    def some_addresses(self, count: int) -> list[Address]:
        """Of up to `count` random live peers."""
        ...

    def size(self) -> int:
        """Live members, this node included."""
        ...


def estimated_size(item: GossipItem) -> int:
    """An upper bound of the bytes `item` takes in a datagram.

    Ids are 32 characters and a two-byte header; integers take up to nine bytes, though versions
    seldom more than three.
    """
    if isinstance(item, Headline):
        numbers = (item.incarnation, item.version, item.load, item.dead_for_s)
        accuser = 35 if item.accuser is not None else 1
        return 40 + accuser + sum(map(_size_of_integer, numbers))
    if isinstance(item, FactHeadline):
        return 2 + 4 * len(item.model) + 60
    return len(item.payload) + len(item.signature) + len(item.certificate) + 12


class Broadcasts:
    """What to tell, the least told first."""

    def __init__(self) -> None:
        # By how often it was told; a key stands in exactly one level.
        self._levels: list[dict[TimerKey, None]] = []
        self._level_of: dict[TimerKey, int] = {}

    def __len__(self) -> int:
        return len(self._level_of)

    def add(self, key: TimerKey) -> None:
        """`key` is news (again)."""
        self.discard(key)
        self._put(key, 0)

    def discard(self, key: TimerKey) -> None:
        """`key` is no longer worth telling."""
        level = self._level_of.pop(key, None)
        if level is not None:
            del self._levels[level][key]

    def take(self, limit: int, fits: Callable[[TimerKey], bool | None]) -> None:
        """Offer the keys in turn to `fits`, and count those told; drop those told `limit` times.

        Args:
            limit: how often a key is told.
            fits: True if it was taken, False if the message is full, None if the key is void.
        """
        taken: list[tuple[TimerKey, int]] = []
        for level, keys in enumerate(self._levels):
            for key in keys:
                verdict = fits(key)
                if verdict is False:
                    break
                taken.append((key, level + 1 if verdict else limit))
            else:
                continue
            break
        for key, level in taken:
            self.discard(key)
            if level < limit:
                self._put(key, level)

    def check(self) -> None:
        """Assert that each key stands in one level."""
        assert sum(map(len, self._levels)) == len(self._level_of)
        assert all(key in self._levels[level] for key, level in self._level_of.items())

    def _put(self, key: TimerKey, level: int) -> None:
        while len(self._levels) <= level:
            self._levels.append({})
        self._levels[level][key] = None
        self._level_of[key] = level


@dataclass(slots=True)
class _Want:
    """A body that is newer elsewhere."""

    # Who told of it, the latest first.
    sources: list[Address]
    attempts: int = 0


@dataclass(slots=True)
class Packer:
    """Fills one message after another with headlines.

    Args:
        size_of: bytes of an item.
        size: bytes taken already.
    """

    size_of: Callable[[GossipItem], int]
    members: list[Headline] = field(default_factory=list[Headline])
    facts: list[FactHeadline] = field(default_factory=list[FactHeadline])
    size: int = 0

    def add(self, item: Headline | FactHeadline, bytes_max: int = NEWS_BYTES_MAX) -> bool:
        """Take `item`, if it still fits."""
        size = self.size_of(item)
        if self.size + size > bytes_max:
            return False
        if len(self.members) + len(self.facts) >= HEADLINES_MAX:
            return False
        self.size += size
        if isinstance(item, Headline):
            self.members.append(item)
        else:
            self.facts.append(item)
        return True

    def finish(self) -> News:
        """What was taken."""
        return News(tuple(self.members), tuple(self.facts))


class Dissemination:
    """Gossip rounds, pulls and anti-entropy of one node.

    Args:
        library: headlines, bodies and peers.
        config: how much to talk.
        size_of: bytes of an item in a datagram.
    """

    def __init__(
        self,
        library: Library,
        *,
        config: GossipConfig,
        size_of: Callable[[GossipItem], int],
    ) -> None:
        self._library = library
        self._config = config
        self._size_of = size_of
        self._timers = Timers()
        self._broadcasts = Broadcasts()
        self._digests = Digests()
        self._wants: dict[TimerKey, _Want] = {}
        # All and only the wants that are not asked for at the moment.
        self._waiting: dict[TimerKey, None] = {}
        self._round_next_s = -math.inf
        self._sync_pause_s = config.sync_first_s

    # -- what is new here

    def announce(self, key: TimerKey, version: str | None, now: float) -> None:
        """The headline of `key` changed to `version`; None: it is no longer spoken of."""
        self._digests.set(key, version)
        if version is None:
            self._broadcasts.discard(key)
        else:
            self._broadcasts.add(key)
            self.wake(now)

    def wake(self, now: float) -> None:
        """There may be something to tell, or somebody to tell it to."""
        if self._broadcasts and _ROUND not in self._timers and self._library.size() > 1:
            self._timers.set(_ROUND, max(now, self._round_next_s))
        if _SYNC not in self._timers and self._library.size() > 1:
            self._sync_pause_s = self._config.sync_first_s
            self._timers.set(_SYNC, now + self._sync_pause_s)

    def stop(self) -> None:
        """Pull and compare nothing any more."""
        self._timers.cancel(_SYNC)
        for key in list(self._wants):
            self.got(key)

    def take(self, first: Headline | None, now: float) -> News:
        """News to ride on a message, `first` before all others."""
        if first is None and not self._broadcasts:
            return _NO_NEWS
        packer = Packer(self._size_of)
        if first is not None:
            packer.add(first)

        def fits(key: TimerKey) -> bool | None:
            if first is not None and key == (NODE, first.node):
                return True
            item = self._headline(key, now)
            return None if item is None else packer.add(item)

        limit = self._config.retransmit_multiplier * math.ceil(math.log10(self._library.size() + 1))
        self._broadcasts.take(limit, fits)
        return packer.finish()

    def tell(self, address: Address, keys: Iterable[TimerKey], now: float) -> list[Effect]:
        """The headlines of `keys` for one peer."""
        effects: list[Effect] = []
        packer = Packer(self._size_of)
        for key in keys:
            item = self._headline(key, now)
            if item is None or packer.add(item):
                continue
            effects.append(SendDatagram(address, Gossip(packer.finish())))
            packer = Packer(self._size_of)
            packer.add(item)
        if packer.size:
            effects.append(SendDatagram(address, Gossip(packer.finish())))
        return effects

    # -- pulling

    def want(self, key: TimerKey, source: Address) -> bool:
        """`source` has a newer body of `key`; asked for by the next `ask`. Whether that is new."""
        known = self._wants.get(key)
        if known is not None:
            if source in known.sources:
                known.sources.remove(source)
            known.sources.insert(0, source)
            del known.sources[SOURCES_MAX:]
            return False
        if len(self._wants) >= WANTS_MAX:
            return False
        self._wants[key] = _Want([source])
        self._waiting[key] = None
        return True

    def got(self, key: TimerKey) -> None:
        """A body of `key` came, or is no longer wanted."""
        if self._wants.pop(key, None) is not None:
            self._waiting.pop(key, None)
            self._timers.cancel(key)

    def ask(self, now: float) -> list[Effect]:
        """Pull what is wanted, as far as there is room."""
        if not self._waiting:
            return []
        asked: dict[Address, list[TimerKey]] = {}
        room = self._config.pulls_max - (len(self._wants) - len(self._waiting))
        for key in list(self._waiting)[: max(room, 0)]:
            want = self._wants[key]
            asked.setdefault(want.sources[want.attempts % len(want.sources)], []).append(key)
            doublings = max(0, want.attempts + 1 - self._config.pull_eager)
            timeout_s = self._config.pull_timeout_s * 2**doublings
            self._timers.set(key, now + min(timeout_s, self._config.pull_timeout_max_s))
            want.attempts += 1
            del self._waiting[key]
        effects: list[Effect] = []
        for address, keys in asked.items():
            part: list[TimerKey] = []
            size = 0
            for key in keys:
                size += len(key[1]) + 2
                if part and (size > NEWS_BYTES_MAX or len(part) >= PULL_MAX):
                    effects.append(SendDatagram(address, _pull(part)))
                    part, size = [], len(key[1]) + 2
                part.append(key)
            effects.append(SendDatagram(address, _pull(part)))
        return effects

    def pulled(self, source: Address, message: Pull, now: float) -> list[Effect]:
        """Answer with the bodies there are."""
        keys: list[TimerKey] = [(NODE, node) for node in message.records]
        keys += [(LOAD, node) for node in message.loads]
        keys += [(FACT, model) for model in message.facts]
        effects: list[Effect] = []
        batch: list[tuple[str, SignedBody, Headline | None]] = []
        size = 0
        for key in dict.fromkeys(keys):
            body = self._library.body(key)
            if body is None:
                continue
            headline = self._library.headline(NodeId(key[1]), now) if key[0] == NODE else None
            if headline is not None and headline.state is MemberState.ALIVE:
                headline = None
            needed = self._size_of(body) + (self._size_of(headline) if headline else 0)
            if batch and (size + needed > NEWS_BYTES_MAX or len(batch) >= BODIES_MAX):
                effects.append(SendDatagram(source, _bodies(batch)))
                batch, size = [], 0
            batch.append((key[0], body, headline))
            size += needed
        if batch:
            effects.append(SendDatagram(source, _bodies(batch)))
        return effects

    # -- anti-entropy

    def sync_with(self, address: Address) -> list[Effect]:
        """Compare all that is known with whoever is at `address`."""
        return [SendDatagram(address, SyncDigest(self._digests.hashes()))]

    def digest(self, source: Address, message: SyncDigest, now: float) -> list[Effect]:
        """Answer with what is known in the buckets that differ."""
        buckets = self._digests.differing(message.hashes)
        if not buckets:
            return []
        effects: list[Effect] = []
        packer = Packer(self._size_of, size=_BITS_BYTES)
        covered: list[int] = []
        # Another start each time, so that the limit does not always cut off the same buckets.
        start = int(now * 1_000) % len(buckets)
        for bucket in buckets[start:] + buckets[:start]:
            covered.append(bucket)
            for key in self._digests.keys(bucket):
                item = self._headline(key, now)
                if item is None or packer.add(item):
                    continue
                effects.append(SendDatagram(source, _entries(covered, packer)))
                packer, covered = Packer(self._size_of, size=_BITS_BYTES), []
                packer.add(item)
            if len(effects) >= self._config.sync_datagrams_max:
                return effects
        effects.append(SendDatagram(source, _entries(covered, packer)))
        return effects

    def lacking(self, message: SyncEntries, now: float) -> list[TimerKey]:
        """What the sender of `message` does not have as new as this node."""
        theirs: dict[TimerKey, Headline | FactHeadline] = {
            (NODE, item.node): item for item in message.news.members
        }
        theirs.update({(FACT, item.model): item for item in message.news.facts})
        lacking: list[TimerKey] = []
        for bucket in from_bits(message.buckets):
            for key in self._digests.keys(bucket):
                ours = self._headline(key, now)
                if ours is not None and _is_behind(theirs.get(key), ours):
                    lacking.append(key)
        return lacking

    # -- time

    def deadline(self) -> float | None:
        """When to call `fire`."""
        return self._timers.deadline()

    def fire(self, now: float) -> list[Effect]:
        """Do what is due."""
        effects: list[Effect] = []
        while (key := self._timers.pop(now)) is not None:
            if key == _ROUND:
                effects += self._round(now)
            elif key == _SYNC:
                pause_s = min(2 * self._sync_pause_s, self._config.sync_interval_s)
                self._sync_pause_s = pause_s
                self._timers.set(_SYNC, now + pause_s)
                for address in self._library.some_addresses(1):
                    effects += self.sync_with(address)
            elif self._wants[key].attempts >= self._config.pull_attempts:
                del self._wants[key]
            else:
                self._waiting[key] = None
        return effects + self.ask(now)

    def check(self) -> None:
        """Assert the invariants written beside the fields, and the bounds."""
        self._timers.check()
        self._broadcasts.check()
        self._digests.check()
        assert len(self._wants) <= WANTS_MAX
        for key, want in self._wants.items():
            assert 1 <= len(want.sources) <= SOURCES_MAX
            assert (key in self._waiting) != (key in self._timers)
        assert all(key in self._wants for key in self._waiting)

    def _round(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        self._round_next_s = now + self._config.interval_s
        for address in self._library.some_addresses(self._config.fanout):
            news = self.take(None, now)
            if news.members or news.facts:
                effects.append(SendDatagram(address, Gossip(news)))
        if self._broadcasts and self._library.size() > 1:
            self._timers.set(_ROUND, self._round_next_s)
        return effects

    def _headline(self, key: TimerKey, now: float) -> Headline | FactHeadline | None:
        if key[0] == NODE:
            return self._library.headline(NodeId(key[1]), now)
        return self._library.fact_headline(ModelId(key[1]))


_NO_NEWS = News()

_BITS_BYTES = DIGEST_BUCKETS // 8 + 2


def _size_of_integer(value: int) -> int:
    if value < 128:
        return 1
    return 1 + 2 ** math.ceil(math.log2(math.ceil(value.bit_length() / 8)))


def _pull(keys: list[TimerKey]) -> Pull:
    return Pull(
        records=tuple(NodeId(name) for kind, name in keys if kind == NODE),
        loads=tuple(NodeId(name) for kind, name in keys if kind == LOAD),
        facts=tuple(ModelId(name) for kind, name in keys if kind == FACT),
    )


def _bodies(batch: list[tuple[str, SignedBody, Headline | None]]) -> Bodies:
    records: list[Signed[NodeRecord]] = []
    loads: list[Signed[LoadRecord]] = []
    facts: list[Signed[ModelFact]] = []
    for _, body, _ in batch:
        value = body.value
        if isinstance(value, NodeRecord):
            records.append(Signed(value, body.payload, body.signature, body.certificate))
        elif isinstance(value, LoadRecord):
            loads.append(Signed(value, body.payload, body.signature, body.certificate))
        else:
            facts.append(Signed(value, body.payload, body.signature, body.certificate))
    news = News(members=tuple(item for _, _, item in batch if item is not None))
    return Bodies(tuple(records), tuple(loads), tuple(facts), news)


def _entries(covered: list[int], packer: Packer) -> SyncEntries:
    return SyncEntries(to_bits(covered), packer.finish())


def _is_behind(theirs: Headline | FactHeadline | None, ours: Headline | FactHeadline) -> bool:
    if theirs is None:
        return True
    if isinstance(theirs, Headline) and isinstance(ours, Headline):
        if theirs.stamp != ours.stamp:
            return theirs.stamp < ours.stamp
        return theirs.load < ours.load or theirs.state < ours.state
    assert isinstance(theirs, FactHeadline)
    assert isinstance(ours, FactHeadline)
    return theirs.stamp < ours.stamp
