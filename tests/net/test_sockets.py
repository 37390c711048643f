from __future__ import annotations

import contextlib
import socket

import pytest

from p2pllm.domain.errors import ConfigurationError
from p2pllm.domain.records import Address
from p2pllm.net import sockets
from p2pllm.net.sockets import bind_ports, bind_stream, source_address, unacknowledged_bytes


def test_both_sockets_get_the_same_port() -> None:
    ports = bind_ports("127.0.0.1", 0)
    try:
        assert ports.port == ports.datagram.getsockname()[1] > 0
    finally:
        ports.close()


def test_a_number_that_is_taken_for_datagrams_is_passed_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        first = [taken.getsockname()[1]]
        real = sockets.bind_stream
        monkeypatch.setattr(
            sockets, "bind_stream", lambda host, port: real(host, first.pop() if first else port)
        )
        ports = bind_ports("127.0.0.1", 0)
        ports.close()
        assert ports.stream.fileno() == -1
        assert not first


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_port_in_use_is_explained_in_one_line(host: str, kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as taken:
        taken.bind(("127.0.0.1" if host else "0.0.0.0", 0))
        if kind is socket.SOCK_STREAM:
            taken.listen()
        with pytest.raises(ConfigurationError, match="in use") as caught:
            bind_ports(host, taken.getsockname()[1])
    assert "\n" not in str(caught.value)
    assert "choose another" in str(caught.value)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_a_host_of_another_machine_is_explained(host: str) -> None:
    with pytest.raises(ConfigurationError, match="no such address"):
        bind_stream(host, 0)


def test_all_addresses_are_listened_on_where_none_is_named() -> None:
    ports = bind_ports("", 0)
    try:
        with socket.create_connection(("127.0.0.1", ports.port), 1):
            pass
        if ports.stream.family == socket.AF_INET6:
            with socket.create_connection(("::1", ports.port), 1):
                pass
    finally:
        ports.close()


def test_ipv4_peers_look_the_same_on_every_socket() -> None:
    assert source_address(("::ffff:10.0.0.1", 5, 0, 0)) == Address("10.0.0.1", 5)
    assert source_address(("10.0.0.1", 5)) == Address("10.0.0.1", 5)
    assert source_address(("fe80::1%eth0", 5, 0, 2)) == Address("fe80::1%eth0", 5)


def test_what_the_peer_has_not_taken_is_known() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname())
        receiver, _ = server.accept()
        with sender, receiver:
            assert unacknowledged_bytes(sender.fileno()) == 0
            sender.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while sender.send(bytes(65_536)):
                    pass
            assert unacknowledged_bytes(sender.fileno()) > 0
    assert unacknowledged_bytes(-1) == 0
