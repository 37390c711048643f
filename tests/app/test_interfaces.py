"""What a node tells peers about where it listens."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import psutil
import pytest

from p2pllm.app.interfaces import reachable_addresses
from p2pllm.domain.records import Address


@pytest.fixture
def interfaces(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[dict[str, tuple[bool, list[str]]]], None]:
    def use(found: dict[str, tuple[bool, list[str]]]) -> None:
        monkeypatch.setattr(
            psutil,
            "net_if_stats",
            lambda: {n: SimpleNamespace(isup=up) for n, (up, _) in found.items()},
        )
        monkeypatch.setattr(
            psutil,
            "net_if_addrs",
            lambda: {
                n: [SimpleNamespace(address=a) for a in items] for n, (_, items) in found.items()
            },
        )

    return use


def test_a_given_host_is_the_only_address() -> None:
    assert reachable_addresses("10.0.0.5", 7) == (Address("10.0.0.5", 7),)


def test_every_interface_means_those_that_are_up_without_loopback(interfaces) -> None:
    interfaces(
        {
            "lo": (True, ["127.0.0.1", "::1"]),
            "eth0": (True, ["192.168.1.2", "2001:db8::2", "fe80::1%eth0", "aa:bb:cc:dd:ee:ff"]),
            "eth1": (False, ["192.168.2.2"]),
        }
    )
    assert reachable_addresses("::", 7) == (Address("192.168.1.2", 7), Address("2001:db8::2", 7))
    assert reachable_addresses("0.0.0.0", 7) == (Address("192.168.1.2", 7),)


def test_a_machine_without_network_is_reached_over_loopback(interfaces) -> None:
    interfaces({"lo": (True, ["127.0.0.1"])})
    assert reachable_addresses("0.0.0.0", 7) == (Address("127.0.0.1", 7),)
