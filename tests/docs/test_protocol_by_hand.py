"""A second implementation of what docs/protocol.md says in prose, compared with the first.

Each function here is written from the page alone, with no code of p2pllm in it; where one fails,
the page or the code is wrong.
"""

from __future__ import annotations

import base64
import hashlib
import random
import struct
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding

from p2pllm.core.digests import Digests, to_bits
from p2pllm.core.events import DatagramReceived
from p2pllm.core.swarm import Load, Swarm, SwarmConfig
from p2pllm.domain.enrolment import DatagramKey, EnrolOffer, EnrolProof
from p2pllm.domain.gossip import Ping, Signed, SyncDigest
from p2pllm.domain.ids import ModelId, NodeId, SwarmId
from p2pllm.domain.messages import Activation, ActivationType, Forward
from p2pllm.domain.records import Address, LoadRecord, ModelFact, NodeRecord
from p2pllm.engine.sampling import noise
from p2pllm.security.authority import SwarmAuthority
from p2pllm.security.datagrams import DatagramSealer
from p2pllm.security.enrolment import EnrolmentClient, EnrolmentServer, found_swarm
from p2pllm.security.identity import NodeIdentity
from p2pllm.security.invites import Invite, InviteBook, format_invite
from p2pllm.security.signatures import RecordSigner
from p2pllm.wire.codec import encode
from p2pllm.wire.frames import frame_parts
from tests.wire.vectors import FACT, LOAD, RECORD, SESSION

NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


def raw_key(certificate: x509.Certificate) -> bytes:
    key = certificate.public_key()
    assert isinstance(key, Ed25519PublicKey)
    return key.public_bytes_raw()


# -- identities and certificates


def test_ids_follow_from_keys_and_certificates_say_what_the_page_says() -> None:
    authority, identity = SwarmAuthority.generate(now=NOW), NodeIdentity.generate()
    root = x509.load_der_x509_certificate(authority.certificate.der)
    member = x509.load_der_x509_certificate(authority.issue(identity.public_key, now=NOW))
    swarm = hashlib.sha256(raw_key(root)).digest()
    assert authority.swarm == swarm.hex()
    assert identity.node_id == hashlib.sha256(identity.public_key).digest()[:16].hex()
    assert root.subject.rfc4514_string() == root.issuer.rfc4514_string() == f"CN={swarm.hex()[:16]}"
    assert member.subject.rfc4514_string() == f"CN={identity.node_id}"
    assert member.issuer == root.subject
    assert raw_key(member) == identity.public_key
    ends = root.not_valid_after_utc.isoformat(), member.not_valid_after_utc.isoformat()
    assert ends == ("9999-12-31T23:59:59+00:00", "2030-02-01T03:04:05+00:00")
    assert member.not_valid_before_utc.isoformat() == "2030-01-02T02:04:05+00:00"
    identifier = member.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert identifier.key_identifier == swarm[:8]
    assert member.public_bytes(Encoding.DER)[-67:-64] == b"\x03\x41\x00"


# -- frames


def test_a_frame_is_two_lengths_a_header_and_the_activation() -> None:
    rows = np.arange(6, dtype="<f4").reshape(2, 3)
    step = Forward(
        SESSION,
        attempt=1,
        step=1,
        hop=1,
        position=2,
        tokens=(5, 6),
        sample=True,
        activation=Activation(ActivationType.FLOAT32, 2, 3, rows.tobytes()),
    )
    frame = b"".join(frame_parts(step))
    header_bytes, payload_bytes = struct.unpack(">II", frame[:8])
    header = msgpack.unpackb(frame[8 : 8 + header_bytes])
    assert header == [16, [bytes.fromhex(SESSION), 1, 1, 1, 2, [5, 6], True, None, [1, 2, 3]]]
    assert frame[8 + header_bytes :] == rows.tobytes()
    assert payload_bytes == 2 * 3 * 4


# -- invites


def read_invite(text: str) -> tuple[bytes, bytes, list[str]]:
    prefix, *parts = text.split(".")
    assert prefix == "p2p1"
    swarm, secret, *rest = [
        base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in parts
    ]
    return swarm, secret, rest[0].decode("ascii").split(",") if rest else []


