"""What the core says is proven by the certificate the node has at the time."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta

from p2pllm.app.signer import CoreSigner
from p2pllm.domain.records import LoadRecord
from p2pllm.security.authority import SwarmAuthority
from p2pllm.security.enrolment import found_swarm
from p2pllm.security.identity import NodeIdentity
from p2pllm.security.signatures import RecordVerifier, owner_of

NOW = datetime(2030, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(days=40)


def test_after_a_renewal_the_new_certificate_proves_what_is_said() -> None:
    identity = NodeIdentity.generate()
    authority = SwarmAuthority.generate(now=NOW)
    membership = found_swarm(identity, authority, now=NOW, random_bytes=secrets.token_bytes)
    signer = CoreSigner(identity, membership.certificate)
    later = RecordVerifier(authority.certificate, owner_of, lambda: LATER)
    record = LoadRecord(identity.node_id, 1, 1, 0, 0, 0, 0.0)
    assert not later.verify(signer.load(record)), "its certificate has expired"
    signer.renew(authority.issue(identity.public_key, now=LATER))
    assert later.verify(signer.load(record))
