from __future__ import annotations

from p2pllm.core.capacity import Budget, PlacementConfig, Window, prefix_sums, reach_table
from p2pllm.core.coverage import Coverage
from p2pllm.core.layout import Machine, Ring, Windows
from tests.core.swarm_worlds import node_id

LAYERS = 12
SIZES = [1] * LAYERS


def coverage(*machines: tuple[int, Window | None]) -> Coverage:
    """Machines by room, in layers, and what they hold."""
    return Coverage(
        [
            Machine(
                node=node_id(number),
                rate=1.0,
                reach=reach_table(SIZES, [0] * LAYERS, Budget(room, room, LAYERS)),
                current=held,
                anchor=0.5,
                rank=number / 10,
            )
            for number, (room, held) in enumerate(machines)
        ],
        Ring(LAYERS, prefix_sums(SIZES), prefix_sums(SIZES)),
        PlacementConfig(),
    )


def test_windows_slide_together_by_as_little_as_closes_the_gap() -> None:
    windows: Windows = [(0, 5), (6, 11)]
    coverage((6, (0, 5)), (6, (6, 11)))._close_gaps(windows)
    assert windows == [(0, 6), (6, 12)]


def test_layers_are_dealt_out_afresh_where_their_order_does_not_do() -> None:
    windows: Windows = [(0, 4), (0, 4), (0, 4)]
    machines = coverage((4, (0, 4)), (4, (0, 4)), (4, (0, 4)))
    assert machines._uncovered(windows) == 8
    machines._close_gaps(windows)
    assert sorted(window for window in windows if window is not None) == [(0, 4), (4, 8), (8, 12)]
    assert machines._uncovered(windows) == 0


def test_windows_stay_where_memory_does_not_suffice() -> None:
    windows: Windows = [(0, 5), (6, 11)]
    coverage((5, (0, 5)), (5, (6, 11)))._close_gaps(windows)
    assert windows == [(0, 5), (6, 11)]
