"""What a stream says for its own sake; see `p2pllm.net.streams`. Never reaches the core."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """Nothing was sent to you lately; are you reading?"""


@dataclass(frozen=True, slots=True)
class KeepAliveAck:
    """I am."""
