"""A node as a process: what it prints, what ends it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO, cast

import structlog
from rich.console import Console

from p2pllm.app.config import NodeConfig, is_loopback
from p2pllm.app.node import NodeInformation, run_node

LOOP_FALLBACK_NOTE = "uvloop is not available on this platform; the slower standard loop is used"


def run_daemon(config: NodeConfig, *, exit_with_stdin: bool = False) -> None:
    """Run a node until it is told to leave.

    Args:
        config: how.
        exit_with_stdin: leave when standard input ends too, for a parent that may be killed.

    Raises:
        P2PLLMError: it cannot start.
    """
    configure_logging()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_run(config, exit_with_stdin))


async def _run(config: NodeConfig, exit_with_stdin: bool) -> None:
    leave = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, leave.set)
    if exit_with_stdin:
        loop.add_reader(sys.stdin.fileno(), _read_stdin, loop, leave)
    await run_node(config, leave=leave, on_ready=lambda info: _greet(config, info))


def _read_stdin(loop: asyncio.AbstractEventLoop, leave: asyncio.Event) -> None:
    if not os.read(sys.stdin.fileno(), 4_096):
        loop.remove_reader(sys.stdin.fileno())
        leave.set()


def _greet(config: NodeConfig, info: NodeInformation) -> None:
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(f"node    {info.name} ({info.node[:8]}), swarm {info.swarm[:8]}")
    console.print(f"peers   {', '.join(str(address) for address in info.addresses)}")
    console.print(f"api     http://{info.api}/v1")
    if info.invite is not None:
        console.print("\nOn the other machines:\n")
        console.print(f"    p2pllm node --join {info.invite}\n")
        console.print("The line lets 16 machines in within 24 hours; pass it on like a password.")
        if all(is_loopback(address.host) for address in info.addresses):
            console.print("It works on this machine only: the node listens on loopback.")
    if config.is_open:
        console.print(
            "\nOPEN: anybody who reaches this node may join the swarm, take its layers and read "
            "its prompts.\nUse --open on a network you trust only.",
            style="bold red",
        )
        console.print(f"They join with: p2pllm node --join {info.addresses[0]}")
    sys.stdout.flush()


def configure_logging() -> None:
    """Log lines to standard error: readable on a terminal, JSON elsewhere."""
    on_terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # Plain tracebacks: rich ones show local variables, and with them prompts.
            structlog.dev.ConsoleRenderer(
                sort_keys=False, exception_formatter=structlog.dev.plain_traceback
            )
            if on_terminal
            else _render_json,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(cast("TextIO", _StandardError())),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)


class _StandardError:
    """Whatever standard error is at the moment: progress bars put themselves in between."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def _render_json(logger: Any, name: str, event: MutableMapping[str, Any]) -> str | bytes:
    event = structlog.processors.format_exc_info(logger, name, event)
    return structlog.processors.JSONRenderer()(logger, name, event)


def _loop_factory() -> type[asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # Windows
        logging.getLogger(__name__).info(LOOP_FALLBACK_NOTE)
        return None
    return uvloop.Loop
