"""Sockets a node listens on: one port number, TCP for streams and UDP for datagrams."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import socket
import struct
import termios
from typing import Final, NamedTuple

from p2pllm.domain.errors import ConfigurationError
from p2pllm.domain.records import Address

BACKLOG: Final = 256
"""Connections the kernel holds while the loop is busy; a mass restart of 100 peers fits."""

_FREE_PORT_ATTEMPTS: Final = 32


class Ports(NamedTuple):
    """A listening TCP socket and a UDP socket on the same host and port, both non-blocking."""

    stream: socket.socket
    datagram: socket.socket

    @property
    def port(self) -> int:
        """The number both have."""
        return int(self.stream.getsockname()[1])

    def close(self) -> None:
        """Give both back; for when nothing took them over."""
        self.stream.close()
        self.datagram.close()


def bind_ports(host: str, port: int) -> Ports:
    """Bind TCP and UDP to one number.

    Args:
        host: an address of this machine; empty for all, IPv6 and IPv4.
        port: 0 takes any number that is free for both.

    Raises:
        ConfigurationError: the port is taken, or the host is none of this machine's.
    """
    for _ in range(_FREE_PORT_ATTEMPTS):
        stream = bind_stream(host, port)
        try:
            datagram = _bind(host, int(stream.getsockname()[1]), socket.SOCK_DGRAM)
        except OSError as error:
            stream.close()
            if port or error.errno != errno.EADDRINUSE:
                raise _explain(error, host, port) from error
            continue
        return Ports(stream, datagram)
    raise ConfigurationError(f"No port is free for both TCP and UDP on {host or 'any address'}.")


def bind_stream(host: str, port: int) -> socket.socket:
    """Bind and listen on TCP alone; like `bind_ports` otherwise."""
    try:
        listener = _bind(host, port, socket.SOCK_STREAM)
    except OSError as error:
        raise _explain(error, host, port) from error
    listener.listen(BACKLOG)
    return listener


def _bind(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
    if host:
        found = socket.getaddrinfo(host, port, type=kind, flags=socket.AI_PASSIVE)
        return _bind_one(found[0][0], kind, found[0][4])
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return _bind_one(socket.AF_INET6, kind, ("::", port))
    # Where IPv6 is off, or the port is taken: the second attempt says which.
    return _bind_one(socket.AF_INET, kind, ("0.0.0.0", port))


def _bind_one(
    family: socket.AddressFamily | int, kind: socket.SocketKind, address: tuple[object, ...]
) -> socket.socket:
    bound = socket.socket(family, kind)
    try:
        bound.setblocking(False)
        if kind is socket.SOCK_STREAM:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            only_v6 = address[0] != "::"
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_v6)
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound


def _explain(error: OSError, host: str, port: int) -> ConfigurationError:
    where = f"{host or 'any address'}, port {port}"
    if error.errno == errno.EADDRINUSE:
        return ConfigurationError(
            f"Cannot listen on {where}: the port is in use. Stop what uses it or choose another."
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return ConfigurationError(
            f"Cannot listen on {where}: not permitted. Choose a port above 1023."
        )
    if error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return ConfigurationError(
            f"Cannot listen on {where}: this machine has no such address. Check the host."
        )
    return ConfigurationError(f"Cannot listen on {where}: {error.strerror or error}.")


def source_address(raw: tuple[object, ...]) -> Address:
    """A peer's address as sockets give it, with IPv4 in its own form on dual-stack sockets."""
    host = str(raw[0])
    if host.startswith("::ffff:") and "." in host:
        host = host.removeprefix("::ffff:")
    return Address(host, int(str(raw[1])))


def is_ip(host: str) -> bool:
    """Whether `host` is an address rather than a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def unacknowledged_bytes(descriptor: int) -> int:
    """Bytes in a TCP socket's send queue that the peer's kernel has not taken; 0 if unknown."""
    try:
        answer = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):
        return 0
    return int(struct.unpack("i", answer)[0])
