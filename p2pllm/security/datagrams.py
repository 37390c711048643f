"""Datagrams are sealed: AES-256-GCM, one subkey per sender and start of its process.

Theory of operation. The swarm shares a ring of at most two keys; the newest seals, both open.
From a ring key, HKDF-SHA256 (RFC 5869) derives a subkey for each (sender, boot epoch). A node's
boot epoch rises at every start and its counter with every datagram, so under one subkey a nonce is
never used twice, without anybody having to agree on anything.

    offset  bytes
    0       1      version
    1       1      number of the ring key
    2       16     sender, the raw node id
    18      8      boot epoch of the sender, unsigned, big endian
    26      8      counter, from 1; also the nonce, behind four zero bytes
    34      n      payload, encrypted
    34 + n  16     tag; the 34 bytes of the header are its associated data

A receiver keeps for each sender the newest epoch and a window of counters seen in it. An older
epoch, a counter seen before, or one below the window is refused.

What this proves: the sender is a member, and the datagram is no copy. It does not prove *which*
member, since all hold the ring: a member that lies may pose as another. Hence every record in a
datagram is signed by its owner (`signatures.py`). A receiver that has just started knows no
counters yet, so an old datagram may pass once; records in it carry versions of their own.
"""

from __future__ import annotations

import struct
from collections import OrderedDict

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from p2pllm.domain.enrolment import DATAGRAM_KEYS_MAX, DatagramKey
from p2pllm.domain.errors import AuthenticationError
from p2pllm.domain.ids import NodeId

KEY_BYTES = 32
EPOCH_MAX = 2**63 - 1

_VERSION = 1
_HEADER = struct.Struct(">BB16sQQ")
_NONCE = struct.Struct(">IQ")
_TAG_BYTES = 16

OVERHEAD_BYTES = _HEADER.size + _TAG_BYTES
"""What sealing adds to a payload: 50 bytes."""

DATAGRAM_BYTES_MAX = 65_535
"""More than UDP carries."""

WINDOW = 1_024
"""Counters a datagram may come late by. A node sends some hundred datagrams a second at most, to
all peers together, so this is seconds of reordering."""

SENDERS_MAX = 4_096
"""Senders remembered, the least recently heard forgotten first. Far above any swarm; bounds what
a member that invents names can make its peers keep. Who is forgotten could be replayed once."""


def next_boot_epoch(stored: int, wall_ms: int) -> int:
    """The epoch of this start; store it on the disk before the first datagram is sealed.

    Args:
        stored: the last start's, 0 where there was none.
        wall_ms: milliseconds since 1970. With it, a node whose stored epoch was lost still gets a
            new one; without relying on it, one whose clock went back does too.
    """
    return max(stored + 1, wall_ms)


def check_keys(keys: tuple[DatagramKey, ...]) -> None:
    """Make sure that `keys` are a ring.

    Raises:
        ValueError: they do not.
    """
    numbers = [key.number for key in keys]
    if (
        not 1 <= len(keys) <= DATAGRAM_KEYS_MAX
        or len(set(numbers)) != len(numbers)
        or not all(0 <= number <= 255 for number in numbers)
        or any(len(key.secret) != KEY_BYTES for key in keys)
    ):
        raise ValueError("a datagram ring has one or two keys of 32 bytes and different numbers")


