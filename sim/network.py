"""What a virtual network does to what is sent: it delays, jitters, loses, duplicates, parts.

A datagram arrives once, twice or not at all. A stream delivers in order or breaks: loss shows there
as delay, one retransmission timeout for each segment lost.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Callable
from dataclasses import dataclass

RETRANSMISSION_S = 0.2
"""TCP's shortest retransmission timeout, as common systems have it; doubles each time."""

STREAM_ATTEMPTS = 6
"""Losses in a row after which a stream counts as broken."""


@dataclass(frozen=True, slots=True)
class Link:
    """How it is to send from one machine to another.

    Attributes:
        latency_s: one way, at least.
        jitter_s: added, uniformly distributed.
        loss: share of packets that never arrive.
        duplication: share of datagrams that arrive twice.
    """

    latency_s: float = 0.0005
    jitter_s: float = 0.0005
    loss: float = 0.0
    duplication: float = 0.0


Parted = Callable[[int, int], bool]
"""Whether nothing gets from one machine to another, by their numbers."""


class Network:
    """The links between machines, which are numbered from 0.

    Args:
        random: the network's own stream.
        link: used where no other was set.
    """

    def __init__(self, random: random_module.Random, link: Link) -> None:
        self._random = random
        self.link = link
        self._links: dict[tuple[int, int], Link] = {}
        self._parted: Parted | None = None

    def set_link(self, sender: int, receiver: int, link: Link) -> None:
        """Use `link` from `sender` to `receiver`; the way back is another one."""
        self._links[(sender, receiver)] = link

    def part(self, parted: Parted | None) -> None:
        """Cut every pair for which `parted` holds; None heals all."""
        self._parted = parted

    def is_parted(self, sender: int, receiver: int) -> bool:
        """Whether nothing gets from one to the other now."""
        return self._parted is not None and self._parted(sender, receiver)

    def datagram(self, sender: int, receiver: int) -> list[float]:
        """After how long a datagram arrives: none, one or two times, in seconds."""
        if self.is_parted(sender, receiver):
            return []
        link = self._links.get((sender, receiver), self.link)
        draw = self._random.random
        if link.loss and draw() < link.loss:
            return []
        delays = [link.latency_s + link.jitter_s * draw()]
        if link.duplication and draw() < link.duplication:
            delays.append(link.latency_s + link.jitter_s * draw())
        return delays

    def stream(self, sender: int, receiver: int) -> float | None:
        """After how long a frame arrives, in seconds; None where the stream breaks."""
        if self.is_parted(sender, receiver) or self.is_parted(receiver, sender):
            return None
        link = self._links.get((sender, receiver), self.link)
        delay_s = link.latency_s + link.jitter_s * self._random.random()
        for attempt in range(STREAM_ATTEMPTS):
            if self._random.random() >= link.loss:
                return delay_s
            delay_s += RETRANSMISSION_S * 2**attempt
        return None
