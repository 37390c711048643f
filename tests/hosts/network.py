"""Virtual hosts: network namespaces on one bridge, each with its own address and loopback.

The bridge lives in a namespace of its own, so a run touches no interface of the machine, and
deleting the namespaces removes all it made.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import psutil

SUBNET = "10.77.0"


def missing_permission() -> str | None:
    """Why virtual hosts cannot be made here, or None where they can."""
    if shutil.which("ip") is None:
        return "the program `ip` (iproute2) is not installed"
    name = f"p2p{os.getpid()}t"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"network namespaces are not permitted: {made.stderr.strip()}"
    veth = subprocess.run(
        ["ip", "-n", name, "link", "add", "b0", "type", "bridge"],
        capture_output=True,
        text=True,
        check=False,
    )
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return None if veth.returncode == 0 else f"no bridge can be made: {veth.stderr.strip()}"


@dataclass(frozen=True, slots=True)
class VirtualHost:
    """One namespace with the interface `e0` on the bridge.

    Attributes:
        namespace: its name.
        address: its IPv4 address.
        port: the name of its bridge port, in the switch's namespace.
    """

    namespace: str
    address: str
    port: str

    def command(self, *arguments: str) -> list[str]:
        """`arguments` as a command line that runs on this host."""
        return ["ip", "netns", "exec", self.namespace, *arguments]


@dataclass(slots=True)
class VirtualNetwork:
    """Hosts on a switch.

    Attributes:
        switch: the namespace of the bridge.
        hosts: in order of their addresses.
    """

    switch: str
    hosts: list[VirtualHost] = field(default_factory=list[VirtualHost])

    def unplug(self, host: VirtualHost) -> None:
        """Pull the host's cable: nothing gets in or out, and nobody is told."""
        _ip("-n", self.switch, "link", "set", host.port, "down")

    def plug(self, host: VirtualHost) -> None:
        """Put it back."""
        _ip("-n", self.switch, "link", "set", host.port, "up")


@contextlib.contextmanager
def virtual_network(count: int) -> Iterator[VirtualNetwork]:
    """`count` hosts, removed at the end whatever happens."""
    _remove_abandoned()
    prefix = f"p2p{os.getpid()}"
    switch = f"{prefix}s"
    names = [f"{prefix}h{number}" for number in range(1, count + 1)]
    try:
        network = VirtualNetwork(switch)
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge0", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge0", "up")
        for number, name in enumerate(names, start=1):
            port = f"port{number}"
            address = f"{SUBNET}.{number}"
            _ip("netns", "add", name)
            _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "e0", "netns", name)
            _ip("-n", switch, "link", "set", port, "master", "bridge0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "e0")
            _ip("-n", name, "link", "set", "e0", "up")
            _ip("-n", name, "route", "add", "224.0.0.0/4", "dev", "e0")
            network.hosts.append(VirtualHost(name, address, port))
        yield network
    finally:
        for name in [*names, switch]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _remove_abandoned() -> None:
    """Remove what runs left that were killed before they could."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False)
    for line in listed.stdout.splitlines():
        name = line.split()[0] if line.split() else ""
        owner = re.fullmatch(r"p2p(\d+)(?:s|t|h\d+)", name)
        if owner is not None and not psutil.pid_exists(int(owner[1])):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    _run(["ip", *arguments])


def _run(command: Sequence[str]) -> None:
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {finished.stderr.strip()}")
