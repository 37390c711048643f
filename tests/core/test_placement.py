from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.core.capacity import PlacementConfig, kv_reserve_bytes, range_bytes, weight_bytes
from p2pllm.core.placement import Plan, plan, what_changes
from p2pllm.domain.ids import ModelId
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.models import ModelSpec
from p2pllm.domain.records import Holding, HoldingState, Member, MemberState, SwarmView
from tests.core.swarm_worlds import MODEL, holding, member, model, node_id, record, view_of

ALL_MEMORY = PlacementConfig(kv_share=0.0)


def carried_out(view: SwarmView, target: Plan) -> SwarmView:
    """The same swarm once everybody holds what `target` says."""
    members = [
        replace(
            item,
            record=replace(
                item.record,
                holdings=tuple(
                    Holding(name, layers, HoldingState.READY)
                    for name in target.models
                    for layers in target.ranges(name, item.record.node)
                ),
            ),
        )
        for item in view.members
    ]
    return replace(view, members=tuple(members))


def moved_bytes(view: SwarmView, target: Plan) -> int:
    return sum(change.load_bytes for change in what_changes(view, target))


@st.composite
def fleets(
    draw: st.DrawFn, *, least: int = 1, most: int = 8, layers_most: int = 24
) -> tuple[SwarmView, ModelSpec]:
    layers = draw(st.integers(1, layers_most))
    spec = model(
        layers,
        embedding=draw(st.sampled_from([0, 700, 3_000])),
        head=draw(st.sampled_from([0, 700, 3_000])),
        kv_elements=draw(st.sampled_from([0, 1])),
    )
    members: list[Member] = []
    for number in range(draw(st.integers(least, most))):
        held: tuple[Holding, ...] = ()
        if draw(st.booleans()):
            start = draw(st.integers(0, layers - 1))
            stop = draw(st.integers(start + 1, layers))
            held = (holding(start, stop, draw(st.sampled_from(list(HoldingState)))),)
        members.append(
            member(
                record(
                    node_id(number),
                    memory=draw(st.integers(0, 14)) * 1_500,
                    speed=draw(st.sampled_from([1, 2, 4, 8])) * 10_000,
                    holdings=held,
                    layers_max=draw(st.sampled_from([None, None, None, 3])),
                    leaving=draw(st.integers(0, 9)) == 0,
                    models=draw(st.sampled_from([(MODEL,), (MODEL,), (MODEL,), ()])),
                ),
                draw(st.sampled_from([*[MemberState.ALIVE] * 4, *MemberState])),
            )
        )
    return view_of(*members, models=(spec,)), spec


@given(fleets(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_order_of_members_does_not_matter(
    case: tuple[SwarmView, ModelSpec], random: Random
) -> None:
    view, _ = case
    shuffled = list(view.members)
    random.shuffle(shuffled)
    assert plan(view) == plan(replace(view, members=tuple(shuffled)))
    assert plan(view) == plan(replace(view, self_id=node_id(77)))


def test_the_plan_does_not_depend_on_the_hash_seed() -> None:
    program = (
        "from random import Random\n"
        "from tests.core.test_placement import *\n"
        "spec = model(30, embedding=900)\n"
        "random = Random(5)\n"
        "def one(n):\n"
        "    memory, speed = random.randrange(2000, 20000), random.randrange(1, 9) * 10**5\n"
        "    return member(record(node_id(n), memory=memory, speed=speed))\n"
        "view = view_of(*[one(n) for n in range(20)], models=(spec,))\n"
        "print(plan(view))\n"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1] != ""


@given(fleets(), st.sampled_from([None, 1, 2]))
@settings(max_examples=100, deadline=None)
def test_windows_are_within_what_their_node_may_hold(
    case: tuple[SwarmView, ModelSpec], replicas_max: int | None
) -> None:
    view, spec = case
    config = PlacementConfig(replicas_max=replicas_max)
    target = plan(view, config).models[MODEL]
    records = {item.record.node: item.record for item in view.usable()}
    copies = [0] * spec.num_layers
    for node, window in target.windows.items():
        assert window.ring == spec.num_layers
        item = records[node]
        assert MODEL in item.models
        sizes = weight_bytes(spec, 1)
        used = range_bytes(sizes, window.ranges())
        used += range_bytes(kv_reserve_bytes(spec, 1, config), window.ranges())
        assert used <= item.memory_bytes
        assert window.length <= (item.layers_max or spec.num_layers)
        for layer in window.layers():
            copies[layer] += 1
    assert tuple(copies) == target.copies
    assert all(
        (count == 0) == any(layer in item for item in target.uncovered)
        for layer, count in enumerate(copies)
    )
    if replicas_max is not None:
        assert max(copies) <= replicas_max


@given(st.integers(1, 40), st.integers(1, 20), st.integers(1, 20), st.integers(0, 3))
@settings(max_examples=80, deadline=None)
def test_identical_machines_cover_all_layers_whenever_their_memory_suffices(
    layers: int, count: int, room: int, held: int
) -> None:
    spec = model(layers)
    members = [
        member(
            record(
                node_id(number),
                memory=room * 1_000,
                holdings=(holding(0, min(room, layers)),) if number < held else (),
            )
        )
        for number in range(count)
    ]
    target = plan(view_of(*members, models=(spec,)), ALL_MEMORY).models[MODEL]
    assert (not target.uncovered) == (room * count >= layers)


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=7),
    st.integers(1, 20),
    st.sampled_from([0, 4_000]),
    st.sampled_from([0, 5_000]),
    st.randoms(use_true_random=False),
)
@settings(max_examples=80, deadline=None)
def test_few_mixed_machines_cover_all_layers_whenever_any_dealing_does(
    rooms: list[int], layers: int, embedding: int, head: int, random: Random
) -> None:
    """Checked against all orders of the machines, from all rotations of the ring."""
    spec = model(layers, embedding=embedding, head=head)
    sizes = weight_bytes(spec, 1)

    def reach(room: int, start: int) -> int:
        stop, left = start, room * 1_000
        while stop - start < layers and sizes[stop % layers] <= left:
            left -= sizes[stop % layers]
            stop += 1
        return stop

    feasible = False
    for cut in range(layers):
        best = {0: cut}
        for chosen in range(1, 1 << len(rooms)):
            best[chosen] = max(
                reach(room, best[chosen ^ (1 << n)])
                for n, room in enumerate(rooms)
                if chosen & (1 << n)
            )
        feasible = feasible or best[(1 << len(rooms)) - 1] >= cut + layers
    members = []
    for number, room in enumerate(rooms):
        held: tuple[Holding, ...] = ()
        if random.random() < 0.5:
            start = random.randrange(layers)
            held = (holding(start, random.randint(start + 1, layers)),)
        members.append(member(record(node_id(number), memory=room * 1_000, holdings=held)))
    target = plan(view_of(*members, models=(spec,)), ALL_MEMORY).models[MODEL]
    assert (not target.uncovered) == feasible


