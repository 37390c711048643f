"""How a stranger becomes a member, without sockets: one machine for each side.

Theory of operation. The joiner opens a TLS stream with `tls.stranger_context`: it believes any
certificate for now, but TLS has proven that the peer holds its key. Then:

    joiner                                             member that holds the authority
    EnrolRequest(version)                        ->
                                                 <-    EnrolOffer(authority, challenge, is_open)
    the authority's key has the invite's hash,
    and it issued the certificate TLS showed
    EnrolProof(key, secret, signature, name)     ->
                                                       the signature holds, the secret lets in
                                                 <-    EnrolGrant(certificate, keys, peers)
    the certificate is mine and this authority's

Who stands between the two shows either a certificate of another authority, which the joiner
refuses before it has said anything secret, or the member's own, whose key it has not got. The
signature covers the challenge and the certificate the joiner saw, so it is good on this stream
only. Where the swarm is open and the joiner has no invite, the first authority it meets is
believed; that is what "open" means.

A member renews its certificate in the same way, over a stream on which it has shown the one it
has (`tls.client_context`): TLS has told who it is, and it needs no secret.

Both machines raise on what the other side may not say and are done for then; close the stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from p2pllm.domain.enrolment import (
    ENROLMENT_PEERS_MAX,
    DatagramKey,
    EnrolGrant,
    EnrolmentMessage,
    EnrolOffer,
    EnrolProof,
    EnrolRefusal,
    EnrolRequest,
)
from p2pllm.domain.errors import (
    AuthenticationError,
    ConfigurationError,
    InviteError,
    RemoteProtocolError,
)
from p2pllm.domain.ids import NodeId, SwarmId
from p2pllm.domain.records import ADDRESSES_MAX, NODE_NAME_LENGTH_MAX, Address
from p2pllm.security.authority import SwarmAuthority
from p2pllm.security.certificates import AuthorityCertificate
from p2pllm.security.datagrams import KEY_BYTES, check_keys
from p2pllm.security.identity import PUBLIC_KEY_BYTES, NodeIdentity, node_id_of
from p2pllm.security.invites import Invite, InviteBook
from p2pllm.security.membership import Membership

VERSION = 1
CHALLENGE_BYTES = 32

_REFUSAL_LENGTH_MAX = 256


def found_swarm(
    identity: NodeIdentity,
    authority: SwarmAuthority,
    *,
    now: datetime,
    random_bytes: Callable[[int], bytes],
) -> Membership:
    """The first member's place in a new swarm: nobody lets it in but itself."""
    return Membership(
        authority=authority.certificate.der,
        certificate=authority.issue(identity.public_key, now=now),
        keys=(DatagramKey(1, random_bytes(KEY_BYTES)),),
    )


