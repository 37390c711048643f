"""A running node: the core, the shells around it, and the order they start and stop in.

folder locked, identity and membership loaded (or the swarm founded, or joined)
ports bound, engine started and measured
core made, driver, streams, datagrams, mDNS, HTTP API
... until it is told to leave: the core says farewell, then everything stops in reverse
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
from collections.abc import Callable, Generator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import structlog

from p2pllm import __version__
from p2pllm.api.metrics import Metrics
from p2pllm.api.server import ApiServer
from p2pllm.app.config import NodeConfig, is_loopback
from p2pllm.app.control import CoreControl, Inviter
from p2pllm.app.effects import Performer
from p2pllm.app.enrol import Place, enter_swarm, lock_folder, wall_clock, wall_ms
from p2pllm.app.gateway import CoreGateway
from p2pllm.app.interfaces import reachable_addresses
from p2pllm.app.memory import proven_facts, remember, state_of
from p2pllm.app.models import BUILTIN, ModelLibrary, references
from p2pllm.app.progress import ProgressDisplay
from p2pllm.app.renewal import Renewal, live_members
from p2pllm.app.signer import CoreSigner
from p2pllm.app.state import load_state, save_state
from p2pllm.app.threads import default_threads
from p2pllm.core.effects import Effect
from p2pllm.core.events import (
    DatagramReceived,
    Event,
    LeaveRequested,
    PeerDiscovered,
    PeerUnreachable,
    StreamReceived,
    TimerFired,
)
from p2pllm.core.node import CoreConfig, Node
from p2pllm.domain.errors import ConfigurationError, P2PLLMError
from p2pllm.domain.ids import NodeId, SwarmId
from p2pllm.domain.messages import PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, Hello
from p2pllm.domain.records import (
    Address,
    NodeRecord,
)
from p2pllm.engine.runner import Engine
from p2pllm.net.datagrams import DatagramEndpoint
from p2pllm.net.driver import Driver
from p2pllm.net.mdns import Mdns
from p2pllm.net.sockets import bind_ports
from p2pllm.net.streams import PeerStreams
from p2pllm.security.certificates import AuthorityCertificate
from p2pllm.security.datagrams import DatagramSealer
from p2pllm.security.enrolment import EnrolmentServer
from p2pllm.security.invites import InviteBook
from p2pllm.security.membership import Membership
from p2pllm.security.signatures import RecordVerifier, owner_of
from p2pllm.security.storage import write_private
from p2pllm.security.tls import client_context, identify, server_context

log: structlog.stdlib.BoundLogger = structlog.get_logger("p2pllm")

CONTROL_FILE = "control.json"
LEAVE_TIMEOUT_S = 40.0
"""Longer than the core gives running sessions; then the process ends anyway."""

FIRST_INVITE_USES = 16
FIRST_INVITE_LIFETIME_S = 24 * 3_600


@dataclass(frozen=True, slots=True)
class NodeInformation:
    """What the owner needs to know of a node that has started.

    Attributes:
        node: its id.
        name: its name.
        swarm: the swarm's id.
        addresses: where peers reach it.
        api: where clients reach it.
        invite: for others to join, where this start founded the swarm.
    """

    node: NodeId
    name: str
    swarm: SwarmId
    addresses: tuple[Address, ...]
    api: Address
    invite: str | None


async def run_node(
    config: NodeConfig,
    *,
    leave: asyncio.Event,
    on_ready: Callable[[NodeInformation], None],
    core: CoreConfig | None = None,
) -> None:
    """Run a node until `leave` is set and it has left.

    Args:
        config: how.
        leave: set to have it leave gracefully.
        on_ready: called once, when peers and clients can reach it.
        core: patience and bounds, where they shall not be the usual ones.

    Raises:
        P2PLLMError: it cannot start.
    """
    with lock_folder(config.data_dir):
        place = await enter_swarm(config)
        try:
            await _run(config, place, core or CoreConfig(), leave, on_ready)
        except* P2PLLMError as group:
            raise _first(group) from None


def _first(group: BaseExceptionGroup[P2PLLMError]) -> P2PLLMError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, P2PLLMError)
    return error


async def _run(
    config: NodeConfig,
    place: Place,
    core_config: CoreConfig,
    leave: asyncio.Event,
    on_ready: Callable[[NodeInformation], None],
) -> None:
    folder, identity, membership = config.data_dir, place.identity, place.membership
    self_id = identity.node_id
    loop = asyncio.get_running_loop()
    state, warning = load_state(folder)
    if warning is not None:
        log.warning("state_unreadable", detail=warning)
    state = state.model_copy(update={"incarnation": state.incarnation + 1})
    save_state(folder, state)
    left = asyncio.Event()

    async with AsyncExitStack() as stack:
        with _set_by("--listen"):
            ports = bind_ports(config.listen.host, config.listen.port)
        stack.callback(ports.close)
        addresses = reachable_addresses(config.listen.host, ports.port)
        engine = await stack.enter_async_context(
            Engine(
                device=config.device,
                dtype=config.dtype,
                threads=config.threads or default_threads(),
            )
        )
        record = NodeRecord(
            node=self_id,
            incarnation=state.incarnation,
            version=1,
            name=config.name,
            addresses=addresses,
            api=None if is_loopback(config.api.host) else config.api,
            memory_bytes=config.memory_bytes or psutil.virtual_memory().available // 2,
            layers_max=config.layers_max,
            parameter_bytes=engine.parameter_bytes,
            speed_bytes_s=await engine.measure_speed(),
        )
        signer = CoreSigner(identity, membership.certificate)
        node = Node(
            record,
            config=core_config,
            sign=signer,
            random=random.Random(secrets.randbits(64)),
            now=loop.time(),
        )
        driver: Driver[Event, Effect] = Driver(node, lambda effect: perform(effect), TimerFired())
        stack.callback(driver.close)
        progress = stack.enter_context(ProgressDisplay())

        def fetched(done_bytes: int, total_bytes: int, _file: str) -> None:
            progress.show("download", done_bytes, total_bytes)
            if done_bytes >= total_bytes:
                progress.finish("download")

        library = ModelLibrary(references(), config.models, fetched)
        verifier = RecordVerifier(AuthorityCertificate(membership.authority), owner_of, wall_clock)

        def view() -> Any:
            return node.view(loop.time())

        inviter = None
        if place.authority is not None:
            inviter = Inviter(place.authority, InviteBook(folder))
        gateway = CoreGateway(driver.post, view, library, lambda model: _added_s(node, model))
        control = CoreControl(
            post=driver.post,
            view=view,
            models=gateway.models,
            library=library,
            placement=core_config.placement,
            swarm=membership.swarm,
            inviter=inviter,
            addresses=lambda: addresses,
            clock=loop.time,
        )

        def exchange(certificate: bytes, member: NodeId | None) -> EnrolmentServer:
            assert inviter is not None
            return EnrolmentServer(
                authority=inviter.authority,
                invites=inviter.book,
                keys=membership.keys,
                peers=addresses,
                is_open=config.is_open,
                certificate=certificate,
                random_bytes=secrets.token_bytes,
                now=wall_clock,
                member=member,
            )

        tls = (identity, membership.certificate, membership.authority, folder)
        streams = PeerStreams(
            Hello(
                PROTOCOL_VERSION_MIN,
                PROTOCOL_VERSION,
                self_id,
                membership.swarm,
                f"p2pllm {__version__}",
            ),
            listener=ports.stream,
            server_context=server_context(*tls),
            client_context=client_context(*tls),
            own_certificate=membership.certificate,
            identify=identify,
            on_message=lambda sender, message: driver.post(StreamReceived(sender, message)),
            on_unreachable=lambda peer, detail: driver.post(PeerUnreachable(peer, detail)),
            enrolment=exchange if inviter is not None else None,
        )
        datagrams = DatagramEndpoint(
            ports.datagram,
            sealer=DatagramSealer(self_id, membership.keys, membership.boot_epoch),
            verify=verifier.verify,
            on_message=lambda sender, source, message: driver.post(
                DatagramReceived(sender, source, message, wall_ms())
            ),
        )
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        performer = Performer(
            self_id=self_id,
            post=driver.post,
            addresses_of=node.addresses_of,
            engine=engine,
            library=library,
            streams=streams,
            datagrams=datagrams,
            clients=gateway,
            tasks=tasks,
            on_left=left.set,
            progress=progress,
        )
        perform = performer.perform
        await stack.enter_async_context(streams)
        await stack.enter_async_context(datagrams)
        for effect in node.restore(proven_facts(state.facts, verifier), now=loop.time()):
            perform(effect)
        for address in (*place.bootstrap, *membership.peers, *state.addresses):
            driver.post(PeerDiscovered(address))
        if config.mdns:
            await stack.enter_async_context(
                Mdns(
                    node=self_id,
                    swarm=membership.swarm,
                    addresses=addresses,
                    loopback_only=is_loopback(config.listen.host),
                    on_found=lambda address, peer: driver.post(PeerDiscovered(address, peer)),
                )
            )
        token = secrets.token_urlsafe(32)
        with _set_by("--api"):
            api = await stack.enter_async_context(
                ApiServer(
                    gateway,
                    control,
                    host=config.api.host,
                    port=config.api.port,
                    control_token=token,
                    metrics=Metrics(),
                )
            )
        api_address = Address(config.api.host, api.port)
        await _add_models(config, control, place.founded)
        _write_control_file(folder, api_address, token)
        stack.callback((folder / CONTROL_FILE).unlink, missing_ok=True)
        invite = None
        if place.founded:
            invite = control.create_invite(FIRST_INVITE_USES, FIRST_INVITE_LIFETIME_S)
        on_ready(
            NodeInformation(self_id, config.name, membership.swarm, addresses, api_address, invite)
        )

        def adopt(renewed: Membership) -> None:
            tls = (identity, renewed.certificate, renewed.authority, folder)
            streams.renew(server_context(*tls), client_context(*tls), renewed.certificate)
            signer.renew(renewed.certificate)

        renewal = Renewal(
            folder,
            identity,
            config.name,
            membership,
            authority=place.authority,
            members=lambda: live_members(node),
            facts=lambda: node.swarm.facts,
            adopt=adopt,
            post=driver.post,
            random=random.Random(secrets.randbits(64)),
        )
        background = [
            tasks.create_task(remember(folder, state, node)),
            tasks.create_task(renewal.run()),
        ]
        await leave.wait()
        log.info("leaving")
        for task in background:
            task.cancel()
        # What came since the last write, a model added a second ago above all.
        with contextlib.suppress(ConfigurationError):
            save_state(folder, state_of(node, state))
        driver.post(LeaveRequested())
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(left.wait(), LEAVE_TIMEOUT_S)


@contextlib.contextmanager
def _set_by(option: str) -> Generator[None, None, None]:
    """Say with an error which option led to it."""
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(f"{error} (set by {option})") from None


def _added_s(node: Node, model: str) -> int:
    for fact in node.swarm.facts:
        if fact.value.model == model:
            return fact.value.stamp.wall_ms // 1000
    return 0


async def _add_models(config: NodeConfig, control: CoreControl, founded: bool) -> None:
    chosen = config.models or ((BUILTIN,) if founded else ())
    for reference in chosen:
        await control.add_model(reference, None)


def _write_control_file(folder: Path, api: Address, token: str) -> None:
    import json

    content = {"host": api.host, "port": api.port, "token": token, "pid": os.getpid()}
    write_private(folder / CONTROL_FILE, json.dumps(content).encode())
