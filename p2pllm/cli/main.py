"""Puts the commands together and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from p2pllm import __version__
from p2pllm.cli import chat, demo, invite, join, models, node, plan, run_prompt, status
from p2pllm.cli.output import console, print_error
from p2pllm.domain.errors import (
    AuthenticationError,
    ClientError,
    ConfigurationError,
    P2PLLMError,
    SwarmError,
)

EXIT_FAILURE = 1
EXIT_CONFIGURATION = 3
EXIT_REQUEST = 4
EXIT_SWARM = 5
EXIT_INTERRUPTED = 130

application = typer.Typer(
    name="p2pllm",
    invoke_without_command=True,
    epilog=(
        "Exit codes: 0 done, 1 unexpected failure, 2 wrong usage, 3 configuration or "
        "authentication, 4 the request or the model is refused, 5 the node or the swarm cannot "
        "serve it now, 130 interrupted."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@application.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Several machines, one language model: peer-to-peer, encrypted, no master."""
    if version:
        console.out(f"p2pllm {__version__}")
        raise typer.Exit


application.command("node")(node.node)
application.command("invite")(invite.invite)
application.command("join")(join.join)
application.add_typer(models.application, name="models")
application.command("status")(status.status)
application.command("plan")(plan.plan)
application.command("run")(run_prompt.run)
application.command("chat")(chat.chat)
application.command("demo")(demo.demo)


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Returns:
        The exit code, as the help's last lines say.
    """
    try:
        application(list(arguments), prog_name="p2pllm")
    except SystemExit as exit_request:
        return exit_request.code if isinstance(exit_request.code, int) else EXIT_FAILURE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough; the interpreter must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILURE
    except P2PLLMError as error:
        print_error(error)
        return exit_code(error)
    return 0


def exit_code(error: P2PLLMError) -> int:
    """The code a person's script sees for an error."""
    match error:
        case ConfigurationError() | AuthenticationError():
            return EXIT_CONFIGURATION
        case ClientError():
            return EXIT_REQUEST
        case SwarmError():
            return EXIT_SWARM
        case _:
            return EXIT_FAILURE
