"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from p2pllm.app.config import default_data_dir

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        metavar="D",
        envvar="P2PLLM_DATA_DIR",
        help=f"The node's folder. [default: {default_data_dir()}]",
        show_default=False,
        file_okay=False,
    ),
]
Api = Annotated[
    str | None,
    typer.Option("--api", metavar="HOST:PORT", help="Talk to the node that serves its API there."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


def data_dir_or_default(data_dir: Path | None) -> Path:
    """The folder that was named, or the usual one."""
    return (data_dir or default_data_dir()).expanduser()
