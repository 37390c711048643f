"""What people and scripts read: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console

from p2pllm.domain.errors import P2PLLMError

console = Console(highlight=False, soft_wrap=True)
"""Results."""

messages = Console(stderr=True, highlight=False, soft_wrap=True)
"""Progress, hints and errors."""


def print_json(value: Any) -> None:
    """One JSON document on one line."""
    console.out(json.dumps(value, ensure_ascii=False), highlight=False)


def print_error(error: P2PLLMError) -> None:
    """An error in one line."""
    messages.print(f"error: {error}", style="red", markup=False)


def format_bytes(size_bytes: float) -> str:
    """`1.5 GiB`, to two figures or so."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.3g} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} TiB"


def format_rate(tokens_per_s: float | None) -> str:
    """`12.3 tokens/s`; a single token has no rate."""
    return "-" if tokens_per_s is None else f"{tokens_per_s:.1f} tokens/s"


def format_layers(ranges: list[list[int]]) -> str:
    """`0-4, 10-11` for [[0, 5], [10, 12]]."""
    return ", ".join(
        str(start) if stop == start + 1 else f"{start}-{stop - 1}" for start, stop in ranges
    )
