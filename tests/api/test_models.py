from __future__ import annotations

import pytest

from p2pllm.domain.layers import LayerRange
from tests.api.fakes import FakeGateway, face


async def test_models_are_listed_with_what_they_miss() -> None:
    async with face(FakeGateway(missing=(LayerRange(1, 3),))) as api:
        status, answer = await api.get("/v1/models")
    assert status == 200
    assert answer["object"] == "list"
    assert [model["id"] for model in answer["data"]] == ["fake", "owner/other"]
    assert answer["data"][0]["created"] == 1_700_000_000
    assert answer["data"][0]["p2pllm"]["missing"] == [[1, 3]]
    assert answer["data"][0]["p2pllm"]["ready"] is False
    assert "/home" not in str(answer)  # the folder is its owner's business


@pytest.mark.parametrize("name", ["fake", "owner/other", "owner%2Fother"])
async def test_a_model_is_shown_by_its_id(name: str) -> None:
    async with face() as api:
        status, answer = await api.get(f"/v1/models/{name}")
    assert (status, answer["id"]) == (200, name.replace("%2F", "/"))


async def test_an_unknown_model_is_not_found() -> None:
    async with face() as api:
        status, answer = await api.get("/v1/models/owner/nope")
        assert (status, answer["error"]["code"]) == (404, "model_not_found")
        document = {"model": "nope", "prompt": "x"}
        status, answer, _ = await api.post("/v1/completions", document)
    assert (status, answer["error"]["param"]) == (404, "model")
