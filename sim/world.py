"""A virtual world of machines, a network and time, that drives the real core.

Theory of operation. Everything that will happen stands in one heap: messages on their way, timers,
and whatever the scenario has scheduled. The world takes the next one, hands it to its machine, and
performs the effects that come back: what is sent is given to the network and put into the heap
again. Each machine has one timer, at its `deadline()`. A machine that crashed gets nothing, and
what was on its way to its former life is dropped; one that is paused gets all of it later, as a
stopped process does.

A run is a function of its seed: machines are numbered, equal times keep their order, and network
and machines draw from streams of their own.
"""

from __future__ import annotations

import hashlib
import random as random_module
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from p2pllm.core.effects import Effect, Notify, SendDatagram, SendStream
from p2pllm.core.events import (
    DatagramReceived,
    Event,
    PeerUnreachable,
    StreamReceived,
    TimerFired,
)
from p2pllm.domain.gossip import GossipMessage
from p2pllm.domain.ids import NodeId
from p2pllm.domain.records import Address
from sim.clock import Clock
from sim.network import Link, Network

CONNECT_TIMEOUT_S = 3.0
"""How long a machine tries to reach one that does not answer at all."""


class Machine(Protocol):
    """The contract of every core machine."""

    def handle(self, event: Event, *, now: float) -> list[Effect]:
        """Take note of `event`; what to do about it."""
        ...

    def deadline(self) -> float | None:
        """When to send `TimerFired`."""
        ...

    def check(self) -> None:
        """Assert invariants."""
        ...


M = TypeVar("M", bound=Machine)


@dataclass(slots=True)
class Host(Generic[M]):
    """A place for a machine, with an address.

    Attributes:
        number: from 0, in the order of adding.
        node: id of the machine that lives here.
        address: where datagrams for it go.
        machine: None while it is off.
        life: counted up at every start and crash; what was sent to a former life is dropped.
        is_paused: whether its process stands still.
        held: what arrived meanwhile.
        timer: the machine's deadline, None for never.
        wakes: when the world looks at it.
        wake_count: which look is the valid one.
        sent: datagrams it sent.
        sent_bytes: in them, where the world was given a `size_of`.
        notices: how often it reported which event.
    """

    number: int
    node: NodeId
    address: Address
    machine: M | None = None
    life: int = 0
    is_paused: bool = False
    held: list[Event] = field(default_factory=list[Event])
    timer: float | None = None
    # When the one valid wake-up in the heap comes, never after `timer`; and which one that is.
    wakes: float | None = None
    wake_count: int = 0
    sent: int = 0
    sent_bytes: int = 0
    notices: Counter[str] = field(default_factory=Counter[str])


Performer = Callable[[Host[M], Effect], None]
"""Does what the world does not know how to do itself: compute, load, answer clients."""


