"""What the owner may see and ask: status, models, plans, invites; for the control routes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from p2pllm import __version__
from p2pllm.app.enrol import wall_clock
from p2pllm.app.models import ModelLibrary
from p2pllm.core.capacity import PlacementConfig, weight_bytes
from p2pllm.core.events import Event, ModelAdded, ModelRemoved
from p2pllm.core.placement import plan, what_changes
from p2pllm.core.routing import missing_layers
from p2pllm.domain.errors import AuthenticationError, ClientError, ModelNotFoundError
from p2pllm.domain.ids import ModelId, SwarmId
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.models import ModelSpec
from p2pllm.domain.records import (
    MODELS_MAX,
    Address,
    HoldingState,
    Member,
    SwarmView,
)
from p2pllm.security.authority import SwarmAuthority
from p2pllm.security.invites import Invite, InviteBook, format_invite


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
        library: for describing models.
        placement: as the core plans.
        swarm: which swarm this is.
        inviter: None where this node does not hold the swarm's authority.
        addresses: where peers reach this node, best first.
        api: where clients reach it.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        post: Callable[[Event], None],
        view: Callable[[], SwarmView],
        library: ModelLibrary,
        placement: PlacementConfig,
        swarm: SwarmId,
        inviter: Inviter | None,
        addresses: Callable[[], tuple[Address, ...]],
        api: Callable[[], Address],
        clock: Callable[[], float],
    ) -> None:
        self._post = post
        self._view = view
        self._library = library
        self._placement = placement
        self._swarm = swarm
        self._inviter = inviter
        self._addresses = addresses
        self._api = api
        self._clock = clock
        self._started_s = clock()

    def status(self) -> dict[str, Any]:
        """The swarm as seen from here."""
        view = self._view()
        own = next(item.record for item in view.members if item.record.node == view.self_id)
        return {
            "node": {
                "id": own.node,
                "name": own.name,
                "swarm": self._swarm,
                "addresses": [str(address) for address in self._addresses()],
                "api": str(self._api()),
                "can_invite": self._inviter is not None,
                "version": __version__,
                "uptime_s": round(self._clock() - self._started_s, 1),
            },
            "nodes": [_node_status(view, member) for member in view.members],
            "models": [_model_status(view, spec) for spec in view.models],
        }

    async def add_model(self, reference: str, name: str | None) -> dict[str, Any]:
        """Have the swarm serve a model."""
        found = await self._library.describe(reference, name)
        view = self._view()
        if view.model(found.spec.id) is None and len(view.models) >= MODELS_MAX:
            raise ClientError(
                f"the swarm serves {MODELS_MAX} models already; remove one with "
                "`p2pllm models rm` first"
            )
        self._post(ModelAdded(found.spec, wall_ms()))
        return _model_status(self._view(), found.spec)

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
            "model": spec.id,
            "layers": spec.num_layers,
            "nodes": [
                {
                    "id": member.record.node,
                    "name": member.record.name,
                    "layers": _pairs(target.ranges(member.record.node)),
                    "weight_bytes": target.weights_bytes.get(member.record.node, 0),
                    "load_bytes": load_bytes.get(member.record.node, 0),
                }
                for member in asked.usable()
            ],
            "copies": list(target.copies),
            "uncovered": _pairs(target.uncovered),
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


def wall_ms() -> int:
    """Wall time in milliseconds since 1970."""
    return int(wall_clock().timestamp() * 1000)


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


def _pairs(ranges: Iterable[LayerRange]) -> list[list[int]]:
    return [[item.start, item.stop] for item in ranges]


def _node_status(view: SwarmView, member: Member) -> dict[str, Any]:
    record, load = member.record, member.load
    layers: dict[str, list[list[int | str]]] = {}
    for holding in record.holdings:
        layers.setdefault(holding.model, []).append(
            [holding.layers.start, holding.layers.stop, holding.state.name.lower()]
        )
    return {
        "id": record.node,
        "name": record.name,
        "self": record.node == view.self_id,
        "state": member.state.name.lower(),
        "leaving": record.leaving,
        "blacklisted": record.node in view.blacklisted,
        "addresses": [str(address) for address in record.addresses],
        "api": None if record.api is None else str(record.api),
        "layers": layers,
        "memory_bytes": record.memory_bytes,
        "speed_bytes_s": record.speed_bytes_s,
        "queue_steps": 0 if load is None else load.queue_steps,
        "sessions": 0 if load is None else load.sessions,
        "kv_free_bytes": 0 if load is None else load.kv_free_bytes,
        "tokens_per_s": 0.0 if load is None else load.tokens_per_s,
        "round_trip_s": view.round_trip_s.get(record.node),
    }


def _model_status(view: SwarmView, spec: ModelSpec) -> dict[str, Any]:
    copies = [0] * spec.num_layers
    for member in view.usable():
        for holding in member.record.holdings:
            if holding.model == spec.id and holding.state is HoldingState.READY:
                for layer in range(holding.layers.start, holding.layers.stop):
                    copies[layer] += 1
    own = next(item.record for item in view.members if item.record.node == view.self_id)
    return {
        "id": spec.id,
        "reference": spec.reference,
        "architecture": spec.architecture,
        "layers": spec.num_layers,
        "context_length": spec.context_length_max,
        "weight_bytes": sum(weight_bytes(spec, own.parameter_bytes)),
        "copies": copies,
        "missing": _pairs(missing_layers(view, spec)),
    }