class EnrolmentClient:
    """The joiner's side.

    Args:
        invite: the invite; None where the swarm is open, or to renew.
        identity: the joiner's key.
        name: what people call it.
        server_certificate: what the peer showed in the TLS handshake, DER.
        now: the wall clock, with a time zone.
        renewing: the swarm this node is a member of already, to ask for a new certificate.

    Raises:
        ValueError: an invite and `renewing` exclude each other; or the name is too long.
    """

    def __init__(
        self,
        invite: Invite | None,
        identity: NodeIdentity,
        name: str,
        server_certificate: bytes,
        *,
        now: Callable[[], datetime],
        renewing: SwarmId | None = None,
    ) -> None:
        if invite is not None and renewing is not None:
            raise ValueError("a member renews without an invite")
        if not _is_name(name):
            raise ValueError(f"a name has 1 to {NODE_NAME_LENGTH_MAX} printable bytes of UTF-8")
        self._invite = invite
        self._identity = identity
        self._name = name
        self._server_certificate = server_certificate
        self._now = now
        self._renewing = renewing
        self._state = "start"  # start -> offer -> grant -> done
        self._authority: AuthorityCertificate | None = None
        self._result: Membership | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing more is to be said or heard."""
        return self._state == "done"

    @property
    def result(self) -> Membership | None:
        """The place in the swarm, once it is granted; save it before it is used."""
        return self._result

    def start(self) -> EnrolRequest:
        """What to send first."""
        if self._state != "start":
            raise RuntimeError("started twice")
        self._state = "offer"
        return EnrolRequest(VERSION)

    def receive(self, message: EnrolmentMessage) -> list[EnrolmentMessage]:
        """What to answer.

        Raises:
            InviteError: the invite is not for this swarm, or this swarm refuses it.
            AuthenticationError: the peer is not of the swarm it says, or refuses to renew.
            RemoteProtocolError: the peer may not say this now.
        """
        state, self._state = self._state, "done"  # whatever goes wrong below is the end
        match message:
            case EnrolOffer() if state == "offer":
                answer = self._prove(message)
                self._state = "grant"
                return [answer]
            case EnrolGrant() if state == "grant":
                self._result = self._accept(message)
                return []
            case EnrolRefusal() if state in ("offer", "grant"):
                detail = _printable(message.detail) or "no reason given"
                error = AuthenticationError if self._renewing is not None else InviteError
                raise error(f"the swarm refused: {detail}", code=_code(message.code))
            case _:
                raise RemoteProtocolError(
                    f"{type(message).__name__} has no place here in an enrolment"
                )

    def _prove(self, offer: EnrolOffer) -> EnrolProof:
        if len(offer.challenge) != CHALLENGE_BYTES:
            raise RemoteProtocolError("an enrolment challenge of the wrong length")
        authority = AuthorityCertificate(offer.authority)
        if self._invite is not None and authority.swarm != self._invite.swarm:
            raise InviteError(
                "this invite is for another swarm than the one at this address; "
                "check the address, and whether somebody stands in between",
                code="invite_other_swarm",
            )
        if self._renewing is not None and authority.swarm != self._renewing:
            raise AuthenticationError("the node at this address is of another swarm")
        try:
            authority.verify(self._server_certificate, self._now())
        except AuthenticationError as error:
            raise AuthenticationError(
                f"the node at this address is not a member of the swarm it names: {error}"
            ) from error
        if self._invite is None and self._renewing is None and not offer.is_open:
            raise InviteError(
                "this swarm is not open; ask a member for an invite (p2pllm invite)",
                code="invite_needed",
            )
        self._authority = authority
        public_key = self._identity.public_key
        secret = b"" if self._invite is None else self._invite.secret
        signature = self._identity.sign(
            _signed_bytes(offer.challenge, self._server_certificate, public_key, self._name)
        )
        return EnrolProof(public_key, secret, signature, self._name)

    def _accept(self, grant: EnrolGrant) -> Membership:
        assert self._authority is not None
        member = self._authority.verify(grant.certificate, self._now())
        if member.node != self._identity.node_id:
            raise RemoteProtocolError("the membership granted is another node's")
        try:
            check_keys(grant.keys)
        except ValueError as error:
            raise RemoteProtocolError(f"the membership granted is not whole: {error}") from error
        return Membership(self._authority.der, grant.certificate, grant.keys, grant.peers)


class EnrolmentServer:
    """The side of a member that holds the authority; one for each stream.

    `receive` may flush a file (the book of invites), so call it off the event loop.

    Args:
        authority: the swarm's.
        invites: the book that redeems secrets.
        keys: the datagram key ring, newest first.
        peers: where members listen, nearest first; as many as fit are told.
        is_open: whether to let in who has no invite.
        certificate: what this node shows in TLS handshakes, DER.
        random_bytes: as many random bytes as asked for.
        now: the wall clock, with a time zone.
        member: who has shown a valid certificate on this stream; it may renew it.
    """

    def __init__(
        self,
        *,
        authority: SwarmAuthority,
        invites: InviteBook,
        keys: tuple[DatagramKey, ...],
        peers: tuple[Address, ...],
        is_open: bool,
        certificate: bytes,
        random_bytes: Callable[[int], bytes],
        now: Callable[[], datetime],
        member: NodeId | None = None,
    ) -> None:
        check_keys(keys)
        self._authority = authority
        self._invites = invites
        self._keys = keys
        self._peers = peers[: ENROLMENT_PEERS_MAX * ADDRESSES_MAX]
        self._is_open = is_open
        self._certificate = certificate
        self._challenge = random_bytes(CHALLENGE_BYTES)
        self._now = now
        self._member = member
        self._state = "request"  # request -> proof -> done
        self._admitted: tuple[NodeId, str] | None = None

    @property
    def finished(self) -> bool:
        """Whether nothing more is to be said or heard; close the stream once all is sent."""
        return self._state == "done"

    @property
    def admitted(self) -> tuple[NodeId, str] | None:
        """Who was let in and what people call them, once they are; for the log."""
        return self._admitted

    def receive(self, message: EnrolmentMessage) -> list[EnrolmentMessage]:
        """What to answer; a refusal is an answer too.

        Raises:
            RemoteProtocolError: the peer may not say this now.
        """
        state, self._state = self._state, "done"  # whatever goes wrong below is the end
        match message:
            case EnrolRequest() if state == "request":
                if message.version != VERSION:
                    return [EnrolRefusal("version", f"this swarm enrols by version {VERSION} only")]
                self._state = "proof"
                return [EnrolOffer(self._authority.certificate.der, self._challenge, self._is_open)]
            case EnrolProof() if state == "proof":
                return [self._judge(message)]
            case _:
                raise RemoteProtocolError(
                    f"{type(message).__name__} has no place here in an enrolment"
                )

    def _judge(self, proof: EnrolProof) -> EnrolGrant | EnrolRefusal:
        if not _is_name(proof.name):
            return EnrolRefusal("name", "a name has printable characters only, and is not empty")
        if not self._holds_key(proof):
            return EnrolRefusal("proof", "the proof of the node's key does not hold")
        node = node_id_of(proof.public_key)
        if not (self._is_open or (self._member is not None and node == self._member)):
            refusal = self._redeem(proof.secret, node)
            if refusal is not None:
                return refusal
        certificate = self._authority.issue(proof.public_key, now=self._now())
        self._admitted = (node, proof.name)
        return EnrolGrant(certificate, self._keys, self._peers)

    def _holds_key(self, proof: EnrolProof) -> bool:
        if len(proof.public_key) != PUBLIC_KEY_BYTES:
            return False
        signed = _signed_bytes(self._challenge, self._certificate, proof.public_key, proof.name)
        try:
            Ed25519PublicKey.from_public_bytes(proof.public_key).verify(proof.signature, signed)
        except (InvalidSignature, ValueError):
            return False
        return True

    def _redeem(self, secret: bytes, node: NodeId) -> EnrolRefusal | None:
        if not secret:
            return EnrolRefusal("invite_needed", "this swarm is not open; an invite is needed")
        try:
            self._invites.redeem(secret, node, self._now())
        except InviteError as error:
            return EnrolRefusal(error.code, str(error))
        except ConfigurationError:
            # Its text names files of this machine, which are no business of a stranger.
            return EnrolRefusal("unavailable", "this member cannot let anybody in now; try later")
        return None


def _signed_bytes(
    challenge: bytes, server_certificate: bytes, public_key: bytes, name: str
) -> bytes:
    """What the joiner signs. Only the last part has no fixed length, so it reads one way."""
    certificate = hashlib.sha256(server_certificate).digest()
    return b"p2pllm enrolment 1\0" + challenge + certificate + public_key + name.encode()


def _is_name(name: str) -> bool:
    return (
        bool(name.strip())
        and name.isprintable()
        and len(name.encode(errors="replace")) <= NODE_NAME_LENGTH_MAX
    )


def _printable(text: str) -> str:
    """A peer's text, safe to show on a terminal."""
    return "".join(character for character in text if character.isprintable())[:_REFUSAL_LENGTH_MAX]


def _code(code: str) -> str:
    """A peer's error code, or ours where it is none."""
    plain = code.replace("_", "")
    return code if plain.isascii() and plain.isalnum() and len(code) <= 64 else "refused"
