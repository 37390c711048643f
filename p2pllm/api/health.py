"""`/healthz`, `/readyz` and `/metrics`, for whatever watches the node."""

from __future__ import annotations

from aiohttp import web

from p2pllm.api.metrics import CONTENT_TYPE
from p2pllm.api.models import ranges_json
from p2pllm.api.service import SERVICE


async def healthz(request: web.Request) -> web.Response:
    """`GET /healthz`: the process is up."""
    return web.json_response({"status": "ok"})


async def readyz(request: web.Request) -> web.Response:
    """`GET /readyz`: some model can generate; else 503, with the layers that are missing."""
    models = request.app[SERVICE].gateway.models()
    is_ready = any(not model.missing for model in models)
    return web.json_response(
        {
            "status": "ready" if is_ready else "not_ready",
            "models": [
                {
                    "id": model.spec.id,
                    "ready": not model.missing,
                    "missing": ranges_json(model.missing),
                }
                for model in models
            ],
        },
        status=200 if is_ready else 503,
    )


async def metrics(request: web.Request) -> web.Response:
    """`GET /metrics`."""
    return web.Response(
        body=request.app[SERVICE].metrics.render(), headers={"Content-Type": CONTENT_TYPE}
    )
