"""Tokens in, text out: as early as it is certain, never taken back.

Two stages. The *detokeniser* turns tokens into text: a token may hold a part of a character, so
text is held back while it ends in U+FFFD, and decoding looks only at a short window, so that the
work per token does not grow with the answer. The *stop finder* looks for stop strings, which may
lie across tokens: it holds back a suffix that may still become one.

Nothing here does I/O; a token costs two decodes of at most `PENDING_TOKENS_MAX +
CONTEXT_TOKENS_MAX` tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

PENDING_TOKENS_MAX = 16
"""A character is at most four bytes and so at most four tokens; more than this is not text."""

CONTEXT_TOKENS_MAX = 16
"""Tokens decoded before the new ones, since some decoders drop the space of the first word."""

Decode = Callable[[Sequence[int]], str]


class Detokeniser:
    """Decodes a growing list of tokens piece by piece.

    The pieces join up to what decoding all tokens at once gives, for every decoder in which text
    that does not end in U+FFFD is never changed by later tokens: byte-level ones always, those
    with byte fallback where the bytes are valid UTF-8.

    Args:
        decode: the tokenizer's.
        context: tokens before the first one, which decide for example on a leading space; their
            own text is not given out.
    """

    def __init__(self, decode: Decode, context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._context = list(context[-CONTEXT_TOKENS_MAX:])
        """Tokens whose text was given out."""
        self._context_length = len(decode(self._context)) if self._context else 0
        self._pending: list[int] = []
        """Tokens whose text was not."""

    def push(self, token: int) -> str:
        """The text that `token` makes certain; often its own, sometimes none."""
        self._pending.append(token)
        text = self._pending_text()
        if text and not text.endswith(REPLACEMENT):
            self._settle(len(self._pending))
            return text
        if len(self._pending) < PENDING_TOKENS_MAX:
            return ""
        return self._relieve(text)

    def finish(self) -> str:
        """What is left; no more tokens come."""
        text = self._pending_text() if self._pending else ""
        self._pending.clear()
        return text

    def _pending_text(self) -> str:
        return self._decode([*self._context, *self._pending])[self._context_length :]

    def _settle(self, count: int) -> None:
        """Note that the text of the first `count` pending tokens was given out."""
        self._context = self._pending[:count][-CONTEXT_TOKENS_MAX:]
        self._context_length = len(self._decode(self._context))
        del self._pending[:count]

    def _relieve(self, text: str) -> str:
        """Give out what can be of a pending list that became too long.

        Special tokens have no text: they are dropped, and what they stood among may still become a
        character. Otherwise the tokens hold bytes that are no characters. They are cut in two where
        both halves decode as they do together: had the cut split a character, the halves would
        show more replacements than the whole.
        """
        if not text:
            if self._context:
                self._pending.clear()
            else:
                self._settle(len(self._pending))
            return ""
        before = len(self._pending)
        for place in range(before - 1, -1, -1):
            token = self._pending.pop(place)
            # A token that is nothing alone may still be a space among others.
            if self._decode([token]) or self._pending_text() != text:
                self._pending.insert(place, token)
        if len(self._pending) < before:
            return ""
        for count in range(len(self._pending) - 1, 0, -1):
            tail = self._decode(self._pending[count:])
            head = self._decode([*self._context, *self._pending[:count]])[self._context_length :]
            if tail and head + tail == text:
                self._settle(count)
                return head
        self._settle(len(self._pending))
        return text


class StopFinder:
    """Cuts text before the stop string that is complete first (of several, the longest).

    Args:
        stops: none of them empty.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stops)
        self._held = ""
        """The longest suffix of the text so far that begins a stop string."""
        self.stopped = False
        """Whether a stop string was met; what comes after it is dropped."""

    def push(self, text: str) -> str:
        """The text that is certain not to belong to a stop string."""
        if self.stopped:
            return ""
        text = self._held + text
        hits = [
            (start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0
        ]
        if hits:
            self.stopped = True
            self._held = ""
            return text[: min(hits)[1]]
        kept = min((self._beginning(text, stop) for stop in self._stops), default=len(text))
        self._held = text[kept:]
        return text[:kept]

    def finish(self) -> str:
        """What was held back; no more text comes."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _beginning(text: str, stop: str) -> int:
        """Where the longest suffix of `text` starts that begins `stop`; its length if none."""
        start = text.find(stop[0], max(0, len(text) - len(stop) + 1))
        while start >= 0 and not stop.startswith(text[start:]):
            start = text.find(stop[0], start + 1)
        return start if start >= 0 else len(text)


class TextStream:
    """Both stages in a row.

    Args:
        decode: the tokenizer's.
        stops: strings that end the text; not part of it.
        context: tokens before the first one, see `Detokeniser`.
    """

    def __init__(
        self, decode: Decode, *, stops: Sequence[str] = (), context: Sequence[int] = ()
    ) -> None:
        self._detokeniser = Detokeniser(decode, context)
        self._finder = StopFinder(stops)
        self.decoded_length = 0
        """Characters decoded so far, those held back for a stop string included."""
        self.released_length = 0
        """Characters given out so far."""

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the text."""
        return self._finder.stopped

    def push(self, token: int) -> str:
        """The text that is certain with this token."""
        return self._release(self._detokeniser.push(token), is_last=False)

    def finish(self) -> str:
        """The rest of the text; no more tokens come. May still meet a stop string."""
        return self._release(self._detokeniser.finish(), is_last=True)

    def _release(self, decoded: str, *, is_last: bool) -> str:
        self.decoded_length += len(decoded)
        text = self._finder.push(decoded)
        if is_last:
            text += self._finder.finish()
        self.released_length += len(text)
        return text
