from __future__ import annotations

import typing

from p2pllm.domain import gossip
from p2pllm.domain.gossip import Headline, News, Ping
from p2pllm.domain.ids import NodeId
from p2pllm.domain.records import MemberState
from p2pllm.wire.codec import encode
from p2pllm.wire.tags import TAGS

NODE = NodeId("f" * 32)


def headline(incarnation: int, version: int) -> Headline:
    return Headline(NODE, incarnation, version, 0, MemberState.ALIVE)


def test_a_headline_is_newer_by_incarnation_first() -> None:
    assert headline(2, 0).stamp > headline(1, 9).stamp
    assert headline(1, 9).stamp > headline(1, 8).stamp


def test_a_datagram_with_all_headers_fits_the_least_mtu_of_ipv6() -> None:
    ipv6_header, udp_header = 40, 8
    assert gossip.DATAGRAM_BYTES_MAX + ipv6_header + udp_header == 1_280


def test_a_digest_fits_a_datagram() -> None:
    digest = gossip.SyncDigest(bytes(gossip.DIGEST_BUCKETS * gossip.DIGEST_HASH_BYTES))
    assert len(encode(digest)) <= gossip.DATAGRAM_BYTES_MAX - gossip.SEAL_BYTES


def test_a_pull_of_as_many_nodes_as_are_asked_at_once_fits_a_datagram() -> None:
    pull = gossip.Pull(records=(NODE,) * gossip.PULL_MAX)
    assert len(encode(pull)) <= gossip.DATAGRAM_BYTES_MAX - gossip.SEAL_BYTES


def test_messages_come_without_news_where_there_are_none() -> None:
    assert Ping(1, None).news == News((), ())


def test_all_that_datagrams_may_carry_stands_in_the_union() -> None:
    in_datagrams = {message for message, tag in TAGS.items() if tag >= 64}
    assert set(typing.get_args(gossip.GossipMessage)) == in_datagrams