def test_an_invite_reads_as_the_page_says() -> None:
    addresses = (Address("10.0.0.1", 7770), Address("fe80::1", 7771))
    text = format_invite(Invite(SwarmId("ab" * 32), b"s" * 16, addresses))
    hints = ["10.0.0.1:7770", "[fe80::1]:7771"]
    assert read_invite(text) == (b"\xab" * 32, b"s" * 16, hints)
    assert read_invite(format_invite(Invite(SwarmId("ab" * 32), b"s" * 16)))[2] == []


# -- joining


def test_a_proof_signs_challenge_certificate_key_and_name(tmp_path: Path) -> None:
    authority, member = SwarmAuthority.generate(now=NOW), NodeIdentity.generate()
    place = found_swarm(member, authority, now=NOW, random_bytes=bytes)
    book = InviteBook(tmp_path)
    secret = book.create(now=NOW)
    joiner = NodeIdentity.generate()
    server = EnrolmentServer(
        authority=authority,
        invites=book,
        keys=place.keys,
        peers=(),
        is_open=False,
        certificate=place.certificate,
        random_bytes=lambda size: b"c" * size,
        now=lambda: NOW,
    )
    invite = Invite(authority.swarm, secret)
    client = EnrolmentClient(invite, joiner, "Küche", place.certificate, now=lambda: NOW)
    (offer,) = server.receive(client.start())
    assert isinstance(offer, EnrolOffer)
    (proof,) = client.receive(offer)
    assert isinstance(proof, EnrolProof)
    signed = b"p2pllm enrolment 1\0" + b"c" * 32 + hashlib.sha256(place.certificate).digest()
    signed += joiner.public_key + "Küche".encode()
    assert len(b"p2pllm enrolment 1\0") == 19
    Ed25519PublicKey.from_public_bytes(joiner.public_key).verify(proof.signature, signed)


# -- datagrams


def open_datagram(data: bytes, ring: dict[int, bytes]) -> tuple[bytes, int, int, bytes]:
    version, number, sender, epoch, counter = struct.unpack(">BB16sQQ", data[:34])
    assert version == 1
    information = b"p2pllm datagram 1" + sender + struct.pack(">Q", epoch)
    key = HKDF(SHA256(), 32, salt=None, info=information).derive(ring[number])
    nonce = bytes(4) + struct.pack(">Q", counter)
    return sender, epoch, counter, AESGCM(key).decrypt(nonce, data[34:], data[:34])


def test_a_datagram_opens_as_the_page_says() -> None:
    keys = (DatagramKey(7, b"n" * 32), DatagramKey(6, b"o" * 32))
    sealer = DatagramSealer(NodeId("0f" * 16), keys, 1_234)
    ring = {key.number: key.secret for key in keys}
    first, second = sealer.seal(b"hello"), sealer.seal(b"again")
    assert open_datagram(first, ring) == (b"\x0f" * 16, 1_234, 1, b"hello")
    assert open_datagram(second, ring) == (b"\x0f" * 16, 1_234, 2, b"again")
    assert first[1] == 7
    assert len(first) == len(b"hello") + 50


# -- records


@pytest.mark.parametrize("record", [RECORD, LOAD, FACT], ids=lambda record: type(record).__name__)
def test_a_record_is_signed_with_its_name(record: Any) -> None:
    authority, identity = SwarmAuthority.generate(now=NOW), NodeIdentity.generate()
    certificate = authority.issue(identity.public_key, now=NOW)
    signed = RecordSigner(identity, certificate, encode).sign(record)
    content = b"p2pllm record 1 " + type(record).__name__.encode() + b"\0" + signed.payload
    key = raw_key(x509.load_der_x509_certificate(signed.certificate))
    Ed25519PublicKey.from_public_bytes(key).verify(signed.signature, content)
    assert msgpack.unpackb(signed.payload)[0] in (48, 49, 50)


# -- anti-entropy


