"""What a node is told at its start, and how such values are written."""

from __future__ import annotations

import ipaddress
import platform
from dataclasses import dataclass, field
from pathlib import Path

from platformdirs import user_data_path
from pydantic import ByteSize, TypeAdapter, ValidationError

from p2pllm.domain.errors import ConfigurationError
from p2pllm.domain.records import NODE_NAME_LENGTH_MAX, Address

DEFAULT_LISTEN = Address("0.0.0.0", 7770)
DEFAULT_API = Address("127.0.0.1", 7771)

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def default_data_dir() -> Path:
    """Where a node keeps its keys and memory unless told otherwise."""
    return user_data_path("p2pllm", appauthor=False)


def default_name() -> str:
    """The host's name, cut to what a record holds."""
    name = platform.node().split(".")[0] or "node"
    return name.encode()[:NODE_NAME_LENGTH_MAX].decode(errors="ignore")


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """How one node is to run.

    Attributes:
        data_dir: its folder; one running node per folder.
        name: for people.
        listen: where peers reach it; TCP and UDP on the same port, 0 takes a free one.
        api: where clients reach it; port 0 takes a free one.
        join: invites, and addresses of members.
        models: references the swarm shall serve.
        memory_bytes: for weights and KV cache; None takes half of what is free at the start.
        layers_max: most layers to hold; None for as many as fit.
        threads: torch threads; None for one per physical core.
        device: one of `DEVICES`.
        dtype: one of `DTYPES`.
        mdns: whether to announce and look for peers on the local network.
        is_open: whether whoever asks is let in without an invite.
    """

    data_dir: Path = field(default_factory=default_data_dir)
    name: str = field(default_factory=default_name)
    listen: Address = DEFAULT_LISTEN
    api: Address = DEFAULT_API
    join: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    memory_bytes: int | None = None
    layers_max: int | None = None
    threads: int | None = None
    device: str = "auto"
    dtype: str = "auto"
    mdns: bool = True
    is_open: bool = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.name.encode()) <= NODE_NAME_LENGTH_MAX:
            raise ConfigurationError(
                f"a node's name has 1 to {NODE_NAME_LENGTH_MAX} bytes; choose one with --name"
            )
        if self.device not in DEVICES:
            raise ConfigurationError(f"--device is one of {', '.join(DEVICES)}")
        if self.dtype not in DTYPES:
            raise ConfigurationError(f"--dtype is one of {', '.join(DTYPES)}")
        for value, option in (
            (self.layers_max, "--max-layers"),
            (self.threads, "--threads"),
            (self.memory_bytes, "--memory"),
        ):
            if value is not None and value < 1:
                raise ConfigurationError(f"{option} must be at least 1")


def parse_address(text: str, *, default_port: int | None = None) -> Address:
    """`HOST:PORT`, `[IPV6]:PORT`, or `HOST` where a port is known.

    Raises:
        ConfigurationError: it is none of these.
    """
    host, separator, port = text.strip().rpartition(":")
    if text.endswith("]") or not separator or (":" in host and not host.startswith("[")):
        host, port = text.strip(), "" if default_port is None else str(default_port)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ConfigurationError(f"{text!r} is not an address; write HOST:PORT")
    return Address(host, int(port))


def parse_size(text: str) -> int:
    """Bytes of `8GiB`, `500MB`, `1073741824`.

    Raises:
        ConfigurationError: it is not a size.
    """
    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise ConfigurationError(f"{text!r} is not a size; write for example 8GiB") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_unspecified(host: str) -> bool:
    """Whether `host` means every interface."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host == ""
