"""`p2pllm status`: the swarm as one node sees it."""

from __future__ import annotations

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from p2pllm.cli.client import NodeClient, run_async
from p2pllm.cli.options import Api, DataDir, Json, data_dir_or_default
from p2pllm.cli.output import console, format_bytes, format_layers, print_json

_STATE_STYLES = {"alive": "green", "suspect": "yellow", "dead": "red", "left": "dim"}


def status(data_dir: DataDir = None, api: Api = None, as_json: Json = False) -> None:
    """Show nodes, their states and layers, coverage and load.

    Example: p2pllm status --json
    """

    async def work() -> dict[str, Any]:
        async with NodeClient.find(data_dir_or_default(data_dir), api) as client:
            return await client.status()

    answer = run_async(work())
    if as_json:
        print_json(answer)
    else:
        console.print(render(answer))


def render(answer: dict[str, Any]) -> Group:
    """The status as tables."""
    members: list[dict[str, Any]] = answer["members"]
    nodes = Table("node", "id", "state", "layers", "memory", "sessions", "tok/s", "rtt", box=None)
    for member in members:
        load = member["load"] or {"sessions": 0, "tokens_per_s": 0.0}
        round_trip_s = member["round_trip_s"]
        state = "leaving" if member["leaving"] else str(member["state"])
        nodes.add_row(
            Text(member["name"] + (" (this)" if member["self"] else "")),
            member["id"][:8],
            Text(state, style=_STATE_STYLES.get(state, "yellow")),
            Text("\n".join(_holdings(member)) or "-"),
            format_bytes(member["memory_bytes"]),
            str(load["sessions"]),
            f"{load['tokens_per_s']:.1f}",
            "-" if round_trip_s is None else f"{round_trip_s * 1000:.1f} ms",
        )
    models = Table("model", "layers", "fewest copies", "coverage", box=None)
    for model in answer["models"]:
        layers, missing = model["p2pllm"]["layers"], model["p2pllm"]["missing"]
        models.add_row(
            Text(model["id"]),
            str(layers),
            str(min(_copies(members, model["id"], layers))),
            Text("complete", style="green")
            if not missing
            else Text(f"layers {format_layers(missing)} missing", style="red"),
        )
    own = next(member for member in members if member["self"])
    title = Text(f"swarm {answer['swarm'][:8]}, seen from {own['name']} ({own['id'][:8]})")
    return Group(title, Text(), nodes, Text(), models)


def _holdings(member: dict[str, Any]) -> list[str]:
    held: dict[tuple[str, str], list[list[int]]] = {}
    for holding in member["holdings"]:
        held.setdefault((holding["model"], holding["state"]), []).append(holding["layers"])
    return [
        f"{model}: {format_layers(ranges)}" + ("" if state == "ready" else f" ({state})")
        for (model, state), ranges in held.items()
    ]


def _copies(members: list[dict[str, Any]], model: str, layers: int) -> list[int]:
    """Live nodes that have each layer ready."""
    copies = [0] * layers
    for member in members:
        if member["state"] not in ("alive", "suspect"):
            continue
        for holding in member["holdings"]:
            if holding["model"] == model and holding["state"] == "ready":
                for layer in range(*holding["layers"]):
                    copies[layer] += 1
    return copies