def digest_of(entries: dict[str, str]) -> bytes:
    sums = [0] * 256
    for key, version in entries.items():
        bucket = hashlib.blake2b(key.encode(), digest_size=1).digest()[0]
        value = hashlib.blake2b(f"{key} {version}".encode(), digest_size=4).digest()
        sums[bucket] = (sums[bucket] + int.from_bytes(value, "big")) % 2**32
    return b"".join(item.to_bytes(4, "big") for item in sums)


def test_a_digest_is_made_as_the_page_says() -> None:
    draw = random.Random(1)
    nodes = {draw.randbytes(16).hex(): f"{index} 4 {index * 3} 2" for index in range(600)}
    facts = {ModelId(f"owner/model-{index}"): f"17 {index} {'0f' * 16}" for index in range(9)}
    digests = Digests()
    for node, version in nodes.items():
        digests.set(("node", node), version)
    for model, version in facts.items():
        digests.set(("fact", model), version)
    entries = {f"node {node}": version for node, version in nodes.items()}
    entries |= {f"fact {model}": version for model, version in facts.items()}
    assert digests.hashes() == digest_of(entries)


class Unsigned:
    """Signs nothing: a digest knows versions only."""

    def node(self, record: NodeRecord) -> Signed[NodeRecord]:
        return Signed(record, encode(record), b"", b"")

    def load(self, record: LoadRecord) -> Signed[LoadRecord]:
        return Signed(record, encode(record), b"", b"")

    def fact(self, fact: ModelFact) -> Signed[ModelFact]:
        return Signed(fact, encode(fact), b"", b"")


def test_whoever_hears_of_a_stranger_sends_it_a_digest_of_records_loads_and_facts() -> None:
    swarm = Swarm(RECORD, config=SwarmConfig(), sign=Unsigned(), random=random.Random(1), now=0.0)
    swarm.update_load(Load(queue_steps=1), now=0.0)
    spec = FACT.spec
    assert spec is not None
    swarm.add_model(spec, wall_ms=1_700_000_000_000, now=0.0)
    stranger = DatagramReceived(NodeId("ee" * 16), Address("10.0.0.9", 7770), Ping(1, None))
    sent = [item.message for item in swarm.receive(stranger, now=0.0) if hasattr(item, "message")]
    (digest,) = [message for message in sent if isinstance(message, SyncDigest)]
    assert digest.hashes == digest_of(
        {
            f"node {RECORD.node}": "3 4 1 2",
            f"fact {spec.id}": f"1700000000000 0 {RECORD.node}",
        }
    )


def test_buckets_are_named_by_bits_lowest_first() -> None:
    bits = to_bits([0, 9, 255])
    assert len(bits) == 32
    assert [bucket for bucket in range(256) if bits[bucket // 8] >> bucket % 8 & 1] == [0, 9, 255]


# -- draws


def philox(key: tuple[int, int], counter: int) -> list[int]:
    """Four outputs of Philox 4x64 with ten rounds (Salmon et al., 2011)."""
    mask = 2**64 - 1
    words = [counter >> 64 * place & mask for place in range(4)]
    low, high = key
    for _ in range(10):
        first, second = words[0] * 0xD2E7470EE14C6C93, words[2] * 0xCA5A826395121157
        words = [
            (second >> 64) ^ words[1] ^ low,
            second & mask,
            (first >> 64) ^ words[3] ^ high,
            first & mask,
        ]
        low, high = (low + 0x9E3779B97F4A7C15) & mask, (high + 0xBB67AE8584CAA73B) & mask
    return words


@pytest.mark.parametrize(("seed", "index"), [(0, 0), (7, 3), (-1, 1_000), (2**63, 5)])
def test_the_noise_of_a_draw_is_philox_keyed_with_seed_and_index(seed: int, index: int) -> None:
    # numpy raises the counter before the first block, so it is 1 there.
    words = [word for block in range(1, 4) for word in philox((seed % 2**64, index), block)]
    expected = [((word >> 11) + 0.5) * 2.0**-53 for word in words[:10]]
    assert noise(seed, index, 10).tolist() == expected
