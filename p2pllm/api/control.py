"""`/p2pllm/v1/...`: what the node's owner asks of it, by way of the command line."""

from __future__ import annotations

from aiohttp import web

from p2pllm.api.errors import RequestError
from p2pllm.api.guard import GUARD
from p2pllm.api.schemas import InviteBody, ModelBody, PlanBody
from p2pllm.api.service import SERVICE
from p2pllm.domain.ids import ModelId, is_model_id


async def show_status(request: web.Request) -> web.Response:
    """`GET /p2pllm/v1/status`."""
    request.app[GUARD].check_token_or_local(request)
    return web.json_response(request.app[SERVICE].control.status())


async def plan(request: web.Request) -> web.Response:
    """`POST /p2pllm/v1/plan`."""
    request.app[GUARD].check_token_or_local(request)
    service = request.app[SERVICE]
    body = await service.read(request, PlanBody)
    return web.json_response(await service.control.plan(body.reference))


async def add_model(request: web.Request) -> web.Response:
    """`POST /p2pllm/v1/models`."""
    request.app[GUARD].check_token(request)
    service = request.app[SERVICE]
    body = await service.read(request, ModelBody)
    if body.name is not None and not is_model_id(body.name):
        raise RequestError(
            "'name': letters, digits, '.', '_' and '-', with one '/' at most, are needed",
            param="name",
            code="invalid_value",
        )
    return web.json_response(await service.control.add_model(body.reference, body.name))


async def remove_model(request: web.Request) -> web.Response:
    """`DELETE /p2pllm/v1/models/{id}`."""
    request.app[GUARD].check_token(request)
    service = request.app[SERVICE]
    model = service.served(request.match_info["id"]).spec.id
    await service.control.remove_model(ModelId(model))
    return web.json_response({"id": model, "object": "model", "deleted": True})


async def create_invite(request: web.Request) -> web.Response:
    """`POST /p2pllm/v1/invites`."""
    request.app[GUARD].check_token(request)
    service = request.app[SERVICE]
    body = await service.read(request, InviteBody)
    invite = service.control.create_invite(body.uses, body.ttl_s)
    return web.json_response({"invite": invite, "uses": body.uses, "ttl_s": body.ttl_s})
