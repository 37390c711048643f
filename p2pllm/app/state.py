"""What a node remembers between runs besides its keys: who it was, whom it knew, what was served.

A torn or foreign file costs comfort (peers are found again, the incarnation is learnt from the
others), never the start: it is put aside and said so.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from p2pllm.domain.errors import ConfigurationError
from p2pllm.domain.records import INCARNATION_MAX, Address
from p2pllm.security.storage import read_private_json, write_private_json

STATE_FILE = "state.json"
PEERS_MAX = 256
"""Addresses remembered; enough to find a swarm again, few enough to try them all."""

_KIND = "p2pllm node state"


class NodeState(BaseModel):
    """The file `state.json` in the data folder.

    Attributes:
        incarnation: the highest this node has used; the next run starts above it.
        peers: where others listened when last heard of, as (host, port).
        facts: which models the swarm serves: `Bodies` messages with a signed fact, in base64.
    """

    incarnation: int = Field(default=0, ge=0, le=INCARNATION_MAX - 1)
    peers: list[tuple[str, int]] = Field(default_factory=list[tuple[str, int]])
    facts: list[str] = Field(default_factory=list[str])

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The remembered peers."""
        return tuple(Address(host, port) for host, port in self.peers[:PEERS_MAX])


def load_state(folder: Path) -> tuple[NodeState, str | None]:
    """The remembered state, and a warning where the file could not be used."""
    path = folder / STATE_FILE
    try:
        content = read_private_json(path, _KIND, remedy="it is put aside")
        return NodeState.model_validate(content or {}), None
    except (ConfigurationError, ValidationError):
        aside = path.with_suffix(".unreadable.json")
        path.replace(aside)
        return NodeState(), f"{path.name} could not be read and is now {aside.name}"


def save_state(folder: Path, state: NodeState) -> None:
    """Write atomically: a crash leaves the old file or the new one.

    Raises:
        ConfigurationError: the disk is full or read-only; the node goes on without.
    """
    write_private_json(folder / STATE_FILE, _KIND, state.model_dump())
