"""Becoming a member: the first node founds a swarm, the others are let in by invite."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from p2pllm.app.config import NodeConfig, parse_address
from p2pllm.app.state import NodeState, load_state, save_state
from p2pllm.domain.errors import ConfigurationError, InviteError, P2PLLMError
from p2pllm.domain.ids import NodeId, SwarmId
from p2pllm.domain.records import Address
from p2pllm.net.enrolment import enrol
from p2pllm.security.authority import SwarmAuthority
from p2pllm.security.enrolment import EnrolmentClient, found_swarm
from p2pllm.security.identity import NodeIdentity
from p2pllm.security.invites import Invite, parse_invite
from p2pllm.security.membership import Membership, load_membership
from p2pllm.security.storage import ensure_private_folder

LOCK_FILE = "lock"

TRY_ELSEWHERE = ("busy", "cannot_admit")
"""Refusals that are about the member asked, not about the invite."""


def wall_clock() -> datetime:
    """The wall clock, with its time zone."""
    return datetime.now(UTC)


def wall_ms() -> int:
    """Wall time in milliseconds since 1970."""
    return int(wall_clock().timestamp() * 1000)


def lock_folder(folder: Path) -> FileLock:
    """Take the data folder for this process; released when the process ends, however it ends.

    Raises:
        ConfigurationError: another node runs on it, or it cannot be made.
    """
    ensure_private_folder(folder)
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigurationError(
            f"another node runs on {folder}; stop it, or choose another folder with --data-dir"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{folder} cannot be used: {error.strerror}") from None
    return lock


@dataclass(frozen=True, slots=True)
class Place:
    """A node's keys and its place in a swarm, ready for one run.

    Attributes:
        identity: the node's key.
        membership: its certificate and the swarm's keys, with the epoch of this run.
        authority: the swarm's own key, where this node has it.
        founded: whether the swarm was made just now.
        bootstrap: addresses of members that the owner named.
    """

    identity: NodeIdentity
    membership: Membership
    authority: SwarmAuthority | None
    founded: bool
    bootstrap: tuple[Address, ...]


async def enter_swarm(config: NodeConfig) -> Place:
    """The place this node has in a swarm, or gets by an invite, or founds for itself.

    Raises:
        InviteError: an invite was needed, and refused.
        ConfigurationError: the folder cannot be used, or is another swarm's.
    """
    folder = config.data_dir
    identity = NodeIdentity.load_or_create(folder)
    invites = [parse_invite(text) for text in config.join if text.lstrip().startswith("p2p")]
    bootstrap = tuple(
        parse_address(text) for text in config.join if not text.lstrip().startswith("p2p")
    )
    authority = SwarmAuthority.load(folder)
    membership = load_membership(folder, identity)
    founded = False
    if membership is not None:
        for invite in invites:
            check_same_swarm(membership, invite, folder)
        if authority is not None and membership.needs_renewal(wall_clock()):
            certificate = authority.issue(identity.public_key, now=wall_clock())
            membership = replace(membership, certificate=certificate)
    if membership is None or membership.is_expired(wall_clock()):
        if invites:
            invite = replace(invites[0], addresses=(*invites[0].addresses, *bootstrap))
            membership = await join_by_invite(folder, identity, invite, config.name)
        elif membership is not None:
            raise ConfigurationError(
                "this node's membership has expired; join again with --join INVITE"
            )
        elif bootstrap:
            membership = await join_open(folder, identity, bootstrap, config.name)
        else:
            authority, membership = found(folder, identity)
            founded = True
    membership = membership.begin_boot(folder, wall_ms())
    return Place(identity, membership, authority, founded, bootstrap)


async def enrol_with_invite(folder: Path, text: str, name: str) -> tuple[NodeId, SwarmId]:
    """Enrol this machine by an invite and remember it, for `p2pllm join`.

    Raises:
        InviteError: the invite is not accepted.
        ConfigurationError: the folder belongs to another swarm or to a running node.
    """
    invite = parse_invite(text)
    with lock_folder(folder):
        identity = NodeIdentity.load_or_create(folder)
        membership = load_membership(folder, identity)
        if membership is None or membership.is_expired(wall_clock()):
            membership = await join_by_invite(folder, identity, invite, name)
        check_same_swarm(membership, invite, folder)
        return identity.node_id, membership.swarm


def check_same_swarm(membership: Membership, invite: Invite, folder: Path) -> None:
    """Refuse an invite to a swarm other than the one this folder belongs to.

    Raises:
        ConfigurationError: it is another one.
    """
    if membership.swarm != invite.swarm:
        raise ConfigurationError(
            f"{folder} belongs to swarm {membership.swarm[:8]}, the invite is for "
            f"{invite.swarm[:8]}; choose another folder with --data-dir"
        )


async def join_by_invite(
    folder: Path, identity: NodeIdentity, invite: Invite, name: str
) -> Membership:
    """Enrol at the first address in the invite that answers, and keep the membership.

    Raises:
        InviteError: refused, or nobody answers.
    """
    return await _join(folder, identity, invite.addresses, invite, name)


async def join_open(
    folder: Path, identity: NodeIdentity, addresses: tuple[Address, ...], name: str
) -> Membership:
    """Enrol without an invite in a swarm that is open.

    Raises:
        InviteError: refused, or nobody answers.
    """
    return await _join(folder, identity, addresses, None, name)


async def _join(
    folder: Path,
    identity: NodeIdentity,
    addresses: tuple[Address, ...],
    invite: Invite | None,
    name: str,
) -> Membership:
    failure: P2PLLMError = InviteError(
        "the invite names no address; add --join HOST:PORT of the node that made it"
    )
    for address in addresses:
        try:
            membership = await enrol(
                address,
                lambda certificate: EnrolmentClient(
                    invite, identity, name, certificate, now=wall_clock
                ),
            )
        except P2PLLMError as error:
            if isinstance(error, InviteError) and error.code not in TRY_ELSEWHERE:
                raise
            failure = error
            continue
        membership.save(folder)
        state, _ = load_state(folder)
        peers = [(address.host, address.port), *((p.host, p.port) for p in membership.peers)]
        save_state(folder, NodeState(incarnation=state.incarnation, peers=peers))
        return membership
    raise failure


def found(folder: Path, identity: NodeIdentity) -> tuple[SwarmAuthority, Membership]:
    """Make a new swarm with this node as its first member."""
    authority = SwarmAuthority.create(folder, now=wall_clock())
    membership = found_swarm(
        identity, authority, now=wall_clock(), random_bytes=secrets.token_bytes
    )
    membership.save(folder)
    return authority, membership
