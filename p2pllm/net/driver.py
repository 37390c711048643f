"""The thin shell around a core machine: one timer, events in, effects out.

The driver is the only caller of the machine, so the machine never sees two events at once. An
effect may produce an event at once (a message a node sends to itself); it waits its turn in a
queue instead of re-entering the machine.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

Event = TypeVar("Event")
Effect = TypeVar("Effect")
EventIn = TypeVar("EventIn", contravariant=True)
EffectOut = TypeVar("EffectOut", covariant=True)


class Machine(Protocol[EventIn, EffectOut]):
    """The contract of every core machine."""

    def handle(self, event: EventIn, *, now: float) -> Sequence[EffectOut]:
        """Take an event at time `now` (seconds, monotonic) and say what is to be done."""
        ...

    def deadline(self) -> float | None:
        """When the machine next wants to be woken, or None."""
        ...


class Driver(Generic[Event, Effect]):
    """Feeds `machine` and performs what it asks for, on the running event loop.

    Args:
        machine: the core.
        perform: does one effect; must not block and must not raise.
        timer_fired: the event that says the deadline has come.
    """

    def __init__(
        self,
        machine: Machine[Event, Effect],
        perform: Callable[[Effect], None],
        timer_fired: Event,
    ) -> None:
        self._machine = machine
        self._perform = perform
        self._timer_fired = timer_fired
        self._loop = asyncio.get_running_loop()
        # Bounded by the shells that post: each has its own bounded queue in front of this one.
        self._waiting: deque[Event] = deque()
        self._running = False
        self._closed = False
        # uvloop gives a plain handle where the time has come already, so its time is kept here.
        self._timer: asyncio.Handle | None = None
        self._timer_at = 0.0

    @property
    def now(self) -> float:
        """The machine's time, in seconds."""
        return self._loop.time()

    def post(self, event: Event) -> None:
        """Give the machine an event and do what follows from it before returning.

        From within `perform`, the event is queued instead and handled right after.
        """
        if self._closed:
            return
        self._waiting.append(event)
        if self._running:
            return
        self._running = True
        try:
            while self._waiting:
                for effect in self._machine.handle(self._waiting.popleft(), now=self.now):
                    self._perform(effect)
        finally:
            self._running = False
        self._arm()

    def close(self) -> None:
        """Stop the timer; events posted from now on are dropped."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        deadline = self._machine.deadline()
        if self._timer is not None:
            if deadline is not None and self._timer_at == deadline:
                return
            self._timer.cancel()
            self._timer = None
        if deadline is not None and not self._closed:
            self._timer_at = deadline
            self._timer = self._loop.call_at(deadline, self._fire)

    def _fire(self) -> None:
        self._timer = None
        self.post(self._timer_fired)
