"""Which of the waiting steps a stage runs next.

Whatever arrived while the last batch ran may go into the next one (continuous batching, Orca 2022;
chunks of prefill riding along with decodes, Sarathi-Serve 2024). A batch is

- up to `decode_steps_max` decode steps (one token each): they are nearly free together, since a
  decode step costs the reading of the weights, which they share;
- then at most one prefill chunk, so that a long prompt adds one chunk's time to everybody else's
  token, not all of them. The chunk has its own place in the batch, so decodes never starve it.

Within each of the two kinds the order is by *virtual arrival*: arrival plus `ageing_s` per level of
priority. So a step goes before one of a lower priority, however many there are, unless that one
has waited `ageing_s` longer per level; nobody starves, and equals are served first come, first
served.

Steps of one session are never in one batch, since each needs the cache that the one before leaves
behind, and never overtake each other: only the oldest step of a session is eligible.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from p2pllm.domain.generation import Priority
from p2pllm.domain.ids import SessionId
from p2pllm.domain.messages import CHUNK_TOKENS_MAX, Forward


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Bounds of a stage's queue.

    Attributes:
        steps_max: waiting steps; half a million prompt tokens in chunks of 256.
        sessions_max: sessions with waiting steps; bounds the sort before each batch.
        activation_bytes_max: of all waiting steps together, since an activation of one chunk
            may take megabytes.
        decode_steps_max: decode steps in a batch; above some 16 rows a CPU gains nothing more,
            a GPU above some 64.
        ageing_s: how much longer a step must have waited to go before one of the next higher
            priority.
    """

    steps_max: int = 2_048
    sessions_max: int = 256
    activation_bytes_max: int = 512 * 2**20
    decode_steps_max: int = 64
    ageing_s: float = 2.0

    @property
    def batch_tokens_max(self) -> int:
        """Most tokens in one batch."""
        return self.decode_steps_max + CHUNK_TOKENS_MAX


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A step in the queue; `order` is (virtual arrival, sequence number)."""

    order: tuple[float, int]
    forward: Forward

    @property
    def is_decode(self) -> bool:
        return len(self.forward.tokens) == 1


class StepQueue:
    """The steps that are ready to run at one stage."""

    def __init__(self, limits: QueueLimits) -> None:
        self._limits = limits
        # Each session's waiting steps, oldest first; no empty ones.
        self._waiting: dict[SessionId, deque[_Waiting]] = {}
        self._sequence = 0
        self._steps = 0
        self._activation_bytes = 0

    def __len__(self) -> int:
        return self._steps

    def __contains__(self, session: SessionId) -> bool:
        return session in self._waiting

    def push(self, forward: Forward, priority: Priority, now: float) -> bool:
        """Have a step wait; False, and nothing changed, where the queue is full."""
        size_bytes = _activation_bytes(forward)
        if (
            self._steps >= self._limits.steps_max
            or self._activation_bytes + size_bytes > self._limits.activation_bytes_max
            or (
                forward.session not in self._waiting
                and len(self._waiting) >= self._limits.sessions_max
            )
        ):
            return False
        order = (now + int(priority) * self._limits.ageing_s, self._sequence)
        self._sequence += 1
        self._waiting.setdefault(forward.session, deque()).append(_Waiting(order, forward))
        self._steps += 1
        self._activation_bytes += size_bytes
        return True

    def next_batch(self) -> tuple[Forward, ...]:
        """Take the steps to run next out of the queue, decodes first; empty where none wait."""
        heads = sorted((waiting[0] for waiting in self._waiting.values()), key=_order)
        decodes = [head.forward for head in heads if head.is_decode]
        prefills = [head.forward for head in heads if not head.is_decode]
        batch = (*decodes[: self._limits.decode_steps_max], *prefills[:1])
        for forward in batch:
            waiting = self._waiting[forward.session]
            waiting.popleft()
            if not waiting:
                del self._waiting[forward.session]
            self._forget(forward)
        return batch

    def discard(self, session: SessionId) -> int:
        """Drop all steps of a session; returns how many there were."""
        waiting = self._waiting.pop(session, ())
        for item in waiting:
            self._forget(item.forward)
        return len(waiting)

    def waiting(self) -> tuple[Forward, ...]:
        """Every waiting step, session by session."""
        return tuple(item.forward for waiting in self._waiting.values() for item in waiting)

    def check(self) -> None:
        """Assert that the counts are right and the bounds kept."""
        waiting = self.waiting()
        assert self._steps == len(waiting) <= self._limits.steps_max
        assert self._activation_bytes == sum(map(_activation_bytes, waiting))
        assert self._activation_bytes <= self._limits.activation_bytes_max
        assert len(self._waiting) <= self._limits.sessions_max
        for session, items in self._waiting.items():
            assert items
            assert all(item.forward.session == session for item in items)

    def _forget(self, forward: Forward) -> None:
        self._steps -= 1
        self._activation_bytes -= _activation_bytes(forward)


def _order(item: _Waiting) -> tuple[float, int]:
    return item.order


def _activation_bytes(forward: Forward) -> int:
    return 0 if forward.activation is None else forward.activation.size_bytes
