from __future__ import annotations

from p2pllm.core.timers import Timers


def test_equal_times_fall_due_in_the_order_they_were_set() -> None:
    timers = Timers()
    for name in "cab":
        timers.set((name, ""), 1.0)
    assert [timers.pop(1.0) for _ in range(4)] == [("c", ""), ("a", ""), ("b", ""), None]


def test_a_timer_set_again_falls_due_once_at_the_later_time() -> None:
    timers = Timers()
    timers.set(("a", ""), 1.0)
    timers.set(("a", ""), 2.0)
    assert timers.deadline() == 2.0
    assert timers.pop(1.5) is None
    assert timers.pop(2.0) == ("a", "")
    assert timers.deadline() is None


def test_a_cancelled_timer_does_not_fall_due() -> None:
    timers = Timers()
    timers.set(("a", ""), 1.0)
    timers.cancel(("a", ""))
    timers.cancel(("a", ""))
    assert timers.deadline() is None
    assert ("a", "") not in timers


def test_the_heap_stays_bounded_however_often_a_timer_is_set() -> None:
    timers = Timers()
    for step in range(10_000):
        timers.set(("a", ""), float(step))
        timers.check()
    assert len(timers) == 1
    assert timers.pop(1e9) == ("a", "")
