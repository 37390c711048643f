"""How commands find a node, and what its errors become."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from p2pllm.cli.client import CONTROL_FILE, NodeClient
from p2pllm.domain.errors import (
    AuthenticationError,
    ClientError,
    ConfigurationError,
    ModelNotFoundError,
    SwarmError,
)
from p2pllm.domain.records import Address


def error(status: int, code: str | None, message: str = "why") -> web.Response:
    return web.json_response({"error": {"message": message, "code": code}}, status=status)


async def status(request: web.Request) -> web.Response:
    return web.json_response({"token": request.headers.get("Authorization")})


async def fail(request: web.Request) -> web.Response:
    status_code, code = request.match_info["kind"].split("-", 1)
    return error(int(status_code), code or None)


async def stream(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for piece in body["pieces"]:
        await response.write(f"data: {json.dumps(piece)}\n\n".encode())
    if body.get("done", True):
        await response.write(b"data: [DONE]\n\n")
    return response


@pytest.fixture
async def server() -> AsyncGenerator[TestServer, None]:
    application = web.Application()
    application.router.add_get("/p2pllm/v1/status", status)
    application.router.add_delete("/p2pllm/v1/models/{kind}", fail)
    application.router.add_post("/v1/completions", stream)
    async with TestServer(application) as running:
        yield running


def address(server: TestServer) -> Address:
    assert server.port is not None
    return Address("127.0.0.1", server.port)


def write_control_file(folder: Path, where: Address) -> None:
    content = {"host": where.host, "port": where.port, "token": "secret", "pid": 1}
    (folder / CONTROL_FILE).write_text(json.dumps(content))


async def test_the_data_folder_leads_to_the_node_and_its_token(
    server: TestServer, tmp_path: Path
) -> None:
    write_control_file(tmp_path, address(server))
    async with NodeClient.find(tmp_path, None) as client:
        assert await client.status() == {"token": "Bearer secret"}


async def test_a_token_is_not_sent_to_another_address(server: TestServer, tmp_path: Path) -> None:
    write_control_file(tmp_path, Address("127.0.0.1", 1))
    async with NodeClient.find(tmp_path, str(address(server))) as client:
        assert await client.status() == {"token": None}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": "x"}'])
def test_a_torn_control_file_is_no_node(content: str, tmp_path: Path) -> None:
    (tmp_path / CONTROL_FILE).write_text(content)
    with pytest.raises(ConfigurationError, match="p2pllm node"):
        NodeClient.find(tmp_path, None)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("404-model_not_found", ModelNotFoundError),
        ("401-", AuthenticationError),
        ("400-other", ClientError),
        ("429-overloaded", SwarmError),
        ("503-layers_missing", SwarmError),
    ],
)
async def test_an_answer_with_an_error_becomes_that_error(
    kind: str, expected: type[Exception], server: TestServer
) -> None:
    async with NodeClient(address(server), None) as client:
        with pytest.raises(expected, match="why"):
            await client.remove_model(kind)


async def test_chunks_come_in_order(server: TestServer) -> None:
    pieces: list[dict[str, Any]] = [{"choices": [n]} for n in range(3)]
    async with NodeClient(address(server), None) as client:
        found = [chunk async for chunk in client.stream("/v1/completions", {"pieces": pieces})]
    assert found == pieces


async def test_an_error_in_the_middle_of_a_stream_is_raised(server: TestServer) -> None:
    pieces = [{"choices": [1]}, {"error": {"message": "layers 3 are gone", "code": "x"}}]
    async with NodeClient(address(server), None) as client:
        with pytest.raises(SwarmError, match="layers 3 are gone"):
            _ = [chunk async for chunk in client.stream("/v1/completions", {"pieces": pieces})]


async def test_a_stream_that_just_ends_is_an_error(server: TestServer) -> None:
    async with NodeClient(address(server), None) as client:
        with pytest.raises(SwarmError, match="in the middle"):
            _ = [
                chunk
                async for chunk in client.stream("/v1/completions", {"pieces": [], "done": False})
            ]


async def test_a_node_that_is_not_there_is_said_so() -> None:
    async with NodeClient(Address("127.0.0.1", 1), None) as client:
        with pytest.raises(SwarmError, match="is it running"):
            await client.status()
