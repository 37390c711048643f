from __future__ import annotations

from typing import Any

import pytest

from p2pllm.domain.errors import ModelRefusedError
from tests.api.fakes import TOKEN, A, Face, face

BEARER = {"Authorization": f"Bearer {TOKEN}"}


async def delete(api: Face, route: str, **headers: str) -> tuple[int, dict[str, Any]]:
    async with api.client.delete(api.url + route, headers=headers) as answer:
        return answer.status, await answer.json()


async def test_status_and_plan_need_no_token_on_this_machine() -> None:
    async with face() as api:
        status, answer = await api.get("/p2pllm/v1/status")
        assert status == 200
        assert answer["members"][0]["id"] == A
        status, answer, _ = await api.post("/p2pllm/v1/plan", {"reference": "owner/model"})
        assert (status, answer) == (200, {"assignments": []})
    assert api.control.asked == [("plan", "owner/model")]


async def test_a_plan_for_nothing_is_not_found() -> None:
    async with face() as api:
        status, answer, _ = await api.post("/p2pllm/v1/plan", {"reference": "nowhere"})
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": TOKEN},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": "Bearer \u00e9"},
        {"Authorization": ""},
    ],
)
async def test_without_the_token_nothing_is_changed(headers: dict[str, str]) -> None:
    async with face() as api:
        for status, answer, *_ in (
            await api.post("/p2pllm/v1/models", {"reference": "r"}, **headers),
            await api.post("/p2pllm/v1/invites", {}, **headers),
            await delete(api, "/p2pllm/v1/models/fake", **headers),
        ):
            assert (status, answer["error"]["code"]) == (401, "unauthenticated")
            assert TOKEN not in str(answer)
    assert api.control.asked == []


async def test_the_owner_adds_and_removes_models_and_mints_invites() -> None:
    async with face() as api:
        status, answer, _ = await api.post(
            "/p2pllm/v1/models", {"reference": "./folder", "name": "mine"}, **BEARER
        )
        assert (status, answer) == (200, {"id": "mine"})
        status, answer = await delete(api, "/p2pllm/v1/models/owner/other", **BEARER)
        assert (status, answer["deleted"], answer["id"]) == (200, True, "owner/other")
        status, answer, _ = await api.post(
            "/p2pllm/v1/invites", {"uses": 3, "ttl_s": 60}, Authorization=f"bearer {TOKEN}"
        )
        assert (status, answer) == (200, {"invite": "p2pllm-invite", "uses": 3, "ttl_s": 60})
    assert api.control.asked == [
        ("add", "./folder", "mine"),
        ("remove", "owner/other"),
        ("invite", 3, 60),
    ]


async def test_refusals_have_their_status() -> None:
    async with face() as api:
        assert (await delete(api, "/p2pllm/v1/models/nope", **BEARER))[0] == 404
        status, answer, _ = await api.post("/p2pllm/v1/invites", {"uses": 99}, **BEARER)
        assert (status, answer["error"]["type"]) == (403, "permission_error")
        api.control.error = ModelRefusedError("it holds code")
        status, answer, _ = await api.post("/p2pllm/v1/models", {"reference": "r"}, **BEARER)
        assert (status, answer["error"]["code"]) == (400, "model_refused")


@pytest.mark.parametrize(
    ("route", "document", "param"),
    [
        ("models", {}, "reference"),
        ("models", {"reference": ""}, "reference"),
        ("models", {"reference": "r", "name": "../x"}, "name"),
        ("models", {"reference": "r", "name": "a/b/c"}, "name"),
        ("models", {"reference": "r", "force": True}, "force"),
        ("plan", {"reference": 1}, "reference"),
        ("invites", {"uses": 0}, "uses"),
        ("invites", {"ttl_s": 10**12}, "ttl_s"),
    ],
)
async def test_wrong_fields_are_named(route: str, document: dict[str, Any], param: str) -> None:
    async with face() as api:
        status, answer, _ = await api.post(f"/p2pllm/v1/{route}", document, **BEARER)
    assert (status, answer["error"]["param"]) == (400, param)
    assert api.control.asked == []
