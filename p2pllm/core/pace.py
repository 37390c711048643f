"""How long to wait for a token before a path is taken for dead.

A broken stream is noticed at once; this is for the peer that hangs while its streams stay open.
Waiting too long stalls a sentence, waiting too short replays a prefill for nothing and adds load
where there is too much already, so the wait follows what was observed:

- a step: mean + 4 deviations of the time between tokens, smoothed as TCP smooths round trips
  (Jacobson 1988, RFC 6298), plus a margin. The margin is `MARGIN_S`, or what one foreign prefill
  chunk takes on the whole path where that is longer, since every stage may be given one between
  two of our steps;
- a prefill: several times what its tokens took lately, plus a floor, since it may have to queue
  behind others.

Each time a wait runs out without anybody to blame, the next prefill is allowed twice as long.
"""

from __future__ import annotations

MARGIN_S = 0.5
"""Least wait over the expected time of a step."""

STEP_UNKNOWN_S = 5.0
"""Wait for the second token of a path, when no time between tokens is known."""

PREFILL_FLOOR_S = 5.0
PREFILL_FACTOR = 4.0
PREFILL_S_PER_TOKEN_UNKNOWN = 0.1
"""Ten tokens a second: a model that is large for the machines it runs on."""

PREFILL_TOKENS_MIN = 64
"""A prefill of fewer tokens takes about as long as one of so many: it reads all weights."""

BACKOFF_MAX = 16.0


class Pace:
    """What was observed of one path.

    Args:
        prefill_s_per_token: observed on another path of the same model, or None.
        chunk_tokens: tokens of a prefill chunk, as everybody sends them.
    """

    def __init__(self, prefill_s_per_token: float | None, *, chunk_tokens: int) -> None:
        self.prefill_s_per_token = prefill_s_per_token
        self._chunk_tokens = chunk_tokens
        self._step_s: float | None = None
        self._deviation_s = 0.0

    def prefill_took(self, tokens: int, elapsed_s: float) -> float:
        """The first token came `elapsed_s` after a prefill of `tokens` was sent.

        Returns:
            Seconds per token, smoothed.
        """
        sample = elapsed_s / max(tokens, PREFILL_TOKENS_MIN)
        known = self.prefill_s_per_token
        rate = sample if known is None else 0.5 * known + 0.5 * sample
        self.prefill_s_per_token = rate
        return rate

    def step_took(self, elapsed_s: float) -> None:
        """A token came `elapsed_s` after the one before."""
        if self._step_s is None:
            self._step_s, self._deviation_s = elapsed_s, elapsed_s / 2
            return
        self._deviation_s += (abs(elapsed_s - self._step_s) - self._deviation_s) / 4
        self._step_s += (elapsed_s - self._step_s) / 8

    def prefill_allowance_s(self, tokens: int, timeouts: int) -> float:
        """How long to wait for the first token after a prefill of `tokens`."""
        rate = self.prefill_s_per_token
        if rate is None:
            rate = PREFILL_S_PER_TOKEN_UNKNOWN
        return min(BACKOFF_MAX, 2.0**timeouts) * (
            PREFILL_FLOOR_S + PREFILL_FACTOR * rate * max(tokens, PREFILL_TOKENS_MIN)
        )

    def step_allowance_s(self) -> float:
        """How long to wait for the next token after one came."""
        chunk_s = (self.prefill_s_per_token or 0.0) * self._chunk_tokens
        expected_s = (
            STEP_UNKNOWN_S if self._step_s is None else self._step_s + 4 * self._deviation_s
        )
        return expected_s + max(MARGIN_S, chunk_s)
