"""`p2pllm chat`: a conversation in the terminal."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from p2pllm.cli.client import NodeClient, run_async
from p2pllm.cli.options import Api, DataDir, data_dir_or_default
from p2pllm.cli.output import console, messages, print_error
from p2pllm.domain.errors import P2PLLMError


def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As `p2pllm models ls` shows it.")],
    system: Annotated[str | None, typer.Option(help="What the model is told beforehand.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens an answer has.")] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0)] = 0.7,
    data_dir: DataDir = None,
    api: Api = None,
) -> None:
    """Talk with a model; an empty line or Ctrl-D ends, Ctrl-C stops an answer.

    Example: p2pllm chat builtin
    """
    conversation: list[dict[str, Any]] = []
    if system is not None:
        conversation.append({"role": "system", "content": system})
    client = NodeClient.find(data_dir_or_default(data_dir), api)
    messages.print(f"Talking with {model}. An empty line ends.", style="dim", markup=False)
    while question := _ask():
        conversation.append({"role": "user", "content": question})
        body: dict[str, Any] = {
            "model": model,
            "messages": conversation,
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        answer: list[str] = []
        try:
            run_async(_answer(client, body, answer))
        except KeyboardInterrupt:
            messages.print("[stopped]", style="dim", markup=False)
        except P2PLLMError as error:
            print_error(error)
            conversation.pop()
            continue
        conversation.append({"role": "assistant", "content": "".join(answer)})


def _ask() -> str:
    try:
        return console.input("[bold]> [/bold]").strip()
    except EOFError:
        console.out()
        return ""


async def _answer(client: NodeClient, body: dict[str, Any], answer: list[str]) -> None:
    async with client:
        async for chunk in client.stream("/v1/chat/completions", body):
            for choice in chunk["choices"]:
                piece = choice["delta"].get("content") or ""
                answer.append(piece)
                console.out(piece, end="", highlight=False)
    console.out()
