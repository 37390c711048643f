from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import pytest

from p2pllm.api.limits import Limits
from p2pllm.api.metrics import Metrics
from p2pllm.api.server import ApiServer
from p2pllm.domain.errors import ConfigurationError
from tests.api.fakes import TOKEN, FakeControl, FakeGateway, face

CHAT = "/v1/chat/completions"


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "fake", "messages": [{"role": "user", "content": "hi"}], **fields}


def raw(port: int, document: dict[str, Any]) -> bytes:
    data = json.dumps(document).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost:{port}\r\nContent-Type: application/json\r\n"
    return head.encode() + f"Content-Length: {len(data)}\r\n\r\n".encode() + data


async def test_a_port_in_use_is_told_in_one_line() -> None:
    async with face() as api:
        other = ApiServer(
            FakeGateway(),
            FakeControl(),
            host="127.0.0.1",
            port=api.server.port,
            control_token=TOKEN,
            metrics=Metrics(),
        )
        with pytest.raises(ConfigurationError, match=f"port {api.server.port}") as caught:
            async with other:
                pass
    assert "\n" not in str(caught.value)
    assert "Address already in use" in str(caught.value)
    assert TOKEN not in repr(vars(other))


async def test_after_closing_nobody_listens_and_the_same_metrics_serve_again() -> None:
    metrics = Metrics()

    async def run(port: int) -> int:
        server = ApiServer(
            FakeGateway(),
            FakeControl(),
            host="127.0.0.1",
            port=port,
            control_token=TOKEN,
            metrics=metrics,
        )
        async with server:
            assert b"p2pllm_members" in metrics.render()
            return server.port

    port = await run(0)
    assert b"p2pllm_members" not in metrics.render()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    assert await run(port) == port


async def test_an_error_inside_the_block_comes_out_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        async with face():
            raise ZeroDivisionError


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("count", [1, 3])
async def test_a_client_that_goes_away_closes_its_generators(streamed: bool, count: int) -> None:
    gateway = FakeGateway(gate=asyncio.Event(), gate_after=3)
    async with face(gateway) as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
        writer.write(raw(api.server.port, body(stream=streamed, n=count)))
        for _ in range(count):
            await gateway.opened.get()
        if streamed:
            await reader.readuntil(b'"content":"H"')
        assert gateway.closed.empty()
        writer.close()
        async with asyncio.timeout(2):
            for _ in range(count):
                _, said = await gateway.closed.get()
                assert said <= 3
        figures = (await api.client.get(api.url + "/metrics")).text()
        text = await figures
        assert 'status="499"' in text
        assert "p2pllm_generations_running 0.0" in text


async def test_a_client_that_takes_nothing_is_hung_up_on() -> None:
    gateway = FakeGateway(text="x" * 2_000_000, context=4_000_000)
    limits = Limits(write_timeout_s=0.2)
    async with face(gateway, limits=limits) as api:
        loop = asyncio.get_running_loop()
        with socket.create_connection(("127.0.0.1", api.server.port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            data = raw(api.server.port, body(stream=True, max_tokens=2_000_000))
            client.setblocking(False)
            await loop.sock_sendall(client, data)
            async with asyncio.timeout(30):
                await gateway.closed.get()


async def test_who_connects_and_asks_nothing_is_hung_up_on() -> None:
    async with face(limits=Limits(header_timeout_s=0.05)) as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async with face(limits=Limits(body_timeout_s=0.05)) as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
        writer.write(raw(api.server.port, body())[:-5])
        async with asyncio.timeout(5):
            assert b" 408 " in await reader.readline()
        writer.close()


async def test_connections_beyond_the_limit_are_told_to_come_again() -> None:
    async with face(limits=Limits(connections_max=3)) as api:

        async def ask() -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
            try:
                if (line := await reader.readline()).startswith(b"HTTP/1.1 429 "):
                    refused.append(await reader.read())
                return line
            finally:
                writer.close()

        refused: list[bytes] = []
        asked = [asyncio.ensure_future(ask()) for _ in range(10)]  # all at once
        async with asyncio.timeout(5):
            while len(refused) < 7:
                done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                asked = [task for task in asked if task not in done]
        assert len(asked) == 3
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    for answer in refused:
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "overloaded"


async def test_generations_beyond_the_limit_are_told_to_come_again() -> None:
    gateway = FakeGateway(gate=asyncio.Event())
    async with face(gateway, limits=Limits(generations_max=2)) as api:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(api.post(CHAT, body(n=2)))
            await gateway.opened.get()
            status, answer, headers = await api.post(CHAT, body())
            assert (status, answer["error"]["code"]) == (429, "overloaded")
            assert headers["Retry-After"] == "1"
            assert gateway.gate is not None
            gateway.gate.set()
        assert running.result()[0] == 200
        assert (await api.post(CHAT, body()))[0] == 200


@pytest.mark.parametrize(
    ("method", "route", "status", "code"),
    [
        ("GET", "/nowhere", 404, "route_not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/chat/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
    ],
)
async def test_a_wrong_route_or_method_has_the_shape_of_an_error(
    method: str, route: str, status: int, code: str
) -> None:
    async with face() as api, api.client.request(method, api.url + route) as answer:
        assert answer.status == status
        document = await answer.json()
        assert document["error"]["code"] == code
        assert ("Allow" in answer.headers) == (status == 405)


async def test_a_body_too_large_is_refused() -> None:
    async with face(limits=Limits(body_bytes_max=1_000)) as api:
        status, answer, _ = await api.post(CHAT, body(user="x" * 2_000))
    assert (status, answer["error"]["code"]) == (413, "body_too_large")


async def test_a_body_that_announces_itself_too_large_is_refused_before_it_comes() -> None:
    async with face() as api:
        reader, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
        head = raw(api.server.port, {}).partition(b"Content-Length")[0]
        writer.write(head + b"Content-Length: 99999999999\r\n\r\n{")
        async with asyncio.timeout(5):
            assert b" 413 " in await reader.readline()
        writer.close()


async def test_a_body_that_is_no_json_or_not_called_so_is_refused() -> None:
    async with face() as api:
        for content_type, status in (("application/json", 400), ("text/plain", 415)):
            async with api.client.post(
                api.url + CHAT, data=b"{", headers={"Content-Type": content_type}
            ) as answer:
                assert answer.status == status
                assert set((await answer.json())["error"]) == {"message", "type", "param", "code"}


async def test_an_answer_under_way_may_end_while_the_server_closes() -> None:
    gateway = FakeGateway(gate=asyncio.Event(), gate_after=2)
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(10), face(gateway) as api:
        running = tasks.create_task(api.post(CHAT, body()))
        await gateway.opened.get()
        assert gateway.gate is not None
        asyncio.get_running_loop().call_later(0.05, gateway.gate.set)
        await api.server.__aexit__(None, None, None)
        assert (await running)[0] == 200
