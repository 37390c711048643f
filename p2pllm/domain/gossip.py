"""What nodes say to each other in datagrams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Generic, TypeVar

from p2pllm.domain.bounds import Bounds, Length

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Signed(Generic[T]):
    """A value with its writer's proof; passed on as it came.

    On the wire stand `payload`, `signature` and `certificate` alone; `value` is decoded from
    `payload` on receipt and never re-encoded, so a newer writer's unknown fields stay signed.

    Attributes:
        value: what was signed.
        payload: its bytes.
        signature: ed25519 over the kind of `value` and `payload`, by the key in `certificate`.
        certificate: the writer's membership certificate, X.509 in DER; with `--open` too.
    """

    value: T
    payload: Annotated[bytes, Length(1_024)]
    signature: Annotated[bytes, Length(64)]
    certificate: Annotated[bytes, Length(512)]


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there?"""

    sequence: Annotated[int, Bounds(0, 2**62)]


GossipMessage = Ping