class World(Generic[M]):
    """Machines, network and time.

    Args:
        seed: decides everything.
        link: between all machines that no other was set for.
        checks: whether to call `check()` after every event.
        traces: whether to keep a running hash of all events.
        size_of: bytes of a message, to count traffic.
        perform: for effects other than sending and notices.
    """

    def __init__(
        self,
        seed: int,
        *,
        link: Link | None = None,
        checks: bool = False,
        traces: bool = False,
        size_of: Callable[[GossipMessage], int] | None = None,
        perform: Performer[M] | None = None,
    ) -> None:
        self.network = Network(random_module.Random(f"{seed} network"), link or Link())
        self.hosts: list[Host[M]] = []
        self.events = 0
        self.notices: list[tuple[float, int, Notify]] = []
        self._seed = seed
        self._clock: Clock[Callable[[], None]] = Clock()
        self._checks = checks
        self._size_of = size_of
        self._perform = perform
        self._trace = hashlib.blake2b(digest_size=16) if traces else None
        self._at: dict[Address, Host[M]] = {}
        self._of: dict[NodeId, Host[M]] = {}
        self._last_frame_s: dict[tuple[int, int], float] = {}

    @property
    def now(self) -> float:
        """Virtual seconds since the world began."""
        return self._clock.now

    @property
    def trace(self) -> str:
        """A hash over everything that happened; equal for equal runs."""
        return "" if self._trace is None else self._trace.hexdigest()

    def random(self, name: str) -> random_module.Random:
        """A stream of its own for `name`, decided by the seed."""
        return random_module.Random(f"{self._seed} {name}")

    # -- machines

    def add(self, node: NodeId, address: Address) -> Host[M]:
        """A host without a machine yet; see `start`."""
        host: Host[M] = Host(len(self.hosts), node, address)
        self.hosts.append(host)
        self._at[address] = host
        self._of[node] = host
        return host

    def start(self, host: Host[M], machine: M) -> None:
        """Switch `machine` on at `host`."""
        assert host.machine is None
        host.machine = machine
        host.life += 1
        self._arm(host)

    def crash(self, host: Host[M]) -> None:
        """Off, without a word; streams to it break."""
        host.machine, host.timer, host.wakes = None, None, None
        host.wake_count += 1
        host.is_paused = False
        host.held.clear()
        host.life += 1

    def pause(self, host: Host[M]) -> None:
        """Let its process stand still."""
        host.is_paused = True

    def resume(self, host: Host[M]) -> None:
        """Let it run again: the timer first, then what arrived meanwhile."""
        host.is_paused = False
        held, host.held = host.held, []
        if host.timer is not None and host.timer <= self.now:
            self._deliver(host, TimerFired())
        for event in held:
            self._deliver(host, event)
        self._arm(host)

    def move(self, host: Host[M], address: Address) -> None:
        """The host has another address from now on."""
        del self._at[host.address]
        host.address = address
        self._at[address] = host

    def act(self, host: Host[M], action: Callable[[M], list[Effect]]) -> None:
        """Call the machine at `host` and do what it says; nothing where it is off."""
        machine = host.machine
        if machine is not None:
            self._execute(host, action(machine))

    # -- time

    def at(self, at: float, action: Callable[[], None]) -> None:
        """Schedule a turn of the scenario."""
        self._clock.put(at, action)

    def run(self, until: float) -> None:
        """Let time pass up to `until`."""
        while (action := self._clock.pop(until)) is not None:
            action()

    def run_until(self, condition: Callable[[], bool], *, limit_s: float, step_s: float) -> float:
        """Let time pass in steps until `condition` holds; how long that took.

        Raises:
            TimeoutError: it did not within `limit_s`.
        """
        began = self.now
        while not condition():
            if self.now - began >= limit_s:
                raise TimeoutError(f"still not so after {limit_s} virtual seconds")
            self.run(self.now + step_s)
        return self.now - began

    # -- inside

    def _deliver(self, host: Host[M], event: Event) -> None:
        machine = host.machine
        if machine is None:
            return
        if host.is_paused:
            host.held.append(event)
            return
        self.events += 1
        if self._trace is not None:
            self._trace.update(f"{self.now!r} {host.number} {event!r}\n".encode())
        self._execute(host, machine.handle(event, now=self.now))

    def _execute(self, host: Host[M], effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, SendDatagram):
                self._send_datagram(host, effect)
            elif isinstance(effect, SendStream):
                self._send_stream(host, effect)
            elif isinstance(effect, Notify):
                host.notices[effect.event] += 1
                self.notices.append((self.now, host.number, effect))
            elif self._perform is not None:
                self._perform(host, effect)
        if self._checks and host.machine is not None:
            host.machine.check()
        self._arm(host)

    def _send_datagram(self, host: Host[M], effect: SendDatagram) -> None:
        host.sent += 1
        if self._size_of is not None:
            host.sent_bytes += self._size_of(effect.message)
        receiver = self._at.get(effect.address)
        if receiver is None or receiver.machine is None:
            return
        event = DatagramReceived(host.node, host.address, effect.message)
        for delay_s in self.network.datagram(host.number, receiver.number):
            self._post(receiver, delay_s, event)

    def _send_stream(self, host: Host[M], effect: SendStream) -> None:
        receiver = self._of.get(effect.node)
        if receiver is host:
            self._post(host, 0.0, StreamReceived(host.node, effect.message))
            return
        if receiver is None or receiver.machine is None:
            delay_s = CONNECT_TIMEOUT_S if receiver is None else self.network.link.latency_s * 2
            self._post(host, delay_s, PeerUnreachable(effect.node, "connection refused"))
            return
        delay_s = self.network.stream(host.number, receiver.number)
        if delay_s is None:
            event = PeerUnreachable(effect.node, "connection timed out")
            self._post(host, CONNECT_TIMEOUT_S, event)
            return
        pair = (host.number, receiver.number)
        # A stream keeps its order: nothing overtakes the frame before it.
        at = max(self.now + delay_s, self._last_frame_s.get(pair, 0.0))
        self._last_frame_s[pair] = at
        self._post(receiver, at - self.now, StreamReceived(host.node, effect.message))

    def _post(self, host: Host[M], delay_s: float, event: Event) -> None:
        life = host.life

        def arrive() -> None:
            if host.life == life:
                self._deliver(host, event)

        self._clock.put(self.now + delay_s, arrive)

    def _arm(self, host: Host[M]) -> None:
        if host.machine is None:
            return
        host.timer = host.machine.deadline()
        # A later deadline waits for the wake-up that is in the heap already.
        if host.timer is not None and (host.wakes is None or host.timer < host.wakes):
            self._put_wake(host, host.timer)

    def _put_wake(self, host: Host[M], at: float) -> None:
        host.wakes = at
        host.wake_count += 1
        count = host.wake_count

        def wake() -> None:
            if host.wake_count != count:
                return
            host.wakes = None
            if host.timer is None or host.is_paused:
                return
            if host.timer > self.now:
                self._put_wake(host, host.timer)
            else:
                self._deliver(host, TimerFired())

        self._clock.put(at, wake)
