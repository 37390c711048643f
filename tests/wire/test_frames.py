from __future__ import annotations

import dataclasses
import random
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.domain.errors import RemoteProtocolError
from p2pllm.domain.ids import SessionId
from p2pllm.domain.messages import (
    Activation,
    ActivationType,
    CloseSession,
    Forward,
    Goodbye,
    Hello,
    StreamProbe,
)
from p2pllm.wire.codec import LocalProtocolError
from p2pllm.wire.frames import (
    GREETING_LIMITS,
    PEER_LIMITS,
    PREFIX,
    SCRATCH_BYTES,
    FrameDecoder,
    FrameLimits,
    frame_parts,
)
from p2pllm.wire.tags import TAGS, IncomingMessage, PeerMessage
from tests.wire.strategies import values
from tests.wire.vectors import SAMPLES, SESSION


def forward(rows: int, columns: int) -> Forward:
    kind = ActivationType.BFLOAT16
    data = random.Random(rows).randbytes(rows * columns * 2)
    activation = Activation(kind, rows, columns, data)
    return Forward(SESSION, 1, 0, 1, 0, (1,) * rows, False, activation=activation)


def frame(message: Any) -> bytes:
    return b"".join(frame_parts(message))


def peer_decoder() -> FrameDecoder:
    return FrameDecoder(PeerMessage, PEER_LIMITS)


@settings(max_examples=60, deadline=None)
@given(st.lists(values(PeerMessage), max_size=6), st.data())
def test_frames_come_back_however_the_stream_is_cut(
    messages: list[Any], data: st.DataObject
) -> None:
    stream = b"".join(frame(message) for message in messages)
    decoder, decoded = peer_decoder(), []
    start = 0
    while start < len(stream):
        size = data.draw(st.integers(1, max(1, len(stream) - start)))
        decoded += decoder.feed(stream[start : start + size])
        start += size
    assert decoded == messages


@pytest.mark.parametrize("piece", [1, 7, 100, 8_192, SCRATCH_BYTES, 2**22])
def test_payloads_larger_than_the_scratch_buffer_come_back(piece: int) -> None:
    messages = [forward(1, 64), forward(17, 4_096), StreamProbe(1), forward(2, 5), StreamProbe(2)]
    if piece == 1:
        messages[1] = forward(2, 40_000)
    stream = b"".join(frame(message) for message in messages)
    decoder = peer_decoder()
    decoded: list[Any] = []
    for start in range(0, len(stream), piece):
        decoded += decoder.feed(stream[start : start + piece])
    assert decoded == messages


def test_many_frames_that_do_not_align_with_the_scratch_buffer_come_back() -> None:
    source = random.Random(1)
    messages: list[Any] = [
        StreamProbe(number) if source.random() < 0.7 else forward(1, source.randrange(1, 9_000))
        for number in range(2_000)
    ]
    decoder = peer_decoder()
    assert decoder.feed(b"".join(frame(message) for message in messages)) == messages


def test_a_header_longer_than_the_scratch_buffer_comes_back_and_its_room_is_given_back() -> None:
    later_fields = [bytes(1_000)] * 100  # As a newer version may append.
    header = msgpack.packb([TAGS[Goodbye], ["bye", *later_fields]])
    assert len(header) > SCRATCH_BYTES
    long, short = PREFIX.pack(len(header), 0) + header, frame(Goodbye("short"))
    decoder = FrameDecoder(Goodbye, PEER_LIMITS)
    assert decoder.feed(short + long + short) == [
        Goodbye("short"),
        Goodbye("bye"),
        Goodbye("short"),
    ]
    assert len(decoder.buffer()) <= SCRATCH_BYTES


def test_the_payload_is_received_into_the_buffer_that_is_handed_on() -> None:
    message = forward(100, 4_096)
    stream = frame(message)
    decoder = peer_decoder()
    decoder.feed(stream[:1_000])
    target = decoder.buffer()
    assert len(target) == len(stream) - 1_000
    target[:] = stream[1_000:]
    decoder.received(len(target))
    received = decoder.next()
    assert received == message
    assert isinstance(received.activation.data, bytearray)
    assert received.activation.data is target.obj


