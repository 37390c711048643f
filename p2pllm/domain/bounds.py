"""Limits written beside the field they limit, for the codec to enforce on what peers send.

    queue_steps: Annotated[int, Bounds(0, 1_000_000)]
    tokens: Annotated[tuple[int, ...], Length(4_096)]

A field without a limit gets the codec's default one; see `p2pllm.wire.codec`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """A number must lie in `minimum..maximum`, both included; a float must be finite too."""

    minimum: float
    maximum: float


@dataclass(frozen=True, slots=True)
class Length:
    """A text (in UTF-8 bytes), bytes or tuple may have at most `maximum` items."""

    maximum: int
