from __future__ import annotations

from dataclasses import replace

import pytest

from p2pllm.core.effects import Effect, SendDatagram, SendStream
from p2pllm.core.events import DatagramReceived, StreamReceived
from p2pllm.domain.gossip import DATAGRAM_BYTES_MAX, Bodies, Gossip, Headline, Nack, News
from p2pllm.domain.messages import Forward, StreamProbe
from p2pllm.domain.records import MemberState
from p2pllm.wire.codec import LocalProtocolError, decode
from p2pllm.wire.datagrams import BODY_BYTES_MAX, decode_datagram, encode_datagram
from sim.swarms import Options, SwarmWorld, address_of, node_id, own_record
from sim.wire import (
    CERTIFICATE_BYTES,
    DATAGRAM_OVERHEAD_BYTES,
    FrameReader,
    PlainSigner,
    datagram_size,
    frame_bytes,
)
from tests.sim.test_world import got, say, two
from tests.wire.vectors import SAMPLES

NACK_BYTES = 4
"""[67, [7]]: two arrays of one byte each, and two small integers."""


def headlines(count: int) -> Gossip:
    members = tuple(
        Headline(node_id(i), 2**62, 2**62, 2**62, MemberState.SUSPECT, node_id(i + 1))
        for i in range(count)
    )
    return Gossip(News(members))


def test_a_body_limit_leaves_room_for_the_seal_and_is_what_was_designed() -> None:
    assert BODY_BYTES_MAX == 1_168
    assert BODY_BYTES_MAX + DATAGRAM_OVERHEAD_BYTES == 1_280 == DATAGRAM_BYTES_MAX + 48


def test_a_datagram_arrives_as_an_equal_copy_and_its_bytes_are_counted() -> None:
    world, hosts = two()
    sent = headlines(3)
    say(world, hosts[0], SendDatagram(address_of(1), Nack(7)))
    assert hosts[0].sent_bytes == NACK_BYTES + DATAGRAM_OVERHEAD_BYTES == datagram_size(Nack(7))
    say(world, hosts[0], SendDatagram(address_of(1), sent))
    world.run(1.0)
    ((_, first), (_, second)) = sorted(got(hosts[1]), key=lambda entry: len(repr(entry)))
    assert isinstance(first, DatagramReceived)
    assert first.message == Nack(7)
    assert isinstance(second, DatagramReceived)
    assert second.message == sent
    assert second.message is not sent


def test_a_datagram_that_is_too_long_breaks_the_run() -> None:
    world, hosts = two()
    with pytest.raises(LocalProtocolError, match="exceeds 1168"):
        say(world, hosts[0], SendDatagram(address_of(1), headlines(30)))
    plain, plain_hosts = two(wire=False)
    say(plain, plain_hosts[0], SendDatagram(address_of(1), headlines(30)))
    plain.run(1.0)
    assert len(got(plain_hosts[1])) == 1
    assert plain_hosts[0].sent_bytes == 0


def test_frames_arrive_as_equal_copies_and_their_bytes_are_counted() -> None:
    world, hosts = two()
    frames: list[Effect] = [SendStream(node_id(1), StreamProbe(i)) for i in range(3)]
    say(world, hosts[0], *frames)
    world.run(1.0)
    messages = [event.message for _, event in got(hosts[1]) if isinstance(event, StreamReceived)]
    assert messages == [StreamProbe(i) for i in range(3)]
    assert hosts[0].stream_bytes == 3 * len(frame_bytes(StreamProbe(0)))


def test_an_activation_keeps_its_bytes_and_one_that_lies_about_its_length_breaks_the_run() -> None:
    (forward,) = (sample for sample in SAMPLES if isinstance(sample, Forward))
    read = FrameReader().read(frame_bytes(forward))
    assert isinstance(read, Forward)
    assert forward.activation is not None
    assert read.activation is not None
    assert bytes(read.activation.data) == bytes(forward.activation.data)
    longer = replace(forward.activation, data=bytes(13))
    with pytest.raises(LocalProtocolError):
        frame_bytes(replace(forward, activation=longer))


def test_what_is_signed_is_the_record_as_the_wire_has_it() -> None:
    record = own_record(3, 9)
    signed = PlainSigner().node(record)
    assert decode(signed.payload, type(record)) == record
    assert len(signed.certificate) == CERTIFICATE_BYTES
    assert PlainSigner().node(record) == signed
    assert PlainSigner().node(own_record(3, 10)).signature != signed.signature
    assert decode_datagram(encode_datagram(Bodies((signed,)))) == Bodies((signed,))


def test_the_bytes_are_part_of_the_trace() -> None:
    def trace(number: int) -> str:
        world, hosts = two(traces=True)
        say(world, hosts[0], SendDatagram(address_of(1), Nack(number)))
        world.run(1.0)
        return world.trace

    assert trace(1) == trace(1) != trace(2)


def test_a_swarm_over_the_wire_comes_to_the_same_as_one_without() -> None:
    def settled(wire: bool) -> list[object]:
        world = SwarmWorld(6, 3, Options(wire=wire))
        world.start_all()
        world.world.run(20)
        assert world.agree()
        return [world.world.events, [world.swarm(i).view().members for i in range(6)]]

    assert settled(True) == settled(False)
