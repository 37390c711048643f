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
    nodes = Table("node", "id", "state", "layers", "memory", "sessions", "tok/s", "rtt", box=None)
    for item in answer["nodes"]:
        held = [
            f"{model}: {format_layers([[start, stop] for start, stop, _ in ranges])}"
            + ("" if all(state == "ready" for _, _, state in ranges) else " (loading)")
            for model, ranges in item["layers"].items()
        ]
        round_trip_s = item["round_trip_s"]
        state = "leaving" if item["leaving"] else str(item["state"])
        nodes.add_row(
            Text(item["name"] + (" (this)" if item["self"] else "")),
            item["id"][:8],
            Text(state, style=_STATE_STYLES.get(state, "yellow")),
            Text("\n".join(held) or "-"),
            format_bytes(item["memory_bytes"]),
            str(item["sessions"]),
            f"{item['tokens_per_s']:.1f}",
            "-" if round_trip_s is None else f"{round_trip_s * 1000:.1f} ms",
        )
    models = Table("model", "layers", "fewest copies", "coverage", box=None)
    for model in answer["models"]:
        missing = model["missing"]
        models.add_row(
            Text(model["id"]),
            str(model["layers"]),
            str(min(model["copies"], default=0)),
            Text("complete", style="green")
            if not missing
            else Text(f"layers {format_layers(missing)} missing", style="red"),
        )
    own = answer["node"]
    title = Text(f"swarm {own['swarm'][:8]}, seen from {own['name']} ({own['id'][:8]})")
    return Group(title, Text(), nodes, Text(), models)
