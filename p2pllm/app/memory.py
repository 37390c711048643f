"""What a running node writes down, and how it comes back after a restart."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Iterable
from pathlib import Path

import structlog

from p2pllm.app.state import PEERS_MAX, NodeState, save_state
from p2pllm.core.node import Node
from p2pllm.domain.errors import ConfigurationError, P2PLLMError
from p2pllm.domain.gossip import Bodies, Signed
from p2pllm.domain.records import MemberState, ModelFact
from p2pllm.security.signatures import RecordVerifier
from p2pllm.wire.datagrams import decode_datagram, encode_datagram

log: structlog.stdlib.BoundLogger = structlog.get_logger("p2pllm")

STATE_INTERVAL_S = 5.0
"""How often what is remembered is written, if it changed."""


def proven_facts(texts: Iterable[str], verifier: RecordVerifier) -> list[Signed[ModelFact]]:
    """The model facts in `NodeState.facts` that members signed; others are left out."""
    facts: list[Signed[ModelFact]] = []
    for text in texts:
        try:
            message = decode_datagram(base64.b64decode(text, validate=True))
        except (P2PLLMError, binascii.Error, ValueError):
            continue
        if isinstance(message, Bodies):
            facts += [fact for fact in message.facts if verifier.verify(fact)]
    return facts


def state_of(node: Node, state: NodeState) -> NodeState:
    """What `node` knows that is worth remembering; `state` is what was remembered so far."""
    view = node.swarm.view()
    peers = [
        (address.host, address.port)
        for member in view.members
        if member.record.node != view.self_id
        and member.state in (MemberState.ALIVE, MemberState.SUSPECT)
        for address in node.addresses_of(member.record.node)[:1]
    ]
    return NodeState(
        incarnation=node.swarm.incarnation,
        # Alone just now: those of before are the best guess for the next start.
        peers=peers[:PEERS_MAX] or state.peers,
        facts=[
            base64.b64encode(encode_datagram(Bodies(facts=(fact,)))).decode()
            for fact in node.swarm.facts
        ],
    )


async def remember(folder: Path, state: NodeState, node: Node) -> None:
    """Write what changed; a full disk is a warning, not the end."""
    warned = False
    while True:
        await asyncio.sleep(STATE_INTERVAL_S)
        current = state_of(node, state)
        if current == state:
            continue
        try:
            await asyncio.to_thread(save_state, folder, current)
        except ConfigurationError as error:
            if not warned:
                log.warning("state_not_saved", detail=str(error))
            warned = True
        else:
            state, warned = current, False
