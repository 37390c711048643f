import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from p2pllm.domain.errors import AuthenticationError, ConfigurationError
from p2pllm.security.authority import SwarmAuthority
from p2pllm.security.identity import NodeIdentity
from p2pllm.security.tls import client_context, identify, server_context, stranger_context
from tests.security.material import TlsPair, member

# OpenSSL reads the real clock.
NOW = datetime.now(UTC)
LONG_AGO = NOW - timedelta(days=60)
LATER = NOW + timedelta(days=60)

SWARM = SwarmAuthority.generate(now=LONG_AGO)
AUTHORITY = SWARM.certificate.der


def server(swarm: SwarmAuthority, folder: Path, *, now: datetime = NOW) -> ssl.SSLContext:
    return server_context(*member(swarm, now=now), AUTHORITY, folder)


def client(swarm: SwarmAuthority, folder: Path, *, now: datetime = NOW) -> ssl.SSLContext:
    return client_context(*member(swarm, now=now), AUTHORITY, folder)


def test_members_know_each_other_after_the_handshake(tmp_path: Path) -> None:
    one, one_certificate = member(SWARM, now=NOW)
    two, two_certificate = member(SWARM, now=NOW)
    pair = TlsPair(
        client_context(one, one_certificate, AUTHORITY, tmp_path),
        server_context(two, two_certificate, AUTHORITY, tmp_path),
    )
    pair.handshake()
    assert identify(pair.server.getpeercert(binary_form=True) or b"") == one.node_id
    assert identify(pair.client.getpeercert(binary_form=True) or b"") == two.node_id
    assert pair.client.version() == pair.server.version() == "TLSv1.3"


def test_a_stranger_gets_in_without_a_name_and_sees_the_servers_certificate(
    tmp_path: Path,
) -> None:
    identity, certificate = member(SWARM, now=NOW)
    pair = TlsPair(stranger_context(), server_context(identity, certificate, AUTHORITY, tmp_path))
    pair.handshake()
    assert pair.server.getpeercert(binary_form=True) is None
    assert pair.client.getpeercert(binary_form=True) == certificate


def test_a_client_of_another_swarm_is_refused(tmp_path: Path) -> None:
    foreign = SwarmAuthority.generate(now=NOW)
    with pytest.raises(ssl.SSLCertVerificationError):
        TlsPair(client(foreign, tmp_path), server(SWARM, tmp_path)).handshake()


def test_a_server_of_another_swarm_is_refused(tmp_path: Path) -> None:
    foreign = SwarmAuthority.generate(now=NOW)
    with pytest.raises(ssl.SSLCertVerificationError):
        TlsPair(client(SWARM, tmp_path), server(foreign, tmp_path)).handshake()


@pytest.mark.parametrize("moment", [LONG_AGO, LATER], ids=["expired", "not yet valid"])
def test_a_certificate_out_of_its_time_is_refused_on_both_sides(
    tmp_path: Path, moment: datetime
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        TlsPair(client(SWARM, tmp_path, now=moment), server(SWARM, tmp_path)).handshake()
    with pytest.raises(ssl.SSLCertVerificationError):
        TlsPair(client(SWARM, tmp_path), server(SWARM, tmp_path, now=moment)).handshake()


def test_a_member_cannot_vouch_for_another(tmp_path: Path) -> None:
    identity, _ = member(SWARM, now=NOW)
    impostor = SwarmAuthority(identity._private_key, SWARM.certificate)
    guest = NodeIdentity.generate()
    chain = impostor.issue(guest.public_key, now=NOW)
    with pytest.raises(ssl.SSLCertVerificationError):
        TlsPair(
            client_context(guest, chain, AUTHORITY, tmp_path), server(SWARM, tmp_path)
        ).handshake()


def test_tls_below_1_3_is_not_spoken(tmp_path: Path) -> None:
    old = stranger_context()
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        TlsPair(old, server(SWARM, tmp_path)).handshake()


def test_contexts_hold_under_openssls_strict_rules(tmp_path: Path) -> None:
    one, two = client(SWARM, tmp_path), server(SWARM, tmp_path)
    for context in (one, two):
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    TlsPair(one, two).handshake()


def test_a_session_cannot_be_resumed_past_its_certificate(tmp_path: Path) -> None:
    pair = TlsPair(client(SWARM, tmp_path), server(SWARM, tmp_path))
    pair.handshake()
    assert pair.client.session is None or not pair.client.session.has_ticket


def test_no_key_file_is_left_behind(tmp_path: Path) -> None:
    server(SWARM, tmp_path)
    client(SWARM, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_key_never_lies_in_the_clear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    original = ssl.SSLContext.load_cert_chain

    def spy(self: ssl.SSLContext, path: Path, password: str) -> None:
        written.append(path.read_bytes())
        original(self, path, password=password)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", spy)
    server(SWARM, tmp_path)
    assert len(written) == 1
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in written[0]
    assert b"BEGIN PRIVATE KEY" not in written[0]


def test_a_key_and_a_certificate_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    _, certificate = member(SWARM, now=NOW)
    with pytest.raises(ConfigurationError, match="do not belong together"):
        server_context(NodeIdentity.generate(), certificate, AUTHORITY, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_only_membership_certificates_identify_anybody() -> None:
    for der in (b"", b"nonsense", AUTHORITY):
        with pytest.raises(AuthenticationError):
            identify(der)
