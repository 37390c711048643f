"""`p2pllm invite`: a line that lets another machine in."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from p2pllm.cli.client import NodeClient, run_async
from p2pllm.cli.options import Api, DataDir, Json, data_dir_or_default
from p2pllm.cli.output import console, messages, print_json
from p2pllm.domain.errors import ConfigurationError

_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def parse_duration(text: str) -> int:
    """Seconds of `90s`, `30m`, `24h`, `7d`.

    Raises:
        ConfigurationError: it is no such duration, or zero.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,8})([smhd])", text.strip())
    if match is None:
        raise ConfigurationError(f"{text!r} is not a duration; write for example 24h or 30m")
    return int(match[1]) * _UNITS_S[match[2]]


def invite(
    uses: Annotated[int, typer.Option(min=1, max=1_000, help="Machines it lets in.")] = 1,
    ttl: Annotated[str, typer.Option(help="How long it holds: 30m, 24h, 7d.")] = "24h",
    data_dir: DataDir = None,
    api: Api = None,
    as_json: Json = False,
) -> None:
    """Make an invite on a running node that holds the swarm's authority.

    Whoever has the invite can join: pass it on as you would a password.

    Example: p2pllm invite --uses 3 --ttl 2h
    """
    lifetime_s = parse_duration(ttl)

    async def work() -> str:
        async with NodeClient.find(data_dir_or_default(data_dir), api) as client:
            return await client.create_invite(uses, lifetime_s)

    text = run_async(work())
    if as_json:
        print_json({"invite": text, "uses": uses, "ttl_s": lifetime_s})
        return
    messages.print("On the other machine:")
    console.print(f"p2pllm node --join {text}", markup=False)
