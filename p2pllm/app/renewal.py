"""A member stays one: its certificate is renewed while it runs, long before it runs out.

Theory of operation. Shortly after the start, and about once an hour from then on, a node looks at
its certificate. From `RENEWAL_MARGIN` before its end on it asks for another one:

    holds the authority    issues its own
    otherwise              asks whoever let it in, then the other live members in random order;
                           those that cannot grant say so at once, and the next one is asked

Nobody is told who holds the authority, so asking around also finds it where it has moved. A round
that fails is repeated after a while that doubles up to an hour; ten days have room for hundreds.

A new certificate is saved first, then used for streams and signatures; then the node's own records
are published anew, since others drop a record when the certificate in it has run out. The same is
true of the facts about models. Their writers may have left long ago, so whoever first sees one
whose certificate is about to end states it anew.

The one who grants is proven by what it grants: a certificate that ends later than any before can
only have been issued just now, on this stream, by the authority.
"""

from __future__ import annotations

import asyncio
import random as random_module
import ssl
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from p2pllm.app.enrol import wall_clock
from p2pllm.core.events import CertificatesAged, Event
from p2pllm.core.node import Node
from p2pllm.domain.errors import AuthenticationError, ConfigurationError, P2PLLMError
from p2pllm.domain.gossip import Signed
from p2pllm.domain.ids import ModelId
from p2pllm.domain.records import Address, MemberState, ModelFact
from p2pllm.net.enrolment import enrol
from p2pllm.security.authority import SwarmAuthority
from p2pllm.security.certificates import read_certificate
from p2pllm.security.enrolment import EnrolmentClient
from p2pllm.security.identity import NodeIdentity
from p2pllm.security.membership import Membership
from p2pllm.security.tls import client_context

log: structlog.stdlib.BoundLogger = structlog.get_logger("p2pllm")

FIRST_CHECK_S = 5.0
"""After the start; by then the first members are known."""

CHECK_INTERVAL_S = 3_600.0
RETRY_S = 15.0
"""After the first failure; doubles with each further one, up to `CHECK_INTERVAL_S`."""

ASKED_MAX = 256
"""Members asked in one round: some seconds' worth of handshakes, and few rounds to ask them all."""

WARNING_MARGIN = timedelta(days=3)
"""From here on a failure is a warning: somebody has to start the node that holds the authority."""

FACT_MARGIN = timedelta(days=5)
"""Less than `RENEWAL_MARGIN`: a fact's writer, when it renews, states it anew before others do."""


def live_members(node: Node) -> list[tuple[Address, ...]]:
    """Where each live member but this one is reached, the address that last worked first."""
    view = node.swarm.view()
    return [
        node.addresses_of(member.record.node)
        for member in view.members
        if member.record.node != view.self_id
        and member.state in (MemberState.ALIVE, MemberState.SUSPECT)
    ]


