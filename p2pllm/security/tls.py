"""Streams are TLS 1.3, and the swarm authority is the only one believed.

A server asks for a certificate but does not insist, since a stranger who comes to enrol has none
yet; one that is shown must be a member's, or the handshake fails. A client always insists. Host
names say nothing between peers whose addresses change: the caller compares `identify` of the
peer's certificate with the node it meant to reach.
"""

from __future__ import annotations

import secrets
import ssl
from pathlib import Path

from p2pllm.domain.errors import ConfigurationError
from p2pllm.domain.ids import NodeId
from p2pllm.security import storage
from p2pllm.security.certificates import read_certificate
from p2pllm.security.identity import NodeIdentity


def server_context(
    identity: NodeIdentity, certificate: bytes, authority: bytes, folder: Path
) -> ssl.SSLContext:
    """For accepting streams. A peer without a certificate gets in; let it enrol and nothing else.

    Args:
        identity: this node's key.
        certificate: its membership certificate, DER.
        authority: the swarm authority's certificate, DER.
        folder: the data folder, where a file is needed for a moment.

    Raises:
        ConfigurationError: the certificate is not this key's, or the folder cannot be written.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL
    # A resumed session would skip the certificate, and so outlive it.
    context.num_tickets = 0
    return _prepare(context, identity, certificate, authority, folder)


def client_context(
    identity: NodeIdentity, certificate: bytes, authority: bytes, folder: Path
) -> ssl.SSLContext:
    """For opening streams as a member; arguments and errors as in `server_context`.

    After the handshake the caller must compare `identify` of the peer's certificate with the node
    it meant to reach.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    return _prepare(context, identity, certificate, authority, folder)


def stranger_context() -> ssl.SSLContext:
    """For the one stream on which a joiner enrols.

    It believes any certificate, as it knows no authority yet; the peer still proves that it holds
    the key. `enrolment.EnrolmentClient` checks that certificate before it says anything secret.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def identify(certificate: bytes) -> NodeId:
    """Who a peer is, from the certificate (DER) of a stream whose handshake succeeded.

    Raises:
        AuthenticationError: it is no membership certificate.
    """
    return read_certificate(certificate).node


def _prepare(
    context: ssl.SSLContext,
    identity: NodeIdentity,
    certificate: bytes,
    authority: bytes,
    folder: Path,
) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=authority)
    # OpenSSL takes keys from files only. The password never leaves this function, so what a crash
    # may leave behind is of no use to anybody.
    password = secrets.token_bytes(32).hex()
    pem = identity.encrypted_pem(password.encode()) + ssl.DER_cert_to_PEM_cert(certificate).encode()
    path = storage.write_temporary(folder, pem)
    try:
        context.load_cert_chain(path, password=password)
    except ssl.SSLError as error:
        raise ConfigurationError(
            "this node's key and membership certificate do not belong together; join again"
        ) from error
    finally:
        path.unlink(missing_ok=True)
    return context
