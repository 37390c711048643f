from __future__ import annotations

import pytest

from p2pllm.api.guard import Guard, host_name, is_loopback
from tests.api.fakes import face


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("LOCALHOST", True),
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", False),
        ("0.0.0.0", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
    ],
)
def test_loopback_is_told_from_other_hosts(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("authority", "name"),
    [
        ("a:80", "a"),
        ("A", "a"),
        ("[::1]:80", "::1"),
        ("[::1]", "::1"),
        ("[", None),
        ("", None),
        ("user@host:1", "host"),
    ],
)
def test_a_host_header_is_taken_apart(authority: str, name: str | None) -> None:
    assert host_name(authority) == name


def test_an_empty_token_is_a_bug() -> None:
    with pytest.raises(ValueError, match="empty"):
        Guard("127.0.0.1", "")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:1"}, 200),
        ({"Host": "[::1]:1"}, 200),
        ({"Host": "node.lan"}, 200),
        ({"Host": "evil.example:8080"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "["}, 403),
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Origin": "https://node.lan"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
    ],
)
@pytest.mark.parametrize("route", ["/p2pllm/v1/status", "/v1/models", "/metrics"])
async def test_a_strangers_web_page_is_refused(
    headers: dict[str, str], status: int, route: str
) -> None:
    async with (
        face(hosts_allowed=["Node.lan"]) as api,
        api.client.get(api.url + route, headers=headers) as answer,
    ):
        assert answer.status == status


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("desktop.example:1", None, 200),
        ("desktop:1", "http://desktop:1", 200),
        ("desktop.local:1", "http://desktop.local:1", 200),
        ("192.168.1.5:1", "http://192.168.1.5:1", 200),
        ("[fd00::1]:1", "http://[fd00::1]:1", 200),
        ("node.lan:1", "https://node.lan", 200),  # allowed by name
        ("desktop:1", "http://evil.example", 403),
        ("evil.example:1", "http://evil.example:1", 403),  # a name that now points here
    ],
)
async def test_an_open_node_answers_to_any_name_but_not_to_other_sites(
    host: str, origin: str | None, status: int
) -> None:
    headers = {"Host": host} | ({"Origin": origin} if origin else {})
    async with (
        face(host="0.0.0.0", hosts_allowed=["node.lan"]) as api,
        api.client.get(api.url + "/v1/models", headers=headers) as answer,
    ):
        assert answer.status == status


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "desktop.lan"},  # may be a name that a web page let point here
        {"X-Forwarded-For": "8.8.8.8"},
        {"Forwarded": "for=8.8.8.8"},
    ],
)
async def test_a_request_that_may_come_from_elsewhere_needs_the_token(
    headers: dict[str, str],
) -> None:
    async with face(host="0.0.0.0") as api:
        status, answer = await api.get("/p2pllm/v1/status", **headers)
        assert (status, answer["error"]["code"]) == (401, "unauthenticated")
        assert (await api.get("/p2pllm/v1/status"))[0] == 200
