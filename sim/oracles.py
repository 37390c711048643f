"""What must hold in every run, whatever happens in it.

While time passes, a watch looks at some machines again and again: what each believes of each member
may change in few ways. In the end, when the network is whole and nothing changes any more, what all
of them believe is compared with what is so.

    incarnation     of a member, as one machine sees it, never decreases
    resurrection    one that was dead or had left is live again only with a higher incarnation
    invariants      every machine's own `check()`: queues and tables within bounds, among others
    bounded         what is on its way stays within what the machines can have sent
    agreement       after quiescence every machine holds every owner's newest record
    liveness        after quiescence no running machine is dead or suspected, no stopped one alive
    requests        every request ends, with the tokens that one machine would have generated
    no exception    no machine breaks, and nothing is sent that the wire cannot carry
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Generic, Protocol, TypeVar

from p2pllm.core.swarm import Swarm
from p2pllm.domain.ids import NodeId, short
from p2pllm.domain.records import MemberState
from sim.world import Host, Machine, World

VIOLATIONS_MAX = 20
"""Kept of one run; the first one is what matters."""

BELIEFS_PER_LOOK = 4_096
"""Beliefs compared at a time: all of them in small swarms, some machines in turn in large ones."""

PENDING_PER_HOST = 1_024
"""Most that may be on its way per machine. A machine answers a digest with at most 64 datagrams and
pulls at most 64 bodies at a time, from a few peers at once."""


class HasSwarm(Machine, Protocol):
    """A machine with membership in it."""

    @property
    def swarm(self) -> Swarm:
        """Who is there."""
        ...


H = TypeVar("H", bound=HasSwarm)


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not be.

    Attributes:
        oracle: which rule; see the module's docstring.
        at_s: virtual time at which it was seen.
        detail: what was seen.
    """

    oracle: str
    at_s: float
    detail: str

    def as_dict(self) -> dict[str, object]:
        """For the summary."""
        return asdict(self)


@dataclass(slots=True)
class _Memory:
    """What one machine in one of its lives believed when it was last looked at."""

    life: int
    # Incarnation, and whether it was dead or had left.
    beliefs: dict[NodeId, tuple[int, bool]]
    forgot: int = 0


class Watch(Generic[H]):
    """Looks at the machines of a world.

    Args:
        world: whose.
    """

    def __init__(self, world: World[H]) -> None:
        self.violations: list[Violation] = []
        self._world = world
        self._memories: dict[int, _Memory] = {}
        self._next = 0

    def add(self, oracle: str, detail: str) -> None:
        """Something is wrong."""
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(Violation(oracle, round(self._world.now, 6), detail))

    def look(self) -> None:
        """Compare what some machines believe with what they believed before."""
        hosts = self._world.hosts
        pending = self._world.pending
        if pending > PENDING_PER_HOST * len(hosts):
            self.add("bounded", f"{pending} events are pending")
        for _ in range(min(len(hosts), max(1, BELIEFS_PER_LOOK // len(hosts)))):
            host = hosts[self._next]
            self._next = (self._next + 1) % len(hosts)
            if host.machine is not None and not host.is_paused:
                self._look_at(host, host.machine)

    def _look_at(self, host: Host[H], machine: H) -> None:
        try:
            machine.check()
        except AssertionError as error:
            self.add("invariants", f"m{host.number}: {place_of(error)}")
        memory = self._memories.get(host.number)
        # One that slept for so long that it started over has forgotten what it knew of the dead.
        forgot = host.notices["process_paused"]
        if memory is None or memory.life != host.life or memory.forgot != forgot:
            memory = self._memories[host.number] = _Memory(host.life, {}, forgot)
        beliefs: dict[NodeId, tuple[int, bool]] = {}
        for member in machine.swarm.view().members:
            node, incarnation = member.record.node, member.record.incarnation
            is_gone = member.state >= MemberState.DEAD
            known = memory.beliefs.get(node)
            if known is not None:
                if incarnation < known[0]:
                    change = f"fell from {known[0]} to {incarnation}"
                    self.add("incarnation", f"m{host.number}: that of {short(node)} {change}")
                elif known[1] and not is_gone and incarnation == known[0]:
                    self.add("resurrection", f"m{host.number}: {short(node)} at {incarnation}")
            beliefs[node] = (incarnation, is_gone)
        memory.beliefs = beliefs


def disagreement(
    world: World[H], *, exactly: bool = True, loads: bool = True
) -> tuple[str, str] | None:
    """What keeps the machines that run from agreeing with each other and with what is so.

    Args:
        world: whose.
        exactly: whether records are compared whole, and not just their stamps.
        loads: whether load records are compared too.

    Returns:
        The oracle and what it saw first; None where all agree.
    """
    running = {host.node: host for host in world.hosts if host.machine is not None}
    for host in running.values():
        assert host.machine is not None
        found = 0
        for member in host.machine.swarm.view().members:
            node = member.record.node
            owner = running.get(node)
            if owner is None or owner.machine is None:
                if member.state <= MemberState.SUSPECT:
                    return "liveness", f"m{host.number} takes {member.record.name} for live"
                continue
            found += 1
            own, own_load = owner.machine.swarm.own, owner.machine.swarm.own_load
            about = f"m{host.number} about {member.record.name}"
            if member.state is not MemberState.ALIVE:
                return "liveness", f"{about}: {member.state.name}"
            if member.record.stamp != own.stamp or (exactly and member.record != own):
                return "agreement", f"{about}: record {member.record.stamp}, not {own.stamp}"
            if not loads:
                continue
            theirs = None if member.load is None else member.load.stamp
            ours = None if own_load is None else own_load.stamp
            if theirs != ours or (exactly and member.load != own_load):
                return "agreement", f"{about}: load {theirs}, not {ours}"
        if found != len(running):
            return "agreement", f"m{host.number} knows {found} of {len(running)}"
    return None


def place_of(error: BaseException) -> str:
    """Where an exception comes from, in a line."""
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    file = trace.tb_frame.f_code.co_filename.replace("\\", "/").rsplit("/", 1)[-1]
    text = str(error).splitlines()[0][:200] if str(error) else ""
    return f"{type(error).__name__} at {file}:{trace.tb_lineno} {text}".rstrip()