class DatagramSealer:
    """Seals what this node sends and opens what others sent. Belongs to one thread.

    Args:
        self_id: this node.
        keys: the ring, newest first; one or two of 32 bytes.
        boot_epoch: from `next_boot_epoch`; using one twice would break the encryption.

    Raises:
        ValueError: the ring or the epoch is not as said.
    """

    def __init__(self, self_id: NodeId, keys: tuple[DatagramKey, ...], boot_epoch: int) -> None:
        check_keys(keys)
        if not 0 < boot_epoch <= EPOCH_MAX:
            raise ValueError(f"no boot epoch: {boot_epoch}")
        self._keys = {key.number: key.secret for key in keys}
        self._number = keys[0].number
        self._self = bytes.fromhex(self_id)
        self._epoch = boot_epoch
        self._counter = 0
        self._cipher = _derive(keys[0].secret, self._self, boot_epoch)
        # Least recently heard first; only senders that have sealed with a key of the ring.
        self._senders: OrderedDict[bytes, _Sender] = OrderedDict()

    def __repr__(self) -> str:
        return f"DatagramSealer(self_id={self._self.hex()!r}, boot_epoch={self._epoch})"

    def seal(self, payload: bytes) -> bytes:
        """`payload`, encrypted; `OVERHEAD_BYTES` longer."""
        self._counter += 1
        header = _HEADER.pack(_VERSION, self._number, self._self, self._epoch, self._counter)
        return header + self._cipher.encrypt(_NONCE.pack(0, self._counter), payload, header)

    def open(self, data: bytes) -> tuple[NodeId, bytes]:
        """Who sealed `data`, and what is in it.

        Raises:
            AuthenticationError: it was not sealed by a member, was changed, or came before.
        """
        if not OVERHEAD_BYTES <= len(data) <= DATAGRAM_BYTES_MAX:
            raise AuthenticationError("a datagram of no possible length")
        version, number, sender_id, epoch, counter = _HEADER.unpack_from(data)
        if version != _VERSION:
            raise AuthenticationError("a datagram of another version")
        secret = self._keys.get(number)
        if secret is None:
            raise AuthenticationError("a datagram under a key that is not in the ring")
        if sender_id == self._self:
            raise AuthenticationError("a datagram of this node itself came back")
        if epoch > EPOCH_MAX:
            raise AuthenticationError("a datagram of an impossible boot epoch")
        sender = self._senders.get(sender_id)
        if sender is not None:
            if epoch < sender.epoch:
                raise AuthenticationError("a datagram from before its sender's last start")
            if epoch > sender.epoch:
                sender = None  # kept in the table until this datagram is proven
            elif not sender.is_new(counter):
                raise AuthenticationError("a datagram that came before")
        cipher = None if sender is None else sender.ciphers.get(number)
        if cipher is None:
            cipher = _derive(secret, sender_id, epoch)
        header, body = data[: _HEADER.size], data[_HEADER.size :]
        try:
            payload = cipher.decrypt(_NONCE.pack(0, counter), body, header)
        except InvalidTag:
            raise AuthenticationError(
                "a datagram that no member sealed, or that was changed"
            ) from None
        # All that is remembered is written below this line, so strangers leave no trace.
        if sender is None:
            sender = _Sender(epoch)
            self._senders[sender_id] = sender
            if len(self._senders) > SENDERS_MAX:
                self._senders.popitem(last=False)
        sender.ciphers[number] = cipher
        sender.mark(counter)
        self._senders.move_to_end(sender_id)
        return NodeId(sender_id.hex()), payload


class _Sender:
    """What is remembered of a sender: its epoch, which counters came, and derived ciphers."""

    __slots__ = ("ciphers", "epoch", "highest", "seen")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.ciphers: dict[int, AESGCM] = {}
        self.highest = 0
        # Bit i stands for the counter highest - i. Counter 0 is never sealed, hence seen.
        self.seen = 1

    def is_new(self, counter: int) -> bool:
        """Whether `counter` is neither seen nor too old to tell."""
        age = self.highest - counter
        return age < 0 or (age < WINDOW and not self.seen >> age & 1)

    def mark(self, counter: int) -> None:
        """Remember a new `counter`."""
        ahead = counter - self.highest
        if ahead <= 0:
            self.seen |= 1 << -ahead
        elif ahead >= WINDOW:
            self.highest, self.seen = counter, 1
        else:
            self.highest = counter
            self.seen = (self.seen << ahead | 1) & _WINDOW_MASK


_WINDOW_MASK = (1 << WINDOW) - 1


def _derive(secret: bytes, sender: bytes, epoch: int) -> AESGCM:
    information = b"p2pllm datagram 1" + sender + epoch.to_bytes(8)
    return AESGCM(HKDF(SHA256(), KEY_BYTES, salt=None, info=information).derive(secret))
