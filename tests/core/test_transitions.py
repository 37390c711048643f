from __future__ import annotations

from random import Random

import pytest

from p2pllm.core.capacity import PlacementConfig
from p2pllm.core.placement import plan
from p2pllm.core.transitions import can_be_carried_out
from tests.core.swarm_worlds import MODEL, holding, member, model, node_id, record, view_of

SIZES = [1] * 6


def test_two_full_machines_cannot_change_places() -> None:
    held, swapped = [(0, 3), (3, 6)], [(3, 6), (0, 3)]
    assert not can_be_carried_out(held, swapped, [3, 3], SIZES, 2)
    assert can_be_carried_out(held, held, [3, 3], SIZES, 2)


def test_room_for_one_layer_is_enough_to_change_places() -> None:
    assert can_be_carried_out([(0, 3), (3, 6)], [(3, 6), (0, 3)], [4, 3], SIZES, 2)


def test_a_full_machine_moves_where_others_hold_what_it_drops() -> None:
    assert can_be_carried_out([(0, 3), (0, 3)], [(0, 3), (3, 6)], [3, 3], SIZES, 2)
    assert not can_be_carried_out([(0, 3), None], [(3, 6), None], [3, 3], SIZES, 2)


@pytest.mark.parametrize("seed", range(120))
def test_full_swarms_that_hold_their_model_are_given_plans_that_can_be_carried_out(
    seed: int,
) -> None:
    random = Random(seed)
    layers = 12
    rooms = [random.randint(2, 9) for _ in range(random.randint(2, 4))]
    held = []
    for room in rooms:
        start = random.randrange(layers)
        held.append((start, min(layers, start + room)))
    if {layer for window in held for layer in range(*window)} != set(range(layers)):
        return
    nodes = sorted(node_id(10 * seed + number) for number in range(len(rooms)))
    members = [
        member(
            record(
                node,
                memory=room * 1_000,
                speed=random.choice([1, 4, 16]) * 10_000,
                holdings=(holding(*window),),
            )
        )
        for node, room, window in zip(nodes, rooms, held, strict=True)
    ]
    view = view_of(*members, models=(model(layers),))
    config = PlacementConfig(kv_share=0.0, gain_min=0.02, move_cost=0.0)
    windows = plan(view, config).models[MODEL].windows
    planned = [
        (windows[node].start, windows[node].start + windows[node].length)
        if node in windows
        else None
        for node in nodes
    ]
    assert can_be_carried_out(held, planned, rooms, [1] * layers, config.replicas)
