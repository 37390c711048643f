"""`p2pllm join`: enrol this machine, once."""

from __future__ import annotations

from typing import Annotated

import typer

from p2pllm.app.config import default_name
from p2pllm.cli.client import run_async
from p2pllm.cli.options import DataDir, Json, data_dir_or_default
from p2pllm.cli.output import console, print_json


def join(
    invite: Annotated[str, typer.Argument(metavar="INVITE", help="What `p2pllm invite` printed.")],
    data_dir: DataDir = None,
    name: Annotated[
        str | None, typer.Option(help="What people call this node. [default: the host's name]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Enrol this machine in a swarm; from then on `p2pllm node` needs nothing more.

    Example: p2pllm join p2p1.…
    """
    from p2pllm.app.enrol import enrol_with_invite

    folder = data_dir_or_default(data_dir)
    node, swarm = run_async(enrol_with_invite(folder, invite, name or default_name()))
    if as_json:
        print_json({"node": node, "swarm": swarm, "data_dir": str(folder)})
        return
    console.print(f"This machine is now node {node[:8]} of swarm {swarm[:8]}; start `p2pllm node`.")
