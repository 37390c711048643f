"""The driver: order of events, one timer, nothing after close."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import uvloop

from p2pllm.net.driver import Driver


class Recorder:
    """Echoes each event as an effect and keeps a deadline that a test sets."""

    def __init__(self) -> None:
        self.handled: list[str] = []
        self.wake_at: float | None = None
        self.on_handle: Callable[[str], None] = lambda event: None
        self.inside = False

    def handle(self, event: str, *, now: float) -> list[str]:
        assert not self.inside, "the machine was re-entered"
        self.inside = True
        self.handled.append(event)
        if event == "timer":
            self.wake_at = None
        self.on_handle(event)
        self.inside = False
        return [event]

    def deadline(self) -> float | None:
        return self.wake_at


async def test_an_event_posted_while_performing_waits_its_turn() -> None:
    machine = Recorder()
    performed: list[str] = []

    def perform(effect: str) -> None:
        performed.append(effect)
        if effect == "first":
            driver.post("second")
            assert machine.handled == ["first"]

    driver = Driver(machine, perform, "timer")
    driver.post("first")
    assert performed == ["first", "second"]


async def test_the_timer_fires_at_the_deadline_and_is_moved_when_it_moves() -> None:
    machine = Recorder()
    fired = asyncio.Event()
    driver = Driver(machine, lambda effect: fired.set() if effect == "timer" else None, "timer")
    machine.wake_at = driver.now + 3600
    driver.post("late")
    machine.wake_at = driver.now + 0.01
    driver.post("early")
    await asyncio.wait_for(fired.wait(), 5)
    assert machine.handled == ["late", "early", "timer"]


def test_a_deadline_that_has_passed_fires_at_once_on_uvloop_too() -> None:
    async def run() -> list[str]:
        machine = Recorder()
        fired = asyncio.Event()
        driver = Driver(machine, lambda effect: fired.set() if effect == "timer" else None, "timer")
        machine.wake_at = driver.now - 1
        driver.post("late")
        machine.wake_at = driver.now - 1
        driver.post("again")
        await asyncio.wait_for(fired.wait(), 5)
        return machine.handled

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(run()) == ["late", "again", "timer"]


async def test_nothing_is_handled_after_close() -> None:
    machine = Recorder()
    driver = Driver(machine, lambda effect: None, "timer")
    machine.wake_at = driver.now + 0.001
    driver.post("before")
    driver.close()
    driver.post("after")
    await asyncio.sleep(0.01)
    assert machine.handled == ["before"]
