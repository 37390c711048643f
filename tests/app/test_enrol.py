"""Founding, and the refusals of joining that need no network."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pllm.app.enrol import (
    check_same_swarm,
    enrol_with_invite,
    found,
    join_by_invite,
    join_open,
    lock_folder,
    wall_clock,
)
from p2pllm.domain.errors import ConfigurationError, InviteError
from p2pllm.domain.ids import SwarmId
from p2pllm.domain.records import Address
from p2pllm.security.authority import SwarmAuthority
from p2pllm.security.identity import NodeIdentity
from p2pllm.security.invites import Invite, format_invite
from p2pllm.security.membership import load_membership

NOBODY = Address("127.0.0.1", 1)
SECRET = bytes(16)


def test_a_folder_is_taken_by_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        lock_folder(tmp_path / "node"),
        pytest.raises(ConfigurationError, match=r"another node runs on .*--data-dir"),
    ):
        lock_folder(tmp_path / "node")
    with lock_folder(tmp_path / "node"):
        pass


def test_the_founder_is_a_member_and_holds_the_authority(tmp_path: Path) -> None:
    identity = NodeIdentity.load_or_create(tmp_path)
    authority, membership = found(tmp_path, identity)
    assert membership.swarm == authority.swarm
    assert not membership.is_expired(wall_clock())
    kept = load_membership(tmp_path, identity)
    assert kept is not None
    assert kept.swarm == authority.swarm
    reloaded = SwarmAuthority.load(tmp_path)
    assert reloaded is not None
    assert reloaded.swarm == authority.swarm


async def test_a_folder_of_one_swarm_takes_no_invite_to_another(tmp_path: Path) -> None:
    identity = NodeIdentity.load_or_create(tmp_path)
    _, membership = found(tmp_path, identity)
    own = Invite(membership.swarm, SECRET, (NOBODY,))
    check_same_swarm(membership, own, tmp_path)
    # Already a member: nobody is asked.
    assert await enrol_with_invite(tmp_path, format_invite(own), "desk") == (
        identity.node_id,
        membership.swarm,
    )
    foreign = Invite(SwarmId("6" * 64), SECRET, (NOBODY,))
    with pytest.raises(ConfigurationError, match=r"belongs to swarm .*--data-dir"):
        await enrol_with_invite(tmp_path, format_invite(foreign), "desk")


async def test_without_an_address_or_an_answer_it_says_so_and_keeps_nothing(
    tmp_path: Path,
) -> None:
    identity = NodeIdentity.load_or_create(tmp_path)
    with pytest.raises(InviteError, match="--join HOST:PORT"):
        await join_by_invite(tmp_path, identity, Invite(SwarmId("5" * 64), SECRET, ()), "desk")
    with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1:1 refused"):
        await join_open(tmp_path, identity, (NOBODY,), "desk")
    assert load_membership(tmp_path, identity) is None
