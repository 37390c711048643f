from __future__ import annotations

from p2pllm.domain.enrolment import DatagramKey, EnrolGrant
from p2pllm.domain.records import Address

SECRET = b"\x5a\xa5opensesame-opensesame-opense"


def test_a_key_keeps_its_secret_when_it_is_shown() -> None:
    shown = f"{DatagramKey(7, SECRET)!r} {DatagramKey(7, SECRET)}"
    assert "opensesame" not in shown
    assert SECRET.hex() not in shown
    assert "7" in shown


def test_a_grant_keeps_the_secrets_of_its_ring_when_it_is_shown() -> None:
    grant = EnrolGrant(b"der", (DatagramKey(7, SECRET),), (Address("10.0.0.1", 7770),))
    assert "opensesame" not in repr(grant)
    assert "opensesame" not in f"{grant}"


def test_keys_with_different_secrets_are_different() -> None:
    assert DatagramKey(7, SECRET) != DatagramKey(7, bytes(32))
    assert DatagramKey(7, SECRET) == DatagramKey(7, bytes(SECRET))
