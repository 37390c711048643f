from __future__ import annotations

from p2pllm.domain.layers import LayerRange
from tests.api.fakes import FakeGateway, face


async def test_a_process_that_answers_is_healthy() -> None:
    async with face(FakeGateway(names=())) as api:
        assert await api.get("/healthz") == (200, {"status": "ok"})


async def test_a_node_is_ready_when_some_model_has_all_its_layers() -> None:
    async with face(FakeGateway(names=("fake",))) as api:
        status, answer = await api.get("/readyz")
    model = {"id": "fake", "ready": True, "missing": []}
    assert (status, answer) == (200, {"status": "ready", "models": [model]})


async def test_a_node_that_is_not_ready_names_the_missing_layers() -> None:
    async with face(FakeGateway(names=("fake",), missing=(LayerRange(0, 2),))) as api:
        status, answer = await api.get("/readyz")
    model = {"id": "fake", "ready": False, "missing": [[0, 2]]}
    assert (status, answer) == (503, {"status": "not_ready", "models": [model]})


async def test_a_node_without_models_is_not_ready() -> None:
    async with face(FakeGateway(names=())) as api:
        status, _ = await api.get("/readyz")
    assert status == 503