class Renewal:
    """See the module's docstring.

    Args:
        folder: where the membership is kept.
        identity: this node's key.
        name: what people call it.
        membership: as it is in force.
        authority: the swarm's own key, where this node has it.
        members: where other live members listen, see `live_members`.
        facts: what is known of models.
        adopt: uses a renewed membership for streams and signatures; raises ConfigurationError.
        post: hands an event to the core.
        random: this task's own stream of chance.
        now: the wall clock, with a time zone.
    """

    def __init__(
        self,
        folder: Path,
        identity: NodeIdentity,
        name: str,
        membership: Membership,
        *,
        authority: SwarmAuthority | None,
        members: Callable[[], Sequence[tuple[Address, ...]]],
        facts: Callable[[], Iterable[Signed[ModelFact]]],
        adopt: Callable[[Membership], None],
        post: Callable[[Event], None],
        random: random_module.Random,
        now: Callable[[], datetime] = wall_clock,
    ) -> None:
        self.membership = membership
        self._folder = folder
        self._identity = identity
        self._name = name
        self._authority = authority
        self._members = members
        self._facts = facts
        self._adopt = adopt
        self._post = post
        self._random = random
        self._now = now

    async def run(self) -> None:
        """Check, and renew what is due, until cancelled."""
        delay_s, failures = FIRST_CHECK_S, 0
        while True:
            await asyncio.sleep(delay_s)
            failures = 0 if await self.check() else failures + 1
            delay_s = self.delay_s(failures)

    def delay_s(self, failures: int) -> float:
        """Until the next check; never twice the same, as many nodes may have started at once."""
        # Beyond ten doublings it is an hour anyway; the power itself must stay small.
        longest_s = RETRY_S * 2 ** min(failures - 1, 10) if failures else CHECK_INTERVAL_S
        return min(longest_s, CHECK_INTERVAL_S) * self._random.uniform(0.5, 1.0)

    async def check(self) -> bool:
        """Renew what is due; whether all went well."""
        renewed = due = self.membership.needs_renewal(self._now())
        if due:
            try:
                await self._renew()
            except P2PLLMError as error:
                renewed = False
                self._complain(error)
        ageing = self._ageing_facts()
        if renewed or ageing:
            self._post(CertificatesAged(own=renewed, facts=ageing))
        return renewed or not due

    async def _renew(self) -> None:
        if self._authority is None:
            membership, source = await self._ask()
        else:
            certificate = self._authority.issue(self._identity.public_key, now=self._now())
            membership, source = replace(self.membership, certificate=certificate), "this node"
        await asyncio.to_thread(membership.save, self._folder)
        self._adopt(membership)
        self.membership = membership
        log.info("membership_renewed", expires=_date(membership), granted_by=source)

    async def _ask(self) -> tuple[Membership, str]:
        """The membership granted by the first member that can, and where that is."""
        own = self.membership
        context = client_context(self._identity, own.certificate, own.authority, self._folder)
        members = list(self._members())
        self._random.shuffle(members)
        asked, failure = 0, None
        for addresses in (own.peers, *members[:ASKED_MAX]):
            for address in addresses:
                try:
                    return await self._ask_one(address, context), str(address)
                except AuthenticationError as error:
                    asked += 1
                    failure = failure if error.code == "cannot_admit" else error
                    break  # It was reached, so its other addresses would say the same.
                except P2PLLMError as error:
                    failure = error
        # Those who cannot grant are no news, unless there are no others.
        raise failure or ConfigurationError(
            f"none of {asked} members that answered holds the swarm's authority"
        )

    async def _ask_one(self, address: Address, context: ssl.SSLContext) -> Membership:
        own = self.membership
        granted = await enrol(
            address,
            lambda certificate: EnrolmentClient(
                None, self._identity, self._name, certificate, now=self._now, renewing=own.swarm
            ),
            context=context,
        )
        if granted.expires <= own.expires:
            raise AuthenticationError(f"{address} granted a certificate that is no newer")
        return replace(own, certificate=granted.certificate, keys=granted.keys, peers=granted.peers)

    def _ageing_facts(self) -> tuple[ModelId, ...]:
        """Models whose fact is proven by a certificate that ends soon, and before this node's."""
        own_end, soon = self.membership.expires, self._now() + FACT_MARGIN
        ageing: list[ModelId] = []
        for fact in self._facts():
            end = read_certificate(fact.certificate).not_after
            is_own = fact.value.stamp.writer == self._identity.node_id
            if end < own_end and (is_own or end < soon):
                ageing.append(fact.value.model)
        return tuple(ageing)

    def _complain(self, error: P2PLLMError) -> None:
        membership, now = self.membership, self._now()
        if membership.is_expired(now):
            log.error(
                "membership_expired",
                expired=_date(membership),
                detail=str(error),
                advice="restart this node with --join INVITE",
            )
        elif now >= membership.expires - WARNING_MARGIN:
            log.warning(
                "membership_expires_soon",
                expires=_date(membership),
                detail=str(error),
                advice="start the node that founded the swarm; this one asks it by itself",
            )
        else:
            log.info("renewal_postponed", expires=_date(membership), detail=str(error))


def _date(membership: Membership) -> str:
    return f"{membership.expires:%Y-%m-%d %H:%M} UTC"
