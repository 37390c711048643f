from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.domain.errors import RemoteProtocolError
from p2pllm.domain.gossip import GossipMessage
from p2pllm.wire import datagrams
from p2pllm.wire.codec import LocalProtocolError
from p2pllm.wire.datagrams import BODY_BYTES_MAX, decode_datagram, encode_datagram
from tests.wire.strategies import values
from tests.wire.vectors import SAMPLES


@settings(max_examples=100, deadline=None)
@given(values(GossipMessage))
def test_gossip_comes_back_or_is_too_long_to_be_sent(message: Any) -> None:
    try:
        body = encode_datagram(message)
    except LocalProtocolError:
        return
    assert len(body) <= BODY_BYTES_MAX
    assert decode_datagram(body) == message


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=100))
def test_garbage_raises_remote_protocol_error_or_nothing(body: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        decode_datagram(body)


def test_a_body_that_would_be_fragmented_is_neither_sent_nor_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(RemoteProtocolError, match="too long"):
        decode_datagram(bytes(BODY_BYTES_MAX + 1))
    monkeypatch.setattr(datagrams, "BODY_BYTES_MAX", 3)
    with pytest.raises(LocalProtocolError, match="exceeds 3"):
        encode_datagram(SAMPLES[-1])
