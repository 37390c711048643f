"""`p2pllm models`: what the swarm serves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from p2pllm.cli.client import NodeClient, run_async
from p2pllm.cli.options import Api, DataDir, Json, data_dir_or_default
from p2pllm.cli.output import console, format_layers, print_json

application = typer.Typer(no_args_is_help=True, help="Add, remove and list what the swarm serves.")


def reference_for_node(reference: str) -> str:
    """A folder's path made absolute, since the node has another working directory."""
    path = Path(reference).expanduser()
    return str(path.resolve()) if path.is_dir() else reference


@application.command("add")
def add(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="A folder, a hub id, or `builtin`.")
    ],
    name: Annotated[
        str | None, typer.Option(help="Serve it under this name. [default: the folder's or hub's]")
    ] = None,
    data_dir: DataDir = None,
    api: Api = None,
    as_json: Json = False,
) -> None:
    """Have the swarm serve a model.

    Example: p2pllm models add ~/models/my-llama
    """

    async def work() -> dict[str, Any]:
        async with NodeClient.find(data_dir_or_default(data_dir), api) as client:
            return await client.add_model(reference_for_node(reference), name)

    answer = run_async(work())
    if as_json:
        print_json(answer)
    else:
        layers = answer["p2pllm"]["layers"]
        console.print(f"The swarm serves {answer['id']} ({layers} layers).", markup=False)


@application.command("rm")
def remove(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Its name, as `ls` shows it.")],
    data_dir: DataDir = None,
    api: Api = None,
    as_json: Json = False,
) -> None:
    """Have the swarm serve a model no longer; nodes free its layers.

    Example: p2pllm models rm my-llama
    """

    async def work() -> None:
        async with NodeClient.find(data_dir_or_default(data_dir), api) as client:
            await client.remove_model(model)

    run_async(work())
    if as_json:
        print_json({"id": model, "removed": True})
    else:
        console.print(f"The swarm serves {model} no longer.", markup=False)


@application.command("ls")
def list_models(data_dir: DataDir = None, api: Api = None, as_json: Json = False) -> None:
    """List what the swarm serves, and which layers have no holder yet.

    Example: p2pllm models ls
    """

    async def work() -> list[dict[str, Any]]:
        async with NodeClient.find(data_dir_or_default(data_dir), api) as client:
            return list((await client.status())["models"])

    found = run_async(work())
    if as_json:
        print_json({"models": found})
        return
    table = Table("model", "architecture", "layers", "context", "state", box=None)
    for model in found:
        details = model["p2pllm"]
        missing = details["missing"]
        table.add_row(
            model["id"],
            details["architecture"],
            str(details["layers"]),
            str(details["context_length"]),
            "ready" if not missing else f"layers {format_layers(missing)} missing",
        )
    console.print(table)
