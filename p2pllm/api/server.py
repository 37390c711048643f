"""The HTTP server: routes, the way every error goes, and the sockets."""

from __future__ import annotations

import asyncio
import functools
import json
import os
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import structlog
from aiohttp import web

from p2pllm.api import chat, completions, control, health, models
from p2pllm.api.errors import RequestError, from_error, from_http, internal
from p2pllm.api.gateway import Control, Gateway
from p2pllm.api.guard import GUARD, Guard
from p2pllm.api.limits import Limits
from p2pllm.api.metrics import Metrics
from p2pllm.api.service import SERVICE, Service
from p2pllm.domain.errors import ConfigurationError, OverloadedError, P2PLLMError

log = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

ROUTES = (
    web.get("/v1/models", models.list_models),
    web.get("/v1/models/{id:.+}", models.show_model),
    web.post("/v1/chat/completions", chat.create_chat_completion),
    web.post("/v1/completions", completions.create_completion),
    web.get("/healthz", health.healthz),
    web.get("/readyz", health.readyz),
    web.get("/metrics", health.metrics),
    web.get("/p2pllm/v1/status", control.show_status),
    web.post("/p2pllm/v1/plan", control.plan),
    web.post("/p2pllm/v1/models", control.add_model),
    web.delete("/p2pllm/v1/models/{id:.+}", control.remove_model),
    web.post("/p2pllm/v1/invites", control.create_invite),
)

CLIENT_CLOSED = 499


class ApiServer:
    """Serves a node's HTTP face; `async with` opens and closes it.

    Args:
        gateway: generates.
        control: acts for the owner.
        host: address to bind; loopback unless the owner opened the node.
        port: 0 for any free one.
        control_token: opens the routes that change the node; not empty, never logged.
        metrics: where figures go; others may share its registry.
        hosts_allowed: host names, beside those of loopback, clients may use for a node bound to
            loopback, for example behind a reverse proxy.
        limits: bounds.
    """

    def __init__(
        self,
        gateway: Gateway,
        control: Control,
        *,
        host: str,
        port: int,
        control_token: str,
        metrics: Metrics,
        hosts_allowed: Iterable[str] = (),
        limits: Limits | None = None,
    ) -> None:
        self._host = host
        self._asked_port = port
        self._metrics = metrics
        self._limits = limits or Limits()
        self._service = Service(gateway, control, metrics, self._limits)
        self._guard = Guard(host, control_token, hosts_allowed)
        self._silent: dict[asyncio.BaseProtocol, asyncio.TimerHandle] = {}
        """Connections whose first request has not come, and when they are hung up on; each stays
        for `header_timeout_s` at most."""
        self._arriving = 0
        """Connections accepted that the HTTP library does not know yet."""
        self._port = 0
        self._stack = AsyncExitStack()

    @property
    def port(self) -> int:
        """The port it listens on, once it does."""
        return self._port

    async def __aenter__(self) -> Self:
        """Listen.

        Raises:
            ConfigurationError: the address cannot be bound.
        """
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._service.running())
            runner = web.AppRunner(
                self._application(),
                handle_signals=False,
                # A client that goes away cancels its handler, which closes its generators.
                handler_cancellation=True,
                access_log=None,
                keepalive_timeout=75.0,
                lingering_time=2.0,
                shutdown_timeout=self._limits.shutdown_timeout_s,
            )
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            stack.callback(self._forget_silent)
            listener = await self._listen(runner)
            stack.callback(listener.close)
            self._port = listener.sockets[0].getsockname()[1]
            collector = self._metrics.watch(self._service.control)
            stack.callback(self._metrics.unwatch, collector)
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            monitor = tasks.create_task(self._metrics.measure_loop_delay(), name="loop-delay")
            stack.callback(monitor.cancel)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop listening; answers under way have `Limits.shutdown_timeout_s` to end."""
        await self._stack.aclose()

    def _application(self) -> web.Application:
        application = web.Application(
            middlewares=[self._answer], client_max_size=self._limits.body_bytes_max
        )
        application[SERVICE] = self._service
        application[GUARD] = self._guard
        application.add_routes(ROUTES)
        return application

    async def _listen(self, runner: web.AppRunner) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        try:
            return await loop.create_server(
                functools.partial(self._accept, runner),
                self._host,
                self._asked_port,
                backlog=128,
            )
        except OSError as error:
            # asyncio repeats the address in its text; the system's own text says enough.
            number = error.errno or 0
            reason = os.strerror(number) if number > 0 else error.strerror or error
            raise ConfigurationError(
                f"cannot serve the API on {self._host} port {self._asked_port} "
                f"({reason}); choose another port, or end what uses it"
            ) from None

    def _accept(self, runner: web.AppRunner) -> asyncio.BaseProtocol:
        """The protocol of a new connection."""
        server = runner.server
        if server is None:
            return _Refusal()
        if len(server.connections) + self._arriving >= self._limits.connections_max:
            return _Refusal()
        protocol = server()
        loop = asyncio.get_running_loop()
        # The loop tells the protocol of its connection in the next turn; until then the server
        # does not count it, and a burst of connections is accepted in one turn.
        self._arriving += 1
        loop.call_soon(loop.call_soon, self._arrived)
        self._silent[protocol] = loop.call_later(
            self._limits.header_timeout_s, self._drop_silent, protocol
        )
        return protocol

    def _arrived(self) -> None:
        self._arriving -= 1

    def _drop_silent(self, protocol: web.RequestHandler) -> None:
        """Hang up on who connected and asked nothing."""
        del self._silent[protocol]
        protocol.force_close()

    def _forget_silent(self) -> None:
        for timer in self._silent.values():
            timer.cancel()
        self._silent.clear()

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Check, count, and turn errors into answers."""
        if (timer := self._silent.pop(request.protocol, None)) is not None:
            timer.cancel()
        resource = request.match_info.route.resource
        route = "unmatched" if resource is None else resource.canonical
        status = CLIENT_CLOSED
        self._metrics.requests_running.inc()
        try:
            response = await self._guarded(request, handler)
            status = response.status
            return response
        finally:
            self._metrics.requests_running.dec()
            self._metrics.requests.labels(route, str(status)).inc()

    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            self._guard.check_source(request)
            return await handler(request)
        except RequestError as error:
            return error.response()
        except P2PLLMError as error:
            return from_error(error).response()
        except web.HTTPException as error:
            return from_http(error, body_bytes_max=self._limits.body_bytes_max).response()
        except Exception:
            log.exception("api_request_failed", method=request.method, path=request.path)
            return internal().response()


class _Refusal(asyncio.Protocol):
    """Tells a connection beyond the limit to come again."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.WriteTransport):
            error = from_error(OverloadedError("too many connections; try again in a moment"))
            body = json.dumps(error.body()).encode()
            transport.write(
                b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\n"
                b"Retry-After: 1\r\nConnection: close\r\n"
                b"Content-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body
            )
            transport.close()
