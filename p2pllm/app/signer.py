"""Puts this node's signature on what its core says."""

from __future__ import annotations

from p2pllm.domain.gossip import Signed
from p2pllm.domain.records import LoadRecord, ModelFact, NodeRecord
from p2pllm.security.identity import NodeIdentity
from p2pllm.security.signatures import RecordSigner
from p2pllm.wire.codec import encode


class CoreSigner:
    """Signs what the core says; implements `p2pllm.core.swarm.Sign`.

    Args:
        identity: this node's key.
        certificate: its membership certificate, DER.
    """

    def __init__(self, identity: NodeIdentity, certificate: bytes) -> None:
        self._identity = identity
        self.renew(certificate)

    def renew(self, certificate: bytes) -> None:
        """Prove what is said from now on by another certificate."""
        self._signer = RecordSigner(self._identity, certificate, encode)

    def node(self, record: NodeRecord) -> Signed[NodeRecord]:
        """Sign a node record."""
        return self._signer.sign(record)

    def load(self, record: LoadRecord) -> Signed[LoadRecord]:
        """Sign a load record."""
        return self._signer.sign(record)

    def fact(self, fact: ModelFact) -> Signed[ModelFact]:
        """Sign a model fact."""
        return self._signer.sign(fact)
