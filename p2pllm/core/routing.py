"""Which way a request takes through the nodes that hold the model's layers.

A path is a sequence of hops whose layer ranges join up to the whole model. Any part of a READY
range may be used, so a node can be entered and left in the middle of what it holds. The cheapest
path is found by dynamic programming over (layer, holder). It is enough to change hops where some
node's range starts or stops: in between, the cost of a change of hops at layer l is linear in the
weights before l, so it is least at one end.

What a hop costs, in seconds:

    queue wait      steps waiting / steps finished per second, at most one pass over all that the
                    node holds per waiting step
  + compute         weight bytes of the layers / measured speed, more with sessions beside
  + hop latency     half the round trip of both ends plus a fixed part; the round trip between two
                    peers is bounded by the sum of theirs to us, which makes the cost separable
                    and the search O(layers * holders); an unknown one counts as `unknown_rtt_s`
  + transfer        activation bytes / bandwidth

    policy                minimises
    min-latency           seconds per generated token
    min-completion-time   seconds for prompt and answer together, shared among sessions
    least-loaded          the highest load on the path first, then latency
    random                nothing: any valid path

Holders come in tiers. Suspects and draining ranges cost extra, so they are used where that is
still clearly better or nothing else is left. Blacklisted and leaving nodes are used only where
there is no path without them: one failed call may have been a hiccup, and a request that would
fail anyway loses nothing by trying. Excluded nodes are never used; a session excludes those that
failed it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, pairwise
from random import Random

from p2pllm.core.capacity import compute_weights, range_bytes
from p2pllm.domain.errors import NoPathError
from p2pllm.domain.generation import Hop, Path
from p2pllm.domain.ids import NodeId
from p2pllm.domain.layers import LayerRange, merge_ranges
from p2pllm.domain.messages import CHUNK_TOKENS_MAX, HOPS_MAX
from p2pllm.domain.models import ModelSpec
from p2pllm.domain.records import HoldingState, Member, MemberState, SwarmView


class RoutingPolicy(StrEnum):
    """What a path is chosen for."""

    MIN_LATENCY = "min-latency"
    MIN_COMPLETION_TIME = "min-completion-time"
    LEAST_LOADED = "least-loaded"
    RANDOM = "random"


@dataclass(frozen=True, slots=True)
class RoutingConfig:
    """What the cost of a path is reckoned with.

    Attributes:
        hop_s: fixed cost of handing an activation on: framing, encryption, scheduling.
        unknown_rtt_s: what an unmeasured round trip counts as.
        bandwidth_bytes_s: of a link; not measured, so the same for all.
        session_slowdown: by how much each session on a node slows the others' decode steps.
        prefill_rows: prompt positions that cost as much as one pass over the weights.
        suspect_s: extra cost of a hop over a node under suspicion.
        draining_s: extra cost of a hop over a range that is about to be dropped.
        no_room_s: extra cost of a node that reports too little free KV for the request.
    """

    hop_s: float = 0.001
    unknown_rtt_s: float = 0.05
    bandwidth_bytes_s: float = 100e6
    session_slowdown: float = 0.05
    prefill_rows: float = 32.0
    suspect_s: float = 0.5
    draining_s: float = 1.0
    no_room_s: float = 60.0


DEFAULT_ROUTING = RoutingConfig()

KV_RETRIES_MAX = 8
"""How many nodes without KV room are routed around before the path is taken as it is."""


@dataclass(slots=True)
class _Holder:
    """A candidate for hops; costs in seconds (see the module's text)."""

    node: NodeId
    ranges: tuple[LayerRange, ...]
    per_weight_s: float
    enter_s: float
    leave_s: float
    load: float
    kv_free_bytes: int | None
    parameter_bytes: int


@dataclass(frozen=True, slots=True)
class _Request:
    """What is to be sent down the path."""

    spec: ModelSpec
    policy: RoutingPolicy
    prompt_tokens: int
    new_tokens: int
    config: RoutingConfig


def missing_layers(
    view: SwarmView, spec: ModelSpec, *, excluded: frozenset[NodeId] = frozenset()
) -> tuple[LayerRange, ...]:
    """Layers that no node serves now; empty where the model can generate."""
    return _gaps(spec.num_layers, [item.ranges for item in _serving(view, spec, excluded)])


def choose_path(
    view: SwarmView,
    spec: ModelSpec,
    *,
    random: Random,
    policy: RoutingPolicy = RoutingPolicy.MIN_LATENCY,
    excluded: frozenset[NodeId] = frozenset(),
    prompt_tokens: int = 1,
    new_tokens: int = 1,
    config: RoutingConfig = DEFAULT_ROUTING,
) -> Path:
    """The hops for one generation, in order; no node twice in a row.

    Deterministic but for `RoutingPolicy.RANDOM`, the only one that draws from `random`; ties go to
    the lower node id.

    Args:
        view: the swarm as seen from the gateway.
        spec: the model.
        random: for the random policy.
        policy: what to choose for.
        excluded: nodes not to use at all.
        prompt_tokens: positions to prefill.
        new_tokens: most tokens to generate.
        config: the cost model.

    Raises:
        NoPathError: some layers have no holder left; the message names them.
    """
    serving = _serving(view, spec, excluded)
    missing = _gaps(spec.num_layers, [item.ranges for item in serving])
    if missing:
        names = ", ".join(str(item) for item in missing)
        raise NoPathError(
            f"no node serves layers {names} of {spec.id}; wait for one that loads them, or add "
            "a machine"
        )
    request = _Request(spec, policy, prompt_tokens, new_tokens, config)
    trusted = [item for item in serving if not item.last_resort]
    if not _gaps(spec.num_layers, [item.ranges for item in trusted]):
        serving = trusted
    holders = [_price(view, item, request) for item in serving]
    if policy is RoutingPolicy.RANDOM:
        path = _random_path(spec.num_layers, holders, random)
    else:
        if policy is RoutingPolicy.LEAST_LOADED:
            holders = _least_loaded(spec.num_layers, holders)
        path = _with_room(holders, request)
    if len(path) > HOPS_MAX:
        raise NoPathError(
            f"the shortest path for {spec.id} has {len(path)} hops, more than {HOPS_MAX}; "
            "add machines that hold longer ranges"
        )
    return path


@dataclass(frozen=True, slots=True)
class _Serving:
    member: Member
    ranges: tuple[LayerRange, ...]
    last_resort: bool


def _serving(view: SwarmView, spec: ModelSpec, excluded: frozenset[NodeId]) -> list[_Serving]:
    """Who serves what, in ascending order of node id."""
    ring = spec.num_layers
    result: list[_Serving] = []
    for member in view.members:
        record = member.record
        if record.node in excluded or member.state not in (MemberState.ALIVE, MemberState.SUSPECT):
            continue
        ranges = tuple(
            LayerRange(item.start, min(item.stop, ring))
            for item in record.ready(spec.id)
            if item.start < ring
        )
        if ranges:
            last_resort = record.leaving or record.node in view.blacklisted
            result.append(_Serving(member, ranges, last_resort))
    return sorted(result, key=lambda item: item.member.record.node)


def _gaps(ring: int, holdings: Sequence[tuple[LayerRange, ...]]) -> tuple[LayerRange, ...]:
    """Layers of `0..ring-1` that are in none of `holdings`."""
    gaps: list[LayerRange] = []
    position = 0
    for item in merge_ranges(layer_range for ranges in holdings for layer_range in ranges):
        if item.start > position:
            gaps.append(LayerRange(position, item.start))
        position = item.stop
    if position < ring:
        gaps.append(LayerRange(position, ring))
    return tuple(gaps)


def _price(view: SwarmView, serving: _Serving, request: _Request) -> _Holder:
    """What a hop over this member costs."""
    record, load, config = serving.member.record, serving.member.load, request.config
    spec = request.spec
    per_weight_s = record.parameter_bytes / max(1, record.speed_bytes_s)
    sessions = load.sessions if load is not None else 0
    wait_s = 0.0
    if load is not None and load.queue_steps > 0:
        held = range_bytes(compute_weights(spec), serving.ranges)
        wait_s = load.queue_steps * held * per_weight_s
        if load.tokens_per_s > 0.0:
            wait_s = min(wait_s, load.queue_steps / load.tokens_per_s)
    half_rtt_s = 0.0
    if record.node != view.self_id:
        half_rtt_s = view.round_trip_s.get(record.node, config.unknown_rtt_s) / 2
    row_s = spec.hidden_size * record.parameter_bytes / config.bandwidth_bytes_s
    extra_s = config.suspect_s if serving.member.state is MemberState.SUSPECT else 0.0
    if any(
        item.model == spec.id and item.state is HoldingState.DRAINING for item in record.holdings
    ):
        extra_s += config.draining_s
    enter_s = wait_s + half_rtt_s + config.hop_s
    leave_s = half_rtt_s + row_s
    per_weight_s *= 1 + config.session_slowdown * sessions
    if request.policy is RoutingPolicy.MIN_COMPLETION_TIME:
        # A prompt goes in chunks; each pays the latency, its rows share passes over the weights.
        prompt, answer = max(1, request.prompt_tokens), max(0, request.new_tokens - 1)
        chunks = -(-prompt // CHUNK_TOKENS_MAX)
        passes = max(chunks, prompt / config.prefill_rows) + answer
        enter_s = wait_s + (half_rtt_s + config.hop_s) * (chunks + answer)
        leave_s = half_rtt_s * (chunks + answer) + row_s * (prompt + answer)
        per_weight_s *= passes
    return _Holder(
        node=record.node,
        ranges=serving.ranges,
        per_weight_s=per_weight_s,
        enter_s=enter_s + extra_s,
        leave_s=leave_s,
        load=(load.queue_steps + sessions) / max(1, record.speed_bytes_s) if load else 0.0,
        kv_free_bytes=load.kv_free_bytes if load is not None else None,
        parameter_bytes=record.parameter_bytes,
    )


def _with_room(holders: list[_Holder], request: _Request) -> Path:
    """The cheapest path that avoids nodes without KV room, as far as there is one."""
    first: Path | None = None
    by_node = {holder.node: holder for holder in holders}
    for _ in range(KV_RETRIES_MAX):
        path = _cheapest(holders, request.spec)
        if first is None:
            first = path
        full = [hop.node for hop in path if _lacks_room(by_node[hop.node], path, request)]
        fresh = [node for node in full if by_node[node].enter_s < request.config.no_room_s]
        if not full:
            return path
        if not fresh:
            break
        for node in fresh:
            by_node[node].enter_s += request.config.no_room_s
    assert first is not None
    return first


def _lacks_room(holder: _Holder, path: Path, request: _Request) -> bool:
    if holder.kv_free_bytes is None:
        return False
    mine = [hop.layers for hop in path if hop.node == holder.node]
    tokens = request.prompt_tokens + request.new_tokens
    elements = range_bytes(request.spec.layer_kv_elements(), mine)
    return elements * holder.parameter_bytes * tokens > holder.kv_free_bytes


def _least_loaded(ring: int, holders: list[_Holder]) -> list[_Holder]:
    """Those holders whose load is at most the least that still gives a path."""
    ascending = sorted(holders, key=lambda holder: holder.load)
    low, high = 1, len(ascending)
    while low < high:
        middle = (low + high) // 2
        if _gaps(ring, [holder.ranges for holder in ascending[:middle]]):
            low = middle + 1
        else:
            high = middle
    limit = ascending[low - 1].load
    return [holder for holder in holders if holder.load <= limit]


def _random_path(ring: int, holders: list[_Holder], random: Random) -> Path:
    """At each layer any holder of it, kept as far as it holds."""
    hops: list[Hop] = []
    position = 0
    while position < ring:
        choices = [
            Hop(holder.node, LayerRange(position, item.stop))
            for holder in holders
            for item in holder.ranges
            if position in item
        ]
        hops.append(random.choice(choices))
        position = hops[-1].layers.stop
    return tuple(hops)


@dataclass(slots=True)
class _Step:
    """The best way to have computed everything up to some boundary, last on one holder."""

    cost_s: float
    hop_start: int
    before: _Step | None
    holder: int


def _cheapest(holders: list[_Holder], spec: ModelSpec) -> Path:
    """Dynamic programme over the segments between range ends; the layers are all held."""
    ring = spec.num_layers
    prefix = list(accumulate(compute_weights(spec), initial=0))
    cuts = sorted(
        {0, ring}.union(
            *({item.start for item in holder.ranges} for holder in holders),
            *({item.stop for item in holder.ranges} for holder in holders),
        )
    )
    active = _active(holders, cuts)
    states: dict[int, _Step] = {}
    for index, (start, stop) in enumerate(pairwise(cuts)):
        ways = sorted(
            states.values(),
            key=lambda step: (step.cost_s + holders[step.holder].leave_s, step.holder),
        )[:2]
        following: dict[int, _Step] = {}
        for number in active[index]:
            holder = holders[number]
            compute_s = (prefix[stop] - prefix[start]) * holder.per_weight_s
            stay = states.get(number)
            best: _Step | None = None
            if stay is not None:
                best = _Step(stay.cost_s + compute_s, stay.hop_start, stay.before, number)
            if index == 0:
                best = _Step(holder.enter_s + compute_s, 0, None, number)
            for way in ways:
                if way.holder == number:
                    continue
                cost_s = way.cost_s + holders[way.holder].leave_s + holder.enter_s + compute_s
                if best is None or cost_s < best.cost_s:
                    best = _Step(cost_s, start, way, number)
                break
            if best is not None:
                following[number] = best
        states = following
    last: _Step | None = min(
        states.values(), key=lambda step: (step.cost_s + holders[step.holder].leave_s, step.holder)
    )
    hops: list[Hop] = []
    stop = ring
    while last is not None:
        hops.append(Hop(holders[last.holder].node, LayerRange(last.hop_start, stop)))
        stop = last.hop_start
        last = last.before
    return tuple(reversed(hops))


def _active(holders: list[_Holder], cuts: list[int]) -> list[list[int]]:
    """Per segment between `cuts`, the holders of it in ascending order."""
    index_of = {cut: index for index, cut in enumerate(cuts)}
    active: list[list[int]] = [[] for _ in cuts[1:]]
    for number, holder in enumerate(holders):
        for item in holder.ranges:
            for index in range(index_of[item.start], index_of[item.stop]):
                active[index].append(number)
    return active
