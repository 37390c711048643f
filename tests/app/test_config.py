"""How addresses, sizes and names are written, and what is refused."""

from __future__ import annotations

import pytest

from p2pllm.app.config import NodeConfig, is_loopback, is_unspecified, parse_address, parse_size
from p2pllm.domain.errors import ConfigurationError
from p2pllm.domain.records import Address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1:7770", Address("10.0.0.1", 7770)),
        ("desk.local:1", Address("desk.local", 1)),
        ("[fe80::1]:7770", Address("fe80::1", 7770)),
        (" host:0 ", Address("host", 0)),
    ],
)
def test_an_address_is_host_and_port(text: str, expected: Address) -> None:
    assert parse_address(text) == expected


def test_a_missing_port_takes_the_default() -> None:
    assert parse_address("desk", default_port=7770) == Address("desk", 7770)
    assert parse_address("[::1]", default_port=7770) == Address("::1", 7770)
    assert parse_address("::1", default_port=7770) == Address("::1", 7770)


@pytest.mark.parametrize("text", ["", "desk", ":1", "desk:", "desk:99999", "desk:x", "desk:-1"])
def test_anything_else_is_refused_with_the_form_to_write(text: str) -> None:
    with pytest.raises(ConfigurationError, match="HOST:PORT"):
        parse_address(text)


def test_sizes_have_units() -> None:
    assert parse_size("8GiB") == 8 * 2**30
    assert parse_size("500MB") == 500_000_000
    assert parse_size("1024") == 1024
    with pytest.raises(ConfigurationError, match="8GiB"):
        parse_size("lots")


def test_a_config_refuses_what_makes_no_sense() -> None:
    with pytest.raises(ConfigurationError, match="--name"):
        NodeConfig(name="x" * 33)
    with pytest.raises(ConfigurationError, match="--max-layers"):
        NodeConfig(layers_max=0)
    with pytest.raises(ConfigurationError, match="--device"):
        NodeConfig(device="abacus")
    with pytest.raises(ConfigurationError, match="--dtype"):
        NodeConfig(dtype="float8")


def test_loopback_and_every_interface_are_told_apart() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("localhost")
    assert is_loopback("::1")
    assert not is_loopback("192.168.1.2")
    assert is_unspecified("0.0.0.0")
    assert is_unspecified("::")
    assert not is_unspecified("desk")
