"""`python -m bench [QUESTION...]`: measure, always beside a reference in the same run.

Questions:
  hop        how long an activation takes from node to node, beside plain TCP
  swarm      memory, idle CPU, start and speed of a swarm, beside transformers alone
  placement  how good plans are and what changes cost, beside other rules
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable

from rich.console import Console
from rich.table import Table

from bench import hop, placement, swarm
from bench.figures import Finding
from bench.machine import look_at_machine
from bench.report import print_machine, to_json, to_table
from p2pllm.domain.errors import P2PLLMError

WIDTH = 140
SIZE_MAX = 10_000

Measure = Callable[[argparse.Namespace], Awaitable[list[Finding]]]

QUESTIONS: dict[str, Measure] = {
    "hop": lambda options: hop.measure(rounds=options.rounds, runs=options.runs),
    "swarm": lambda options: swarm.measure(
        runs=options.runs, tokens=options.tokens, threads=options.threads, idle_s=options.idle
    ),
    "placement": lambda options: placement.measure(
        sizes=options.sizes, seeds=options.seeds, steps=options.steps, say=_say
    ),
}

TABLES: dict[str, Callable[[Finding], Table]] = {"placement": placement.to_table}
"""Those whose table is of their own form."""


def sizes(text: str) -> tuple[int, ...]:
    """Sizes of fleets from the command line, such as `4,16,64`."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(2 <= size <= SIZE_MAX for size in found):
        raise argparse.ArgumentTypeError(
            f"sizes are numbers from 2 to {SIZE_MAX:,}, with commas between them"
        )
    return found


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("questions", nargs="*", metavar="QUESTION", help="default: all of them")
    made.add_argument("--json", action="store_true", help="one document instead of tables")
    made.add_argument("--runs", type=int, default=5, help="per figure [%(default)s]")
    made.add_argument("--rounds", type=int, default=2_000, help="of hop, per run [%(default)s]")
    made.add_argument("--tokens", type=int, default=64, help="per generation [%(default)s]")
    made.add_argument("--threads", type=int, default=1, help="per process [%(default)s]")
    made.add_argument("--idle", type=float, default=20.0, help="seconds watched [%(default)s]")
    made.add_argument(
        "--sizes", type=sizes, default=placement.SIZES, help="of fleets to place on [2,4,...,64]"
    )
    made.add_argument("--seeds", type=int, default=2, help="fleets per size [%(default)s]")
    made.add_argument(
        "--steps", type=int, default=20, help="joins and leaves per fleet [%(default)s]"
    )
    return made


def main(arguments: list[str]) -> int:
    """Run; the exit code."""
    options = parser().parse_args(arguments)
    unknown = [name for name in options.questions if name not in QUESTIONS]
    least = min(options.runs, options.rounds, options.seeds, options.steps, options.tokens - 1)
    if unknown or least < 1:
        names = ", ".join(QUESTIONS)
        parser().error(
            f"no question is called {unknown[0]}; there are {names}"
            if unknown
            else "--runs, --rounds, --seeds and --steps must be at least 1, --tokens at least 2"
        )
    started_s = time.monotonic()
    messages = Console(stderr=True, soft_wrap=True)
    console = Console()
    # In a file or a pipe, lines need not fit a terminal of 80 columns.
    if not console.is_terminal:
        console = Console(width=WIDTH)
    machine = look_at_machine()
    print_machine(messages, machine)
    findings: list[Finding] = []
    try:
        for name in options.questions or QUESTIONS:
            found = asyncio.run(_measured(QUESTIONS[name], options))
            findings += found
            if not options.json:
                for finding in found:
                    console.print(TABLES.get(name, to_table)(finding))
    except P2PLLMError as error:
        messages.print(f"error: {error}", style="red", highlight=False, markup=False)
        return 1
    if options.json:
        print(to_json(machine, findings, time.monotonic() - started_s))
    return 0


async def _measured(measure: Measure, options: argparse.Namespace) -> list[Finding]:
    return await measure(options)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
