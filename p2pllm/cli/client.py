"""Talks to a running node over its HTTP API.

A running node writes `control.json` (address and control token, readable by its owner alone) into
its data folder; that is how commands on the same machine find it and prove who asks.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast
from urllib.parse import quote

import aiohttp

from p2pllm.app.config import parse_address
from p2pllm.domain.errors import (
    AuthenticationError,
    ClientError,
    ConfigurationError,
    ModelNotFoundError,
    ModelRefusedError,
    OverloadedError,
    P2PLLMError,
    SwarmError,
)
from p2pllm.domain.records import Address

T = TypeVar("T")

CONTROL_FILE = "control.json"
CONTROL_TIMEOUT_S = 60.0
"""Adding a model may download its configuration first."""


class NodeClient:
    """One running node, seen from a command.

    Args:
        address: of its HTTP API.
        token: its control token, where known.

    Every method raises the `P2PLLMError` the node answered with, or `SwarmError` when no node
    answers.
    """

    def __init__(self, address: Address, token: str | None) -> None:
        self.address = address
        self._token = token
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    def find(cls, data_dir: Path, api: str | None) -> NodeClient:
        """The node that runs on `data_dir`, or the one whose API is at `api`.

        Raises:
            ConfigurationError: no node runs there.
        """
        known = _read_control_file(data_dir)
        if api is not None:
            address = parse_address(api)
            token = known[1] if known is not None and known[0] == address else None
            return cls(address, token)
        if known is None:
            raise ConfigurationError(
                f"no node runs on {data_dir}; start one with `p2pllm node`, or name one with "
                "--data-dir or --api"
            )
        return cls(*known)

    async def __aenter__(self) -> Self:
        headers = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        host = f"[{self.address.host}]" if ":" in self.address.host else self.address.host
        self._session = aiohttp.ClientSession(
            f"http://{host}:{self.address.port}",
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=CONTROL_TIMEOUT_S, sock_connect=5),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def status(self) -> dict[str, Any]:
        """The swarm as the node sees it."""
        return await self._call("GET", "/p2pllm/v1/status")

    async def plan(self, reference: str) -> dict[str, Any]:
        """Who would hold which layers of a model."""
        return await self._call("POST", "/p2pllm/v1/plan", {"reference": reference})

    async def add_model(self, reference: str, name: str | None = None) -> dict[str, Any]:
        """Have the swarm serve a model."""
        return await self._call("POST", "/p2pllm/v1/models", {"reference": reference, "name": name})

    async def remove_model(self, model: str) -> dict[str, Any]:
        """Have the swarm serve a model no longer."""
        return await self._call("DELETE", f"/p2pllm/v1/models/{quote(model)}")

    async def create_invite(self, uses: int, lifetime_s: int) -> str:
        """A new invite."""
        answer = await self._call("POST", "/p2pllm/v1/invites", {"uses": uses, "ttl_s": lifetime_s})
        return str(answer["invite"])

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Chunks of a streamed completion, as they come."""
        assert self._session is not None
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        try:
            async with self._session.post(
                path, json=body | {"stream": True}, timeout=timeout
            ) as response:
                if response.status != 200:
                    raise _error_of(response.status, await _json_of(response))
                async for line in response.content:
                    if not line.startswith(b"data: "):
                        continue
                    data = line[len(b"data: ") :].strip()
                    if data == b"[DONE]":
                        return
                    chunk = cast("dict[str, Any]", json.loads(data))
                    if "error" in chunk:
                        raise _error_of(500, chunk)
                    yield chunk
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._unreachable(error) from None
        raise SwarmError("the node ended the stream in the middle; try again")

    async def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        assert self._session is not None
        try:
            async with self._session.request(method, path, json=body) as response:
                answer = await _json_of(response)
                if response.status >= 400:
                    raise _error_of(response.status, answer)
                return answer
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> SwarmError:
        reason = str(error) or type(error).__name__
        return SwarmError(f"the node at {self.address} does not answer ({reason}); is it running?")


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine."""
    return asyncio.run(work)


def _read_control_file(data_dir: Path) -> tuple[Address, str] | None:
    try:
        content = json.loads((data_dir / CONTROL_FILE).read_text())
        return Address(str(content["host"]), int(content["port"])), str(content["token"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


async def _json_of(response: aiohttp.ClientResponse) -> dict[str, Any]:
    try:
        answer: Any = await response.json(content_type=None)
    except ValueError:
        answer = None
    return cast("dict[str, Any]", answer) if isinstance(answer, dict) else {}


_ERRORS: dict[str, type[P2PLLMError]] = {
    error.code: error
    for error in (
        ModelNotFoundError,
        ModelRefusedError,
        ConfigurationError,
        AuthenticationError,
        OverloadedError,
    )
}


def _error_of(status: int, answer: dict[str, Any]) -> P2PLLMError:
    detail = answer.get("error")
    content = cast("dict[str, Any]", detail) if isinstance(detail, dict) else {}
    message = str(content.get("message") or f"the node answered with status {status}")
    code = str(content.get("code") or "")
    if code in _ERRORS:
        return _ERRORS[code](message)
    if status in (401, 403):
        return AuthenticationError(message)
    if 400 <= status < 500 and status != 429:
        return ClientError(message, code=code or None)
    return SwarmError(message, code=code or None)
