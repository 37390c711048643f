from __future__ import annotations

import pytest

from tests.core.test_coverage import coverage


def test_the_windows_a_machine_can_have_cannot_grow() -> None:
    machines = coverage((10, None), (12, None))
    assert machines._choices(0) == [(0, 10), (1, 11), (2, 12)]
    assert machines._choices(1) == [(0, 12)]


def test_what_is_held_is_kept_and_grown_to_what_fits() -> None:
    assert coverage((5, (2, 4)))._kept(0) == (2, 7)
    assert coverage((5, (10, 12)))._kept(0) == (7, 12)
    assert coverage((5, None))._kept(0) is None


def test_moved_is_the_share_of_the_model_that_a_holder_loads() -> None:
    machines = coverage((6, (0, 6)), (6, None))
    assert machines._moved(0, (3, 9)) == pytest.approx(3 / 12)
    assert machines._moved(0, (0, 6)) == 0.0
    assert machines._moved(1, (3, 9)) == 0.0
