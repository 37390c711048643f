from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from p2pllm.domain.gossip import Signed
from p2pllm.domain.ids import ModelId, NodeId
from p2pllm.domain.records import HybridTime, LoadRecord, ModelFact, NodeRecord
from p2pllm.security import signatures
from p2pllm.security.signatures import RecordSigner, RecordVerifier, owner_of
from tests.security.material import DAY, NOW, authority, member

SWARM = authority()
ALICE, ALICE_CERTIFICATE = member(SWARM)
BOB, BOB_CERTIFICATE = member(SWARM)


def encode(value: Any) -> bytes:
    return repr(value).encode()


def load_record(node: NodeId = ALICE.node_id, version: int = 1) -> LoadRecord:
    return LoadRecord(node, 1, version, 2, 3, 4, 5.0)


def node_record(node: NodeId = ALICE.node_id) -> NodeRecord:
    return NodeRecord(node, 1, 1, "alice", (), None, 1, None, 2, 3)


def model_fact(writer: NodeId = ALICE.node_id) -> ModelFact:
    return ModelFact(ModelId("m"), HybridTime(1, 0, writer), None)


@dataclass
class Clock:
    moment: datetime = NOW

    def __call__(self) -> datetime:
        return self.moment


def verifier(clock: Clock | None = None) -> RecordVerifier:
    return RecordVerifier(SWARM.certificate, owner_of, clock or Clock())


alice = RecordSigner(ALICE, ALICE_CERTIFICATE, encode)
bob = RecordSigner(BOB, BOB_CERTIFICATE, encode)


@pytest.mark.parametrize("value", [node_record(), load_record(), model_fact()])
def test_each_kind_of_record_is_proven_by_its_owner_and_nobody_else(value: Any) -> None:
    signed = alice.sign(value)
    assert signed.value is value
    assert signed.payload == encode(value)
    check = verifier()
    assert check.verify(signed)
    assert check.verify(signed)  # from memory
    assert not check.verify(bob.sign(value))
    assert not check.verify(bob.sign(value))


def test_a_changed_payload_signature_or_certificate_is_refused() -> None:
    check = verifier()
    signed = alice.sign(load_record())
    assert check.verify(signed)
    broken = bytes([signed.signature[0] ^ 1]) + signed.signature[1:]
    assert not check.verify(replace(signed, payload=signed.payload + b" "))
    assert not check.verify(replace(signed, signature=broken))
    assert not check.verify(replace(signed, signature=b""))
    assert not check.verify(replace(signed, signature=signed.signature + b"\0"))
    assert not check.verify(replace(signed, certificate=BOB_CERTIFICATE))
    assert not check.verify(replace(signed, certificate=b""))
    assert check.verify(signed)


def test_a_remembered_proof_does_not_serve_another_owners_value() -> None:
    check = verifier()
    signed = alice.sign(load_record())
    assert check.verify(signed)
    assert not check.verify(replace(signed, value=load_record(BOB.node_id)))


def test_bytes_signed_as_one_kind_do_not_pass_as_another() -> None:
    signed: Signed[Any] = alice.sign(load_record())
    assert not verifier().verify(replace(signed, value=node_record()))


def test_a_record_of_another_swarm_is_refused() -> None:
    identity, certificate = member(authority())
    foreign = RecordSigner(identity, certificate, encode)
    assert not verifier().verify(foreign.sign(load_record(identity.node_id)))


def test_a_record_is_refused_once_its_certificate_has_expired_even_if_known() -> None:
    clock = Clock()
    check = verifier(clock)
    signed = alice.sign(load_record())
    assert check.verify(signed)
    clock.moment = NOW + 30 * DAY + timedelta(seconds=1)
    assert not check.verify(signed)
    assert not check.verify(alice.sign(load_record(version=2)))
    clock.moment = NOW
    assert check.verify(signed)


def test_the_signed_bytes_are_not_the_payload_alone() -> None:
    value = load_record()
    bare = ALICE.sign(encode(value))
    assert not verifier().verify(Signed(value, encode(value), bare, ALICE_CERTIFICATE))


def test_a_known_record_is_not_proven_again(monkeypatch: pytest.MonkeyPatch) -> None:
    check = verifier()
    signed = alice.sign(load_record())
    assert check.verify(signed)

    def proven_again(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(check, "_prove", proven_again)
    copy = Signed(
        load_record(), bytes(bytearray(signed.payload)), signed.signature, signed.certificate
    )
    assert check.verify(copy)


def test_memories_are_bounded() -> None:
    check = verifier()
    check._records = signatures._Recent(3)
    check._certificates = signatures._Recent(2)
    for _ in range(5):
        identity, certificate = member(SWARM)
        other = RecordSigner(identity, certificate, encode)
        assert check.verify(other.sign(load_record(identity.node_id)))
    assert len(check._records._entries) == 3
    assert len(check._certificates._entries) == 2


def test_a_memory_forgets_what_was_used_least_recently() -> None:
    memory: signatures._Recent[str, int] = signatures._Recent(2)
    memory.put("a", 1)
    memory.put("b", 2)
    assert memory.get("a") == 1
    memory.put("c", 3)
    assert (memory.get("a"), memory.get("b"), memory.get("c")) == (1, None, 3)


def test_failures_are_not_remembered() -> None:
    check = verifier()
    for version in range(5):
        assert not check.verify(
            replace(alice.sign(load_record(version=version)), signature=bytes(64))
        )
    assert not check._records._entries
