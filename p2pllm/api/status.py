"""The swarm as JSON, for `GET /p2pllm/v1/status`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from p2pllm.api.gateway import ServedModel
from p2pllm.api.models import model_json
from p2pllm.domain.ids import SwarmId
from p2pllm.domain.records import LoadRecord, Member, SwarmView


def status_json(
    view: SwarmView,
    models: Sequence[ServedModel],
    *,
    swarm: SwarmId,
    software: str,
    uptime_s: float,
) -> dict[str, Any]:
    """What `Control.status` returns.

    Args:
        view: members and what they hold.
        models: what is served.
        swarm: which swarm it is.
        software: name and version of this node's program.
        uptime_s: how long it has run.
    """
    return {
        "node": view.self_id,
        "swarm": swarm,
        "software": software,
        "uptime_s": uptime_s,
        "members": [_member_json(member, view) for member in view.members],
        "models": [model_json(model) for model in models],
    }


def _member_json(member: Member, view: SwarmView) -> dict[str, Any]:
    record = member.record
    return {
        "id": record.node,
        "name": record.name,
        "self": record.node == view.self_id,
        "state": member.state.name.lower(),
        "leaving": record.leaving,
        "blacklisted": record.node in view.blacklisted,
        "addresses": [str(address) for address in record.addresses],
        "api": None if record.api is None else str(record.api),
        "memory_bytes": record.memory_bytes,
        "layers_max": record.layers_max,
        "speed_bytes_s": record.speed_bytes_s,
        "round_trip_s": view.round_trip_s.get(record.node),
        "holdings": [
            {
                "model": holding.model,
                "layers": [holding.layers.start, holding.layers.stop],
                "state": holding.state.name.lower(),
            }
            for holding in record.holdings
        ],
        "load": None if member.load is None else _load_json(member.load),
    }


def _load_json(load: LoadRecord) -> dict[str, Any]:
    return {
        "queue_steps": load.queue_steps,
        "sessions": load.sessions,
        "kv_free_bytes": load.kv_free_bytes,
        "tokens_per_s": load.tokens_per_s,
    }