@pytest.mark.parametrize("count", [20, 40, 70])
@pytest.mark.parametrize("seed", range(3))
def test_many_mixed_machines_with_some_slack_cover_all_layers(count: int, seed: int) -> None:
    random = Random(seed)
    layers = 80
    rooms = [random.choice([1, 2, 3, 5, 9]) for _ in range(count)]
    scale = 1.2 * layers / sum(rooms)
    members = []
    for number, room in enumerate(rooms):
        memory = 1_000 * max(1, round(room * scale))
        start = random.randrange(layers)
        held = (holding(start, min(layers, start + memory // 1_000)),) if number % 2 else ()
        members.append(member(record(node_id(number), memory=memory, holdings=held)))
    total = sum(item.record.memory_bytes for item in members)
    assert total >= 1_000 * layers
    target = plan(view_of(*members, models=(model(layers),)), ALL_MEMORY).models[MODEL]
    assert target.uncovered == ()


@given(fleets())
@settings(max_examples=80, deadline=None)
def test_a_plan_that_is_carried_out_is_planned_again(case: tuple[SwarmView, ModelSpec]) -> None:
    view, _ = case
    first = plan(view)
    after = carried_out(view, first)
    assert plan(after) == first
    assert what_changes(after, first) == ()


@given(fleets(least=2), st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_ten_percent_of_noise_in_the_speeds_moves_nothing(
    case: tuple[SwarmView, ModelSpec], random: Random
) -> None:
    view, _ = case
    view = carried_out(view, plan(view))
    noisy = replace(
        view,
        members=tuple(
            replace(
                item,
                record=replace(
                    item.record,
                    speed_bytes_s=round(item.record.speed_bytes_s * random.uniform(0.9, 1.1)),
                ),
            )
            for item in view.members
        ),
    )
    assert what_changes(noisy, plan(noisy)) == ()


@pytest.mark.parametrize("count", [5, 9, 16])
@pytest.mark.parametrize("seed", range(3))
def test_noise_moves_nothing_in_tight_mixed_fleets_of_up_to_sixteen(count: int, seed: int) -> None:
    random = Random(seed)
    layers = 48
    parts = [random.choice([4, 8, 8, 16, 24, 32, 64]) for _ in range(count)]
    members = [
        member(
            record(
                node_id(number),
                memory=1_000 * max(1, round(part * 2 * layers / sum(parts))),
                speed=random.choice([50, 100, 200, 400, 800]) * 10**6,
            )
        )
        for number, part in enumerate(parts)
    ]
    view = view_of(*members, models=(model(layers),))
    view = carried_out(view, plan(view, ALL_MEMORY))
    for _ in range(3):
        noisy = replace(
            view,
            members=tuple(
                replace(
                    item,
                    record=replace(
                        item.record,
                        speed_bytes_s=round(item.record.speed_bytes_s * random.uniform(0.9, 1.1)),
                    ),
                )
                for item in view.members
            ),
        )
        assert what_changes(noisy, plan(noisy, ALL_MEMORY)) == ()


@pytest.mark.parametrize("count", [3, 8, 24])
def test_a_machine_that_comes_and_goes_moves_little(count: int) -> None:
    moved = returned = room = 0
    for seed in range(6):
        random = Random(seed)
        members = [
            member(
                record(
                    node_id(number),
                    memory=random.randrange(80_000 // count, 200_000 // count),
                    speed=random.randrange(1, 5) * 10**6,
                )
            )
            for number in range(count)
        ]
        view = view_of(*members, models=(model(40),))
        view = carried_out(view, plan(view))
        guest = member(record(node_id(1_000), memory=80_000 // count))
        with_guest = view_of(*view.members, guest, models=view.models)
        joined = carried_out(with_guest, plan(with_guest))
        moved += moved_bytes(with_guest, plan(with_guest))
        left = replace(
            joined, members=tuple(m for m in joined.members if m.record.node != node_id(1_000))
        )
        returned += moved_bytes(left, plan(left))
        room += 80_000 // count
    assert moved <= 2.0 * room
    assert returned <= 1.0 * room


def test_where_memory_is_plentiful_everybody_holds_everything() -> None:
    spec = model(8)
    members = [member(record(node_id(number), memory=20_000)) for number in range(3)]
    target = plan(view_of(*members, models=(spec,))).models[MODEL]
    assert target.copies == (3,) * 8
    assert target.hops == 1


def test_an_upper_bound_on_copies_is_kept_without_moving_holders() -> None:
    spec = model(8)
    config = PlacementConfig(replicas_max=1)
    members = [
        member(
            record(
                node_id(number),
                memory=20_000,
                holdings=(holding(0, 8),) if number == 1 else (),
            )
        )
        for number in range(3)
    ]
    view = view_of(*members, models=(spec,))
    target = plan(view, config).models[MODEL]
    assert target.copies == (1,) * 8
    assert list(target.windows) == [node_id(1)]


def test_a_window_wraps_where_only_one_machine_can_hold_both_ends() -> None:
    spec = model(10, parameters=1_000, embedding=9_000, head=9_000)
    members = [
        member(record(node_id(1), memory=24_000)),
        member(record(node_id(2), memory=3_000)),
        member(record(node_id(3), memory=3_000)),
    ]
    target = plan(view_of(*members, models=(spec,)), ALL_MEMORY).models[MODEL]
    assert target.uncovered == ()
    assert len(target.windows[node_id(1)].ranges()) == 2


def test_what_does_not_fit_is_named() -> None:
    members = [member(record(node_id(number), memory=3_000)) for number in range(2)]
    target = plan(view_of(*members, models=(model(10),)), ALL_MEMORY).models[MODEL]
    assert sum(map(len, target.uncovered)) == 4
    assert target.tokens_per_s == 0.0
    assert plan(view_of(models=(model(10),))).models[MODEL].uncovered == (LayerRange(0, 10),)


def test_the_free_share_for_cache_gives_way_to_coverage() -> None:
    config = PlacementConfig(kv_share=0.5)
    members = [member(record(node_id(number), memory=5_000)) for number in range(2)]
    view = view_of(*members, models=(model(10),))
    assert plan(view, config).models[MODEL].uncovered == ()
    larger = [member(record(node_id(number), memory=12_000)) for number in range(2)]
    target = plan(view_of(*larger, models=(model(10),)), config).models[MODEL]
    assert [window.length for window in target.windows.values()] == [6, 6]


def test_models_share_memory_in_proportion_to_their_size() -> None:
    big, small = model(30, name=ModelId("a")), model(10, name=ModelId("b"))
    members = [
        member(record(node_id(number), memory=20_000, models=(ModelId("a"), ModelId("b"))))
        for number in range(2)
    ]
    target = plan(view_of(*members, models=(big, small)), ALL_MEMORY)
    assert [window.length for window in target.models[ModelId("a")].windows.values()] == [15, 15]
    assert [window.length for window in target.models[ModelId("b")].windows.values()] == [5, 5]
    assert not target.models[ModelId("a")].uncovered
    assert not target.models[ModelId("b")].uncovered


def test_changes_are_counted_in_bytes() -> None:
    spec = model(4, embedding=500)
    view = view_of(
        member(record(node_id(1), memory=20_000, holdings=(holding(1, 2),))), models=(spec,)
    )
    (change,) = what_changes(view, plan(view))
    assert change.load == (LayerRange(0, 1), LayerRange(2, 4))
    assert change.load_bytes == 3_500
    assert change.drop == ()


@pytest.mark.parametrize("number", range(6))
def test_a_machine_that_is_alone_and_too_small_starts_at_an_end(number: int) -> None:
    """In the middle it would leave two gaps, and have to move when others come."""
    view = view_of(member(record(node_id(number), memory=5_000)), models=(model(12),))
    (window,) = plan(view, ALL_MEMORY).models[MODEL].windows.values()
    assert window.length == 5
    assert window.start in (0, 7)
