"""Server-sent events: one JSON document per event.

Everything goes through `json.dumps`, which escapes line breaks, so no text a model makes can end
an event or begin another.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

DONE = b"data: [DONE]\n\n"


def event(document: Any) -> bytes:
    """One event."""
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


class EventStream:
    """An answer that is sent event by event; its header goes out with the first one.

    Until then an error can still be told by its status.

    Args:
        request: what is answered.
        write_timeout_s: how long a client may take no bytes before it is hung up on.
    """

    def __init__(self, request: web.Request, *, write_timeout_s: float) -> None:
        self._request = request
        self._write_timeout_s = write_timeout_s
        self._lock = asyncio.Lock()
        self.response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
            }
        )

    @property
    def started(self) -> bool:
        """Whether the header went out."""
        return self.response.prepared

    async def send(self, document: Any) -> None:
        """Send one event.

        Raises:
            ConnectionError: the client went away, or took nothing for `write_timeout_s`.
        """
        await self._write(event(document))

    async def done(self) -> None:
        """Say that the answer is whole, and end it.

        Raises:
            ConnectionError: as in `send`.
        """
        await self._write(DONE)
        await self.end()

    async def end(self) -> None:
        """End the answer.

        Raises:
            ConnectionError: as in `send`.
        """
        async with self._lock:
            await self._bounded(self.response.write_eof())

    async def _write(self, data: bytes) -> None:
        async with self._lock:
            if not self.response.prepared:
                await self.response.prepare(self._request)
            await self._bounded(self.response.write(data))

    async def _bounded(self, write: Any) -> None:
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await write
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionAbortedError(
                f"the client took nothing for {self._write_timeout_s} s"
            ) from None
