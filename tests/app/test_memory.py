"""What a running node writes down is what it comes back with."""

from __future__ import annotations

import asyncio
import random
import secrets
from datetime import UTC, datetime
from pathlib import Path

import pytest

from p2pllm.app import memory
from p2pllm.app.memory import proven_facts, remember, state_of
from p2pllm.app.signer import CoreSigner
from p2pllm.app.state import NodeState, load_state
from p2pllm.core.events import ModelAdded
from p2pllm.core.node import CoreConfig, Node
from p2pllm.domain.errors import ConfigurationError
from p2pllm.domain.records import Address, NodeRecord
from p2pllm.security.authority import SwarmAuthority
from p2pllm.security.enrolment import found_swarm
from p2pllm.security.identity import NodeIdentity
from p2pllm.security.signatures import RecordVerifier, owner_of
from sim.nodes import model_spec

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def verifier(authority: SwarmAuthority) -> RecordVerifier:
    return RecordVerifier(authority.certificate, owner_of, lambda: NOW)


@pytest.fixture
def authority() -> SwarmAuthority:
    return SwarmAuthority.generate(now=NOW)


@pytest.fixture
def node(authority: SwarmAuthority) -> Node:
    identity = NodeIdentity.generate()
    membership = found_swarm(identity, authority, now=NOW, random_bytes=secrets.token_bytes)
    record = NodeRecord(
        node=identity.node_id,
        incarnation=3,
        version=1,
        name="one",
        addresses=(Address("127.0.0.1", 1),),
        api=None,
        memory_bytes=2**30,
        layers_max=None,
        parameter_bytes=4,
        speed_bytes_s=10**9,
    )
    made = Node(
        record,
        config=CoreConfig(),
        sign=CoreSigner(identity, membership.certificate),
        random=random.Random(1),
        now=0.0,
    )
    made.handle(ModelAdded(model_spec(), int(NOW.timestamp() * 1000)), now=0.0)
    return made


def test_served_models_come_back_as_their_writers_signed_them(
    node: Node, authority: SwarmAuthority
) -> None:
    state = state_of(node, NodeState(peers=[("10.0.0.9", 7)]))
    assert state.incarnation == 3
    assert state.peers == [("10.0.0.9", 7)], "alone, it keeps what it knew"
    assert proven_facts(state.facts, verifier(authority)) == list(node.swarm.facts)


def test_facts_of_another_swarm_and_rubbish_are_left_out(node: Node) -> None:
    state = state_of(node, NodeState())
    other = SwarmAuthority.generate(now=NOW)
    assert proven_facts([*state.facts, "!", "AAAA"], verifier(other)) == []


async def test_what_changed_is_written_and_a_full_disk_is_survived(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "STATE_INTERVAL_S", 0.001)
    written = asyncio.Event()
    real = memory.save_state
    attempts = 0

    def save(folder: Path, state: NodeState) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            raise ConfigurationError("the disk is full")
        real(folder, state)
        loop.call_soon_threadsafe(written.set)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(memory, "save_state", save)
    task = loop.create_task(remember(tmp_path, NodeState(), node))
    await asyncio.wait_for(written.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert load_state(tmp_path)[0] == state_of(node, NodeState())
