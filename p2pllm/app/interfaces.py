"""Under which addresses a node can be reached."""

from __future__ import annotations

import ipaddress

import psutil

from p2pllm.app.config import is_unspecified
from p2pllm.domain.records import ADDRESSES_MAX, Address


def reachable_addresses(host: str, port: int) -> tuple[Address, ...]:
    """What to tell peers when listening on `host`.

    For "every interface", the addresses of all interfaces that are up, IPv4 first; loopback only
    where there is nothing else.
    """
    if not is_unspecified(host):
        return (Address(host, port),)
    statistics = psutil.net_if_stats()
    found: list[ipaddress.IPv4Address | ipaddress.IPv6Address] = []
    for name, entries in sorted(psutil.net_if_addrs().items()):
        if name not in statistics or not statistics[name].isup:
            continue
        for entry in entries:
            try:
                found.append(ipaddress.ip_address(entry.address))
            except ValueError:
                continue  # a hardware address, or one with a scope
    usable = [item for item in found if not (item.is_loopback or item.is_link_local)]
    chosen = usable or [item for item in found if item.is_loopback]
    chosen.sort(key=lambda item: item.version)
    if host == "0.0.0.0":
        chosen = [item for item in chosen if item.version == 4]
    return tuple(Address(str(item), port) for item in chosen[:ADDRESSES_MAX])