def test_the_payload_is_not_copied_to_be_sent() -> None:
    message = forward(4, 64)
    assert message.activation is not None
    part = frame_parts(message)[1]
    assert isinstance(part, memoryview)
    assert part.obj is message.activation.data


@pytest.mark.parametrize("lengths", [(2**32 - 1, 0), (0, 2**32 - 1), (4_097, 0), (10, 1)])
def test_lengths_beyond_the_limits_are_refused_before_room_is_made(
    lengths: tuple[int, int],
) -> None:
    decoder = FrameDecoder(Hello, GREETING_LIMITS)
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError, match="too long"):
            decoder.feed(PREFIX.pack(*lengths))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("payload", [0, 11, 13, 2**20])
def test_a_payload_that_does_not_measure_what_the_header_says_is_refused(payload: int) -> None:
    stream = frame(forward(2, 3))
    header = stream[PREFIX.size : -12]
    with pytest.raises(RemoteProtocolError, match="does not measure"):
        peer_decoder().feed(PREFIX.pack(len(header), payload) + header + bytes(64))


def test_a_payload_beside_a_message_without_activation_is_refused() -> None:
    header = frame(StreamProbe(1))[PREFIX.size :]
    with pytest.raises(RemoteProtocolError, match="does not measure"):
        peer_decoder().feed(PREFIX.pack(len(header), 4) + header + b"1234")


def test_an_activation_whose_data_does_not_fit_is_not_sent() -> None:
    message = forward(2, 3)
    assert message.activation is not None
    short = dataclasses.replace(message.activation, data=b"12345678901")
    with pytest.raises(LocalProtocolError, match="12 bytes has 11"):
        frame_parts(dataclasses.replace(message, activation=short))


def test_a_frame_beyond_the_limits_is_not_sent() -> None:
    with pytest.raises(LocalProtocolError, match="header"):
        frame_parts(CloseSession(SESSION, 1), FrameLimits(4, 0))
    with pytest.raises(LocalProtocolError, match="activation"):
        frame_parts(forward(1, 10), FrameLimits(1_000, 19))


def test_what_may_come_can_change_from_one_frame_to_the_next() -> None:
    hello = SAMPLES[0]
    decoder = FrameDecoder(Hello, GREETING_LIMITS)
    stream = frame(hello) + frame(forward(1, 4_096))
    target = decoder.buffer()
    target[: len(stream)] = stream
    decoder.received(len(stream))
    assert decoder.next() == hello
    decoder.expect(IncomingMessage, PEER_LIMITS)
    assert decoder.next() == forward(1, 4_096)
    assert decoder.next() is None


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 40), st.integers(0, 40))
def test_garbage_raises_remote_protocol_error_or_waits(data: bytes, header: int, pay: int) -> None:
    for stream in (data, PREFIX.pack(header, pay) + data, PREFIX.pack(len(data), pay) + data):
        try:
            for message in peer_decoder().feed(stream):
                assert type(message.session) is str or message.sequence >= 0
        except RemoteProtocolError:
            pass


def test_the_longest_first_step_fits_a_header() -> None:
    from p2pllm.domain.generation import Hop, SamplingParameters
    from p2pllm.domain.ids import ModelId, NodeId
    from p2pllm.domain.layers import LayerRange
    from p2pllm.domain.messages import SessionSetup

    big = 2**31 - 1
    setup = SessionSetup(
        NodeId("f" * 32),
        ModelId("m" * 128),
        "f" * 64,
        (Hop(NodeId("f" * 32), LayerRange(65_534, 65_535)),) * 256,
        2**24,
        2**24,
        SamplingParameters(logit_bias=((big, 1.5),) * 300),
        (big,) * 64,
    )
    message = Forward(SessionId("f" * 32), big, 2**24, 255, 2**24, (big,) * 512, True, setup)
    assert len(frame(message)) < PEER_LIMITS.header_bytes_max / 4
