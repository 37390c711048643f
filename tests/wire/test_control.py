from __future__ import annotations

from p2pllm.wire.codec import encode
from p2pllm.wire.control import KeepAlive, KeepAliveAck


def test_keeping_a_stream_alive_costs_three_bytes_and_a_prefix() -> None:
    assert [len(encode(message)) for message in (KeepAlive(), KeepAliveAck())] == [3, 3]
