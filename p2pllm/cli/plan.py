"""`p2pllm plan`: who would hold what, before anything is loaded."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from p2pllm.cli.client import NodeClient, run_async
from p2pllm.cli.models import reference_for_node
from p2pllm.cli.options import Api, DataDir, Json, data_dir_or_default
from p2pllm.cli.output import console, format_bytes, format_layers, print_json


def plan(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A served model, a folder, or a hub id.")
    ],
    data_dir: DataDir = None,
    api: Api = None,
    as_json: Json = False,
) -> None:
    """Show who would hold which layers of a model; loads nothing.

    Example: p2pllm plan ~/models/my-llama
    """

    async def work() -> dict[str, Any]:
        async with NodeClient.find(data_dir_or_default(data_dir), api) as client:
            return await client.plan(reference_for_node(model))

    answer = run_async(work())
    if as_json:
        print_json(answer)
        return
    table = Table("node", "id", "layers", "weights", "to load", box=None)
    for item in answer["nodes"]:
        table.add_row(
            Text(item["name"]),
            item["id"][:8],
            format_layers(item["layers"]) or "-",
            format_bytes(item["bytes"]),
            format_bytes(item["load_bytes"]),
        )
    console.print(table)
    if answer["missing"]:
        console.print(
            f"Not enough memory: layers {format_layers(answer['missing'])} fit nowhere. "
            "Add a machine, or give nodes more with --memory.",
            style="red",
        )
