from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pllm.domain.errors import AuthenticationError
from p2pllm.security.authority import SwarmAuthority
from p2pllm.security.certificates import AuthorityCertificate, read_certificate
from p2pllm.security.identity import node_id_of
from tests.security.material import DAY, NOW, authority, member

SWARM = authority()
IDENTITY, CERTIFICATE = member(SWARM)


def named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def custom(key: Ed25519PrivateKey, subject: x509.Name, *, ca: bool = False) -> bytes:
    """A certificate the authority's own key signs, with a subject the authority would not."""
    issuer = named(SWARM.swarm[:16])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(SWARM._private_key, None)
    )
    return certificate.public_bytes(Encoding.DER)


def test_a_members_certificate_names_it() -> None:
    proven = SWARM.certificate.verify(CERTIFICATE, NOW)
    assert proven.node == IDENTITY.node_id
    assert proven.public_key.public_bytes_raw() == IDENTITY.public_key
    assert read_certificate(CERTIFICATE).node == IDENTITY.node_id


def test_the_public_half_of_the_authority_suffices_to_verify() -> None:
    public = AuthorityCertificate(SWARM.certificate.der)
    assert public.swarm == SWARM.swarm
    assert public.verify(CERTIFICATE, NOW).node == IDENTITY.node_id


def test_another_swarms_certificate_is_refused() -> None:
    _, foreign = member(authority())
    with pytest.raises(AuthenticationError, match="not issued by this swarm's authority"):
        SWARM.certificate.verify(foreign, NOW)


def test_another_authority_of_the_same_name_is_refused() -> None:
    impostor = SwarmAuthority(Ed25519PrivateKey.generate(), SWARM.certificate)
    _, forged = member(impostor)
    with pytest.raises(AuthenticationError, match="not issued by this swarm's authority"):
        SWARM.certificate.verify(forged, NOW)


def test_a_certificate_holds_from_an_hour_before_it_was_made_to_its_end() -> None:
    hour, second = timedelta(hours=1), timedelta(seconds=1)
    for moment in (NOW - hour, NOW, NOW + 30 * DAY):
        SWARM.certificate.verify(CERTIFICATE, moment)
    with pytest.raises(AuthenticationError, match="set the clocks right"):
        SWARM.certificate.verify(CERTIFICATE, NOW - hour - second)
    with pytest.raises(AuthenticationError, match="expired on 2030-07-01"):
        SWARM.certificate.verify(CERTIFICATE, NOW + 30 * DAY + second)


def test_the_subject_must_be_the_id_of_the_key() -> None:
    key = Ed25519PrivateKey.generate()
    own = node_id_of(key.public_key().public_bytes_raw())
    assert SWARM.certificate.verify(custom(key, named(own)), NOW).node == own
    twice = x509.Name([*named(own), *named(own)])
    for subject in (named(IDENTITY.node_id), named(own.upper()), x509.Name([]), twice):
        with pytest.raises(AuthenticationError, match="subject is not the id of its key"):
            SWARM.certificate.verify(custom(key, subject), NOW)


def test_the_authoritys_own_certificate_is_no_members() -> None:
    with pytest.raises(AuthenticationError):
        SWARM.certificate.verify(SWARM.certificate.der, NOW)


def test_a_members_certificate_is_no_authority() -> None:
    with pytest.raises(AuthenticationError, match="not the certificate of a swarm authority"):
        AuthorityCertificate(CERTIFICATE)


def test_a_self_signed_certificate_that_is_no_authority_is_refused() -> None:
    key = Ed25519PrivateKey.generate()
    for constraints in (x509.BasicConstraints(ca=False, path_length=None), None):
        builder = (
            x509.CertificateBuilder()
            .subject_name(named("x"))
            .issuer_name(named("x"))
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(NOW)
            .not_valid_after(NOW + DAY)
        )
        if constraints is not None:
            builder = builder.add_extension(constraints, critical=True)
        with pytest.raises(AuthenticationError, match="not the certificate of a swarm authority"):
            AuthorityCertificate(builder.sign(key, None).public_bytes(Encoding.DER))


def test_an_authority_that_did_not_sign_itself_is_refused() -> None:
    changed = bytearray(SWARM.certificate.der)
    changed[-1] ^= 1
    with pytest.raises(AuthenticationError, match="not the certificate of a swarm authority"):
        AuthorityCertificate(bytes(changed))


def test_a_key_of_another_kind_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(named("x"))
        .issuer_name(named("x"))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + DAY)
        .sign(key, SHA256())
    )
    with pytest.raises(AuthenticationError, match="without an ed25519 key"):
        read_certificate(certificate.public_bytes(Encoding.DER))


def test_an_oversized_certificate_is_not_even_parsed() -> None:
    with pytest.raises(AuthenticationError, match="513 bytes; 512 is the limit"):
        read_certificate(bytes(513))


def test_a_certificate_has_one_encoding() -> None:
    # DER lets a bit string leave its last bit unused only where that bit is 0.
    der = next(der for _ in range(200) if not (der := member(SWARM)[1])[-1] & 1)
    changed = der[:-65] + b"\x01" + der[-64:]
    SWARM.certificate.verify(der, NOW)
    with pytest.raises(AuthenticationError, match="not plain ed25519 in DER"):
        SWARM.certificate.verify(changed, NOW)


def test_a_certificate_with_any_one_bit_changed_is_refused() -> None:
    for bit in range(len(CERTIFICATE) * 8):
        changed = bytearray(CERTIFICATE)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(AuthenticationError):
            SWARM.certificate.verify(bytes(changed), NOW)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=600))
def test_nonsense_is_refused(data: bytes) -> None:
    for parse in (read_certificate, AuthorityCertificate):
        with pytest.raises(AuthenticationError):
            parse(data)


def test_certificates_fit_the_limits_of_the_messages_that_carry_them() -> None:
    assert len(CERTIFICATE) <= 300
    assert len(SWARM.certificate.der) <= 320
    late = SWARM.issue(IDENTITY.public_key, now=datetime(2060, 1, 1, tzinfo=UTC))
    assert len(late) <= 300


def test_the_repr_names_the_swarm() -> None:
    assert repr(SWARM.certificate) == f"AuthorityCertificate(swarm={SWARM.swarm!r})"
