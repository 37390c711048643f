"""`p2pllm run`: one prompt, one answer."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from p2pllm.cli.client import NodeClient, run_async
from p2pllm.cli.options import Api, DataDir, Json, data_dir_or_default
from p2pllm.cli.output import console, format_rate, messages, print_json


def format_path(path: list[dict[str, Any]]) -> str:
    """`1a2b3c4d 0-4 > 5e6f7a8b 5-11`."""
    hops = []
    for hop in path:
        start, stop = hop["layers"]
        hops.append(f"{hop['node'][:8]} {start}-{stop - 1}")
    return " > ".join(hops)


def run(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As `p2pllm models ls` shows it.")],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The text to go on from.")],
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to generate.")] = 256,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=2.0, help="0 always takes the likeliest token.")
    ] = 1.0,
    seed: Annotated[
        int | None, typer.Option(help="The same seed draws the same text. [default: random]")
    ] = None,
    data_dir: DataDir = None,
    api: Api = None,
    as_json: Json = False,
) -> None:
    """Continue a prompt and print the text as it comes.

    Example: p2pllm run builtin "Once upon a time" --temperature 0
    """
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "p2pllm": {"details": True},
    }
    if seed is not None:
        body["seed"] = seed
    result = run_async(
        _generate(NodeClient.find(data_dir_or_default(data_dir), api), body, quiet=as_json)
    )
    if as_json:
        print_json(result)
        return
    console.out()
    timings = result["timings"]
    messages.print(
        f"{len(result['token_ids'])} tokens, {format_rate(timings['tokens_per_s'])}, "
        f"first after {timings['first_token_s']:.2f} s, path {format_path(result['path'])}",
        style="dim",
    )


async def _generate(client: NodeClient, body: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    text: list[str] = []
    finish_reason: str | None = None
    details: dict[str, Any] = {}
    async with client:
        async for chunk in client.stream("/v1/completions", body):
            details |= chunk.get("p2pllm") or {}
            for choice in chunk["choices"]:
                text.append(choice["text"])
                finish_reason = choice["finish_reason"] or finish_reason
                if not quiet:
                    console.out(choice["text"], end="", highlight=False)
    return {"text": "".join(text), "finish_reason": finish_reason, **details}
