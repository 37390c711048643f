"""Finding each other on the local network by multicast DNS (RFC 6762, RFC 6763).

A node announces `<node id>._p2pllm._tcp.local.` with its addresses, its port and, in TXT, which
swarm it is of and which protocol it speaks. Anybody on the network can announce anything, so what
is heard is a hint where to knock, bounded in number; who is there is proven by TLS and by the seal
of datagrams. Where multicast does not work (virtual networks, containers, some access points),
one warning says what to do instead, and the node runs on.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import structlog
from zeroconf import (
    BadTypeInNameException,
    InterfaceChoice,
    IPVersion,
    ServiceStateChange,
    Zeroconf,
)
from zeroconf import Error as ZeroconfError
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from p2pllm.domain.ids import NodeId, SwarmId, is_node_id
from p2pllm.domain.messages import PROTOCOL_VERSION
from p2pllm.domain.records import ADDRESSES_MAX, Address

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

SERVICE: Final = "_p2pllm._tcp.local."
SWARM_DIGITS: Final = 16
"""How much of the swarm's id is announced: enough to tell swarms apart, useless for joining."""

FOUND_MAX: Final = 1_024
"""Announcements remembered; what a flood of invented ones can take."""

LOOKUPS_MAX: Final = 32
LOOKUP_TIMEOUT_MS: Final = 3_000
REPORT_INTERVAL_S: Final = 30.0
"""How often what was found is reported again: a peer may have been down, or the network split."""

STOP_TIMEOUT_S: Final = 2.0
"""For the goodbye packets."""

IPv4Address = ipaddress.IPv4Address
IPv6Address = ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Announcement:
    """What somebody claims.

    Attributes:
        swarm: the first 16 hexadecimal digits of its id.
        node: who.
        version: the newest protocol it speaks.
        addresses: where.
    """

    swarm: str
    node: NodeId
    version: int
    addresses: tuple[Address, ...]


