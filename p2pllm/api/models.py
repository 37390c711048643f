"""`/v1/models` and `/v1/models/{id}`."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from p2pllm.api.gateway import ServedModel
from p2pllm.api.service import SERVICE
from p2pllm.domain.layers import LayerRange


def ranges_json(missing: tuple[LayerRange, ...]) -> list[list[int]]:
    """Layer ranges as half-open pairs."""
    return [[layers.start, layers.stop] for layers in missing]


def model_json(model: ServedModel) -> dict[str, Any]:
    """A model as OpenAI lists it, with what this swarm knows beside."""
    return {
        "id": model.spec.id,
        "object": "model",
        "created": model.added_s,
        "owned_by": "p2pllm",
        "p2pllm": {
            "architecture": model.spec.architecture,
            "layers": model.spec.num_layers,
            "context_length": model.spec.context_length_max,
            "vocabulary_size": model.spec.vocabulary_size,
            "fingerprint": model.spec.fingerprint,
            "ready": not model.missing,
            "missing": ranges_json(model.missing),
        },
    }


async def list_models(request: web.Request) -> web.Response:
    """`GET /v1/models`."""
    models = request.app[SERVICE].gateway.models()
    return web.json_response({"object": "list", "data": [model_json(model) for model in models]})


async def show_model(request: web.Request) -> web.Response:
    """`GET /v1/models/{id}`."""
    return web.json_response(model_json(request.app[SERVICE].served(request.match_info["id"])))
