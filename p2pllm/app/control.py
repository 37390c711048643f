"""What the owner may see and ask: status, models, plans, invites; for the control routes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from p2pllm import __version__
from p2pllm.api.gateway import ServedModel
from p2pllm.api.models import model_json, ranges_json
from p2pllm.api.status import status_json
from p2pllm.app.enrol import wall_clock, wall_ms
from p2pllm.app.models import ModelLibrary
from p2pllm.core.capacity import PlacementConfig
from p2pllm.core.events import Event, ModelAdded, ModelRemoved
from p2pllm.core.placement import plan, what_changes
from p2pllm.domain.errors import (
    AuthenticationError,
    ClientError,
    ModelNotFoundError,
    ModelRefusedError,
)
from p2pllm.domain.ids import ModelId, NodeId, SwarmId
from p2pllm.domain.models import ModelSpec
from p2pllm.domain.records import (
    MODELS_MAX,
    WALL_MS_MAX,
    Address,
    HybridTime,
    ModelFact,
    SwarmView,
)
from p2pllm.security.authority import SwarmAuthority
from p2pllm.security.invites import Invite, InviteBook, format_invite
from p2pllm.wire.codec import encode

FACT_BYTES_MAX = 700
"""Of an encoded model fact: with signature and certificate it must fit into one datagram."""

LATEST = HybridTime(WALL_MS_MAX, 2**31, NodeId("f" * 32))
"""The longest stamp, for sizing."""


@dataclass(frozen=True, slots=True)
class Inviter:
    """What it takes to let others in; only a node with the swarm's authority has one.

    Attributes:
        authority: the swarm's.
        book: remembers what was given out.
    """

    authority: SwarmAuthority
    book: InviteBook


class CoreControl:
    """Implements `p2pllm.api.gateway.Control`.

    Args:
        post: hands an event to the core.
        view: the swarm as this node sees it.
        models: what the swarm serves.
        library: for describing models.
        placement: as the core plans.
        swarm: which swarm this is.
        inviter: None where this node does not hold the swarm's authority.
        addresses: where peers reach this node, best first.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        post: Callable[[Event], None],
        view: Callable[[], SwarmView],
        models: Callable[[], Sequence[ServedModel]],
        library: ModelLibrary,
        placement: PlacementConfig,
        swarm: SwarmId,
        inviter: Inviter | None,
        addresses: Callable[[], tuple[Address, ...]],
        clock: Callable[[], float],
    ) -> None:
        self._post = post
        self._view = view
        self._models = models
        self._library = library
        self._placement = placement
        self._swarm = swarm
        self._inviter = inviter
        self._addresses = addresses
        self._clock = clock
        self._started_s = clock()

    def status(self) -> dict[str, Any]:
        """The swarm as seen from here."""
        return status_json(
            self._view(),
            self._models(),
            swarm=self._swarm,
            software=f"p2pllm {__version__}",
            uptime_s=round(self._clock() - self._started_s, 1),
        )

    async def add_model(self, reference: str, name: str | None) -> dict[str, Any]:
        """Have the swarm serve a model."""
        found = await self._library.describe(reference, name)
        view = self._view()
        if view.model(found.spec.id) is None and len(view.models) >= MODELS_MAX:
            raise ClientError(
                f"the swarm serves {MODELS_MAX} models already; remove one with "
                "`p2pllm models rm` first"
            )
        size_bytes = len(encode(ModelFact(found.spec.id, LATEST, found.spec)))
        if size_bytes > FACT_BYTES_MAX:
            raise ModelRefusedError(
                f"{found.spec.id} takes {size_bytes} bytes to describe, {FACT_BYTES_MAX} fit into "
                "a datagram; serve it from a folder with a shorter path or under a shorter name"
            )
        self._post(ModelAdded(found.spec, wall_ms()))
        return next(model_json(model) for model in self._models() if model.spec.id == found.spec.id)

    async def remove_model(self, model: ModelId) -> None:
        """Have the swarm serve it no longer."""
        if self._view().model(model) is None:
            raise ModelNotFoundError(f"the swarm does not serve {model}; see `p2pllm models ls`")
        self._post(ModelRemoved(model, wall_ms()))

    async def plan(self, reference: str) -> dict[str, Any]:
        """Who would hold which layers, as if every node could reach the model's files."""
        view = self._view()
        spec = view.model(ModelId(reference))
        if spec is None:
            spec = (await self._library.describe(reference)).spec
        asked = _as_if_served(view, spec)
        planned = plan(asked, self._placement)
        target = planned.models[spec.id]
        load_bytes = {
            change.node: change.load_bytes
            for change in what_changes(asked, planned)
            if change.model == spec.id
        }
        return {
            "model": {
                "id": spec.id,
                "reference": spec.reference,
                "architecture": spec.architecture,
                "layers": spec.num_layers,
                "parameters": sum(spec.layer_parameters()),
            },
            "nodes": [
                {
                    "id": member.record.node,
                    "name": member.record.name,
                    "layers": ranges_json(target.ranges(member.record.node)),
                    "bytes": target.weights_bytes.get(member.record.node, 0),
                    "load_bytes": load_bytes.get(member.record.node, 0),
                }
                for member in asked.usable()
            ],
            "copies": list(target.copies),
            "missing": ranges_json(target.uncovered),
        }

    def create_invite(self, uses: int, lifetime_s: int) -> str:
        """A new invite."""
        if self._inviter is None:
            raise AuthenticationError(
                "this node does not hold the swarm's authority; ask the node that made the swarm",
                code="no_authority",
            )
        secret = self._inviter.book.create(
            uses=uses, lifetime=timedelta(seconds=lifetime_s), now=wall_clock()
        )
        return format_invite(Invite(self._swarm, secret, self._addresses()))


def _as_if_served(view: SwarmView, spec: ModelSpec) -> SwarmView:
    models = tuple(sorted({**{m.id: m for m in view.models}, spec.id: spec}.items()))
    members = tuple(
        member
        if spec.id in member.record.models
        else replace(
            member,
            record=replace(member.record, models=(*member.record.models, spec.id)),
        )
        for member in view.members
    )
    return replace(view, members=members, models=tuple(model for _, model in models))
