"""The names things go by. Distinct types, so that a session is never passed for a node."""

from __future__ import annotations

import re
from typing import NewType

NodeId = NewType("NodeId", str)
"""32 lowercase hexadecimal digits: the first 16 bytes of SHA-256 of the node's ed25519 key."""

SwarmId = NewType("SwarmId", str)
"""64 lowercase hexadecimal digits: SHA-256 of the swarm authority's ed25519 public key."""

ModelId = NewType("ModelId", str)
"""The name a model is served under: what a client writes into `"model"`."""

SessionId = NewType("SessionId", str)
"""32 lowercase hexadecimal digits, drawn at random by the gateway; one per generated choice."""

MODEL_ID_LENGTH_MAX = 128

_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_HEX_32 = re.compile(r"[0-9a-f]{32}")


def is_node_id(text: str) -> bool:
    """Whether `text` has the form of a node id."""
    return _HEX_32.fullmatch(text) is not None


def is_session_id(text: str) -> bool:
    """Whether `text` has the form of a session id."""
    return _HEX_32.fullmatch(text) is not None


def is_model_id(text: str) -> bool:
    """Whether `text` may name a model: `name` or `owner/name`, never a path that climbs."""
    return len(text) <= MODEL_ID_LENGTH_MAX and _MODEL_ID.fullmatch(text) is not None


def short(node: NodeId) -> str:
    """The first eight digits, for people to read; never for comparing."""
    return node[:8]
