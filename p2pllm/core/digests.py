"""A summary of all one knows that two nodes can compare in one datagram.

Every entry (a key and a text that names its version) falls into one of 256 buckets by the hash of
its key; a bucket's hash is the sum of its entries' hashes, so a change costs two additions. Sums
rather than exclusive-ors of checksums: those are linear, and two peers that each miss one of two
like changes would look the same.
"""

from __future__ import annotations

import hashlib

from p2pllm.core.timers import TimerKey
from p2pllm.domain.gossip import DIGEST_BUCKETS, DIGEST_HASH_BYTES

_MODULUS = 1 << (8 * DIGEST_HASH_BYTES)


class Digests:
    """The buckets of one node."""

    def __init__(self) -> None:
        self._entries: dict[TimerKey, tuple[int, str, int]] = {}
        self._buckets: list[dict[TimerKey, None]] = [{} for _ in range(DIGEST_BUCKETS)]
        # Each the sum of the hashes of its bucket's entries.
        self._sums = [0] * DIGEST_BUCKETS
        self._hashes: bytes | None = None

    def set(self, key: TimerKey, version: str | None) -> None:
        """`key` is held in `version`, or, with None, no more."""
        known = self._entries.get(key)
        if known is not None:
            if known[1] == version:
                return
            self._sums[known[0]] = (self._sums[known[0]] - known[2]) % _MODULUS
        elif version is None:
            return
        self._hashes = None
        if version is None:
            del self._buckets[self._entries.pop(key)[0]][key]
            return
        bucket = bucket_of(key) if known is None else known[0]
        value = _hash(f"{key[0]} {key[1]} {version}")
        self._entries[key] = (bucket, version, value)
        self._buckets[bucket][key] = None
        self._sums[bucket] = (self._sums[bucket] + value) % _MODULUS

    def hashes(self) -> bytes:
        """What to send."""
        if self._hashes is None:
            self._hashes = b"".join(item.to_bytes(DIGEST_HASH_BYTES, "big") for item in self._sums)
        return self._hashes

    def differing(self, hashes: bytes) -> list[int]:
        """Which buckets are not as the sender of `hashes` has them; all where it is malformed."""
        ours = self.hashes()
        if hashes == ours:
            return []
        size = DIGEST_HASH_BYTES
        return [
            bucket
            for bucket in range(DIGEST_BUCKETS)
            if hashes[bucket * size : (bucket + 1) * size]
            != ours[bucket * size : (bucket + 1) * size]
        ]

    def keys(self, bucket: int) -> list[TimerKey]:
        """What is in `bucket`, in the order it came in."""
        return list(self._buckets[bucket])

    def check(self) -> None:
        """Assert that sums and buckets are those of the entries."""
        sums = [0] * DIGEST_BUCKETS
        for key, (bucket, _, value) in self._entries.items():
            assert key in self._buckets[bucket]
            sums[bucket] = (sums[bucket] + value) % _MODULUS
        assert sums == self._sums
        assert sum(map(len, self._buckets)) == len(self._entries)


def bucket_of(key: TimerKey) -> int:
    """Where `key` falls."""
    return hashlib.blake2b(f"{key[0]} {key[1]}".encode(), digest_size=1).digest()[0]


def to_bits(buckets: list[int]) -> bytes:
    """One bit per bucket, lowest first."""
    bits = sum(1 << bucket for bucket in buckets)
    return bits.to_bytes(DIGEST_BUCKETS // 8, "little")


def from_bits(bits: bytes) -> list[int]:
    """The buckets named by `to_bits`."""
    value = int.from_bytes(bits[: DIGEST_BUCKETS // 8], "little")
    return [bucket for bucket in range(DIGEST_BUCKETS) if value >> bucket & 1]


def _hash(text: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode(), digest_size=DIGEST_HASH_BYTES).digest(), "big"
    )
