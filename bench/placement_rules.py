"""Rules for who holds which layers: ours, and those that it is compared with.

Each is a function of the fleet and of what everybody holds now, and gives a window of layers to
each machine. The others are written from their descriptions, not from their code:

ring anchors     a machine's window starts at its hash on the ring of layers and is as long as its
                 memory allows; starts are displaced, in order, as little as closes all gaps (least
                 squares: an isotonic regression). Ketama-like consistent hashing.
proportional     the ring of layers is split in proportion to memory, largest machine first: exo's
                 "ring memory weighted" partitioning.
weakest window   machines come in one after another, each taking the window whose layers have the
                 least throughput so far: the rule by which a Petals server picks its blocks, here
                 replayed for all members in order of id, so that it is a plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bench.fleets import LAYERS, Fleet
from p2pllm.core.capacity import PlacementConfig, Window
from p2pllm.core.placement import plan
from p2pllm.domain.ids import ModelId, NodeId
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.models import LayerRun, ModelSpec
from p2pllm.domain.records import (
    Address,
    Holding,
    HoldingState,
    Member,
    MemberState,
    NodeRecord,
    SwarmView,
)

Windows = dict[NodeId, Window]
"""Unrolled, see `p2pllm.core.capacity`."""

Rule = Callable[[Fleet, Mapping[NodeId, Window]], Windows]

TURNS = 9
"""Of the ring that the isotonic regression is unrolled to; the middle one counts."""

CONFIG = PlacementConfig(kv_share=0.0)
"""All memory is for weights, so that the bounds hold."""

_LAYER_PARAMETERS = 1_000
_MODEL = ModelId("bench")


def ours(fleet: Fleet, held: Mapping[NodeId, Window]) -> Windows:
    """The rule of `p2pllm.core.placement`."""
    target = plan(view_of(fleet, held), CONFIG).models[_MODEL]
    return {
        node: (window.start, window.start + window.length)
        for node, window in target.windows.items()
    }


def ring_anchors(fleet: Fleet, held: Mapping[NodeId, Window]) -> Windows:
    """Starts at the hashes, displaced only as far as needed to close gaps."""
    order = sorted(fleet, key=lambda peer: (peer.anchor, peer.node))
    # With the rooms before a machine taken off, "no gap" reads "does not rise".
    wanted: list[float] = []
    before: list[int] = []
    passed = 0
    for turn in range(TURNS):
        for peer in order:
            wanted.append((peer.anchor + turn) * LAYERS - passed)
            before.append(passed)
            passed += peer.room
    fitted = not_rising(wanted)
    first = TURNS // 2 * len(order)
    windows: Windows = {}
    for number, peer in enumerate(order, first):
        start = (round(fitted[number]) + before[number]) % LAYERS
        windows[peer.node] = (0, LAYERS) if peer.room >= LAYERS else (start, start + peer.room)
    return windows


def not_rising(values: list[float]) -> list[float]:
    """The sequence that never rises and is nearest by least squares (pool adjacent violators)."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        mean, count = value, 1
        while blocks and blocks[-1][0] < mean:
            other, others = blocks.pop()
            mean, count = (mean * count + other * others) / (count + others), count + others
        blocks.append((mean, count))
    return [mean for mean, count in blocks for _ in range(count)]


def proportional(fleet: Fleet, held: Mapping[NodeId, Window]) -> Windows:
    """Layers in proportion to memory, largest machine first."""
    total = sum(peer.room for peer in fleet)
    windows: Windows = {}
    passed = 0
    for peer in sorted(fleet, key=lambda peer: (-peer.room, peer.node)):
        start = round(passed * LAYERS / total)
        passed += peer.room
        stop = min(round(passed * LAYERS / total), start + peer.room)
        if stop > start:
            windows[peer.node] = (start, stop)
    return windows


def weakest_window(fleet: Fleet, held: Mapping[NodeId, Window]) -> Windows:
    """Each machine takes the window with the least throughput so far."""
    strength = [0.0] * LAYERS
    windows: Windows = {}
    for peer in fleet:
        start = min(
            range(LAYERS - peer.room + 1),
            key=lambda first: (sorted(strength[first : first + peer.room]), first),
        )
        windows[peer.node] = (start, start + peer.room)
        for layer in range(start, start + peer.room):
            strength[layer] += peer.rate / peer.room
    return windows


RULES: dict[str, Rule] = {
    "ours": ours,
    "ring anchors": ring_anchors,
    "proportional (exo)": proportional,
    "weakest window (Petals)": weakest_window,
}


def view_of(fleet: Fleet, held: Mapping[NodeId, Window]) -> SwarmView:
    """What a node would see that has heard of everybody."""
    spec = ModelSpec(
        id=_MODEL,
        reference="bench",
        fingerprint="0" * 32,
        architecture="BenchForCausalLM",
        runs=(LayerRun(LAYERS, _LAYER_PARAMETERS, 0),),
        embedding_parameters=0,
        head_parameters=0,
        hidden_size=64,
        context_length_max=2_048,
        vocabulary_size=1_000,
    )
    members = tuple(
        Member(
            NodeRecord(
                node=peer.node,
                incarnation=1,
                version=1,
                name=peer.node[:4],
                addresses=(Address("127.0.0.1", 1_000),),
                api=None,
                memory_bytes=peer.room * _LAYER_PARAMETERS,
                layers_max=None,
                parameter_bytes=1,
                speed_bytes_s=round(peer.rate * _LAYER_PARAMETERS),
                models=(_MODEL,),
                holdings=_holdings(held.get(peer.node)),
            ),
            MemberState.ALIVE,
        )
        for peer in fleet
    )
    return SwarmView(self_id=fleet[0].node, members=members, models=(spec,))


def _holdings(window: Window | None) -> tuple[Holding, ...]:
    if window is None:
        return ()
    start, stop = window
    ranges = [LayerRange(start, min(stop, LAYERS))]
    if stop > LAYERS:
        ranges.insert(0, LayerRange(0, stop - LAYERS))
    return tuple(Holding(_MODEL, item, HoldingState.READY) for item in ranges)
