"""How much KV cache may still be promised, counted in bytes and without a tensor.

A stage promises room before the first step of an attempt and for all tokens it may ever reach, so
that a generation once admitted never fails for want of memory half way. A promise is a *lease*,
held under `(session, attempt)` and given back once. The capacity is what memory is left beside the
weights, so it changes when layers are loaded or dropped; it may fall below what is already leased,
and then nothing new is granted until enough has come back.
"""

from __future__ import annotations

from collections.abc import Iterable

from p2pllm.domain.ids import SessionId
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.models import ModelSpec


def kv_bytes(
    spec: ModelSpec, layers: Iterable[LayerRange], *, tokens: int, element_bytes: int
) -> int:
    """Bytes the KV cache of `tokens` positions takes in `layers` of `spec`."""
    elements = spec.layer_kv_elements()
    return tokens * element_bytes * sum(sum(elements[item.start : item.stop]) for item in layers)


class KvRoom:
    """Leases of KV cache room.

    Args:
        capacity_bytes: room for all leases together.
        leases_max: most leases at once; bounds the bookkeeping where leases are tiny.
    """

    def __init__(self, capacity_bytes: int, *, leases_max: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._leases_max = leases_max
        self._leases: dict[tuple[SessionId, int], int] = {}
        # The sum of all leases.
        self._used_bytes = 0

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def used_bytes(self) -> int:
        """What is leased."""
        return self._used_bytes

    @property
    def free_bytes(self) -> int:
        """What may still be leased; 0 while more is leased than the capacity has shrunk to."""
        return max(0, self._capacity_bytes - self._used_bytes)

    @property
    def capacity_bytes(self) -> int:
        """Room for all leases together."""
        return self._capacity_bytes

    @capacity_bytes.setter
    def capacity_bytes(self, capacity_bytes: int) -> None:
        """Weights were loaded or dropped; what is leased stays leased."""
        self._capacity_bytes = capacity_bytes

    def leases(self) -> tuple[tuple[SessionId, int], ...]:
        """`(session, attempt)` of every lease, oldest first."""
        return tuple(self._leases)

    def lease(self, session: SessionId, attempt: int, size_bytes: int) -> bool:
        """Promise room; False, and nothing changed, where there is not enough.

        Raises:
            ValueError: `(session, attempt)` has a lease already, or the size is negative: a bug.
        """
        if (session, attempt) in self._leases or size_bytes < 0:
            raise ValueError(f"no second lease, and none of {size_bytes} bytes, for one attempt")
        if size_bytes > self.free_bytes or len(self._leases) >= self._leases_max:
            return False
        self._leases[session, attempt] = size_bytes
        self._used_bytes += size_bytes
        return True

    def release(self, session: SessionId, attempt: int) -> int:
        """Take a lease back; returns its bytes.

        Raises:
            ValueError: there is no such lease (any more): a bug.
        """
        size_bytes = self._leases.pop((session, attempt), None)
        if size_bytes is None:
            raise ValueError("a lease is released once")
        self._used_bytes -= size_bytes
        return size_bytes

    def check(self) -> None:
        """Assert that nothing was released twice, lost or promised beyond the bounds."""
        assert self._used_bytes == sum(self._leases.values())
        assert all(size_bytes >= 0 for size_bytes in self._leases.values())
        assert len(self._leases) <= self._leases_max