class Mdns:
    """Announces this node and reports others; `async with` starts both in the background.

    Args:
        node: this one; None to look without announcing.
        swarm: whose nodes are reported; None for all.
        addresses: where this node listens; names and more than one port are left out.
        loopback_only: announce and look on this machine alone.
        on_found: gets (address, node) for each address of each node of the swarm, again every
            `REPORT_INTERVAL_S`.
        interfaces: addresses of the interfaces to use, in place of all.
    """

    def __init__(
        self,
        *,
        node: NodeId | None,
        swarm: SwarmId | None,
        addresses: tuple[Address, ...],
        on_found: Callable[[Address, NodeId], None],
        loopback_only: bool = False,
        interfaces: list[str] | None = None,
    ) -> None:
        self._node = node
        self._swarm = None if swarm is None else swarm[:SWARM_DIGITS]
        self._addresses = addresses
        self._on_found = on_found
        self._interfaces = ["127.0.0.1"] if loopback_only and interfaces is None else interfaces
        self._found: dict[str, Announcement] = {}  # By service name, of any swarm.
        self._lookups: dict[str, asyncio.Task[None]] = {}
        self._tasks = asyncio.TaskGroup()
        self._running: asyncio.Task[None] | None = None

    def found(self) -> list[Announcement]:
        """All announcements that stand, of any swarm; for who has none yet."""
        return list(self._found.values())

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._running = self._tasks.create_task(self._run())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._running is not None:
            self._running.cancel()
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            await self._tasks.__aexit__(kind, error, trace)
        else:  # The caller's own error goes on as it is, not as a group of one.
            await self._tasks.__aexit__(None, None, None)

    async def _run(self) -> None:
        try:
            zeroconf = self._open()
        except (OSError, ZeroconfError) as error:
            _warn(error)
            return
        browser: AsyncServiceBrowser | None = None
        try:
            await asyncio.wait_for(zeroconf.zeroconf.async_wait_for_start(), STOP_TIMEOUT_S)
            browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE, handlers=[self._changed])
            service = self._service()
            if service is not None:
                await (await zeroconf.async_register_service(service, allow_name_change=False))
            while True:
                await asyncio.sleep(REPORT_INTERVAL_S)
                await self._follow_interfaces(zeroconf)
                for announcement in tuple(self._found.values()):
                    self._report(announcement)
        except (OSError, ZeroconfError, TimeoutError) as error:
            _warn(error)
        finally:
            for task in tuple(self._lookups.values()):
                task.cancel()
            with contextlib.suppress(OSError, ZeroconfError, TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    if browser is not None:
                        await browser.async_cancel()
                    await zeroconf.async_unregister_all_services()
            with contextlib.suppress(OSError, ZeroconfError):
                await zeroconf.async_close()

    def _open(self) -> AsyncZeroconf:
        if self._interfaces is not None:
            return AsyncZeroconf(interfaces=list(self._interfaces))
        try:
            return AsyncZeroconf(interfaces=InterfaceChoice.All, ip_version=IPVersion.All)
        except OSError:  # No IPv6 here.
            return AsyncZeroconf(interfaces=InterfaceChoice.All, ip_version=IPVersion.V4Only)

    async def _follow_interfaces(self, zeroconf: AsyncZeroconf) -> None:
        """Use interfaces that came up since; where the library is too old to, stay with those."""
        update: Any = getattr(zeroconf, "async_update_interfaces", None)
        if update is not None and self._interfaces is None:
            with contextlib.suppress(OSError, ZeroconfError):
                await update(InterfaceChoice.All)

    def _service(self) -> AsyncServiceInfo | None:
        hosts = [
            host
            for address in self._addresses
            if address.port == self._addresses[0].port
            and (host := _ip(address.host)) is not None
            and not host.is_unspecified
        ]
        if self._node is None or not hosts:
            return None
        return AsyncServiceInfo(
            SERVICE,
            f"{self._node}.{SERVICE}",
            addresses=[host.packed for host in hosts],
            port=self._addresses[0].port,
            properties={
                "swarm": self._swarm or "",
                "node": self._node,
                "version": str(PROTOCOL_VERSION),
            },
            server=f"p2pllm-{self._node}.local.",
        )

    def _changed(
        self,
        zeroconf: Zeroconf,
        service_type: str,
        name: str,
        state_change: ServiceStateChange,
    ) -> None:
        """A service came, changed or went. The names are the library's."""
        if state_change is ServiceStateChange.Removed:
            self._found.pop(name, None)
        elif name not in self._lookups and len(self._lookups) < LOOKUPS_MAX:
            task = self._tasks.create_task(self._look_up(zeroconf, name))
            self._lookups[name] = task
            task.add_done_callback(lambda _: self._lookups.pop(name, None))

    async def _look_up(self, zeroconf: Zeroconf, name: str) -> None:
        try:
            info = AsyncServiceInfo(SERVICE, name)
            if not await info.async_request(zeroconf, LOOKUP_TIMEOUT_MS):
                return
        except (OSError, ZeroconfError, BadTypeInNameException):
            return
        announcement = read_announcement(info.properties, info.parsed_scoped_addresses(), info.port)
        if announcement is None or announcement.node == self._node:
            return
        if name in self._found or len(self._found) < FOUND_MAX:
            self._found[name] = announcement
            self._report(announcement)

    def _report(self, announcement: Announcement) -> None:
        if self._swarm is None or announcement.swarm == self._swarm:
            for address in announcement.addresses:
                self._on_found(address, announcement.node)


def read_announcement(
    properties: dict[bytes, bytes | None], hosts: list[str], port: int | None
) -> Announcement | None:
    """What a service says, or None where it is none of ours."""
    node = _text(properties.get(b"node"))
    swarm = _text(properties.get(b"swarm"))
    version = _text(properties.get(b"version"))
    if not is_node_id(node) or len(swarm) != SWARM_DIGITS or not set(swarm) <= _HEXADECIMAL:
        return None
    if not (version.isascii() and version.isdecimal() and len(version) <= 5):
        return None
    if not hosts or port is None or not 0 < port < 65_536:
        return None
    addresses = tuple(Address(host, port) for host in hosts[:ADDRESSES_MAX])
    return Announcement(swarm, NodeId(node), int(version), addresses)


_HEXADECIMAL = frozenset("0123456789abcdef")


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode(errors="replace")


def _ip(host: str) -> IPv4Address | IPv6Address | None:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host)
    return None


def _warn(error: Exception) -> None:
    _log.warning(
        "mdns_unavailable",
        detail=str(error) or type(error).__name__,
        hint="peers are not found by themselves; name one with --join HOST:PORT",
    )
