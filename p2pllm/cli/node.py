"""`p2pllm node`: the daemon, in the foreground."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from p2pllm.app.config import NodeConfig, default_name, parse_address, parse_size
from p2pllm.app.threads import let_threads_sleep
from p2pllm.cli.models import reference_for_node
from p2pllm.cli.options import DataDir, data_dir_or_default


def node(
    data_dir: DataDir = None,
    name: Annotated[
        str | None, typer.Option(help="What people call this node. [default: the host's name]")
    ] = None,
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where peers reach it, TCP and UDP.")
    ] = "0.0.0.0:7770",
    api: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where clients reach its HTTP API.")
    ] = "127.0.0.1:7771",
    join: Annotated[
        list[str] | None,
        typer.Option(metavar="INVITE|HOST:PORT", help="An invite, or where a member listens."),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="REF", help="A model to serve: a folder, a hub id, or `builtin`."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="For weights and KV cache. [default: half of free]"),
    ] = None,
    max_layers: Annotated[
        int | None, typer.Option(min=1, help="Hold at most this many layers.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads for torch. [default: one per physical core]")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    no_mdns: Annotated[
        bool, typer.Option("--no-mdns", help="Neither announce nor look for peers by mDNS.")
    ] = False,
    open_swarm: Annotated[
        bool,
        typer.Option(
            "--open", help="Let anybody on the network in without an invite. Trusted LANs only."
        ),
    ] = False,
    exit_with_stdin: Annotated[bool, typer.Option("--exit-with-stdin", hidden=True)] = False,
) -> None:
    """Run a node in the foreground; Ctrl-C or SIGTERM makes it leave gracefully.

    The first node makes a swarm and prints the line that joins others to it.

    Example: p2pllm node --memory 8GiB --model builtin
    """
    config = NodeConfig(
        data_dir=data_dir_or_default(data_dir),
        name=name if name is not None else default_name(),
        listen=parse_address(listen),
        api=parse_address(api),
        join=tuple(join or ()),
        models=tuple(reference_for_node(reference) for reference in model or ()),
        memory_bytes=None if memory is None else parse_size(memory),
        layers_max=max_layers,
        threads=threads,
        device=device,
        dtype=dtype,
        mdns=not no_mdns,
        is_open=open_swarm,
    )
    # Before torch is imported, which is what the next line does.
    let_threads_sleep(os.environ)
    from p2pllm.app.daemon import run_daemon

    run_daemon(config, exit_with_stdin=exit_with_stdin)
