"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from pydantic import ValidationError

from p2pllm.domain.errors import (
    AuthenticationError,
    ClientError,
    DeadlineExceededError,
    ModelNotFoundError,
    OverloadedError,
    P2PLLMError,
    SwarmError,
)

INVALID_REQUEST = "invalid_request_error"
AUTHENTICATION = "authentication_error"
PERMISSION = "permission_error"
RATE_LIMIT = "rate_limit_error"
SERVER = "server_error"


class RequestError(Exception):
    """An answer other than what was asked for.

    Attributes:
        status: HTTP status.
        message: one line, for people.
        type: OpenAI's class of error.
        param: the field of the request that is wrong, if one is.
        code: stable, machine-readable.
        headers: to send along.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = INVALID_REQUEST,
        param: str | None = None,
        code: str = "invalid_request",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON to send."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> web.Response:
        """The whole answer."""
        return web.Response(
            status=self.status,
            body=json.dumps(self.body()).encode(),
            content_type="application/json",
            headers=self.headers,
        )


def unsupported(param: str, detail: str = "") -> RequestError:
    """A field that would change the result, and that is not implemented."""
    message = f"'{param}' is not supported here{': ' + detail if detail else ''}; leave it out"
    return RequestError(message, param=param, code="unsupported_parameter")


def from_error(error: P2PLLMError) -> RequestError:
    """How an error of ours is told to a client."""
    message, code = str(error), error.code
    match error:
        case ModelNotFoundError():
            return RequestError(message, status=404, param="model", code=code)
        case ClientError():
            return RequestError(message, status=400, code=code)
        case OverloadedError():
            seconds = str(max(1, math.ceil(error.retry_after_s)))
            return RequestError(
                message,
                status=429,
                type=RATE_LIMIT,
                code=code,
                headers={"Retry-After": seconds},
            )
        case DeadlineExceededError():
            return RequestError(message, status=504, type=SERVER, code=code)
        case SwarmError():
            return RequestError(message, status=503, type=SERVER, code=code)
        case AuthenticationError():
            return RequestError(message, status=403, type=PERMISSION, code=code)
        case _:
            return RequestError(message, status=500, type=SERVER, code=code)


def internal() -> RequestError:
    """A bug of ours; what it was stands in the log, not in the answer."""
    return RequestError(
        "internal error; the node's log has the details",
        status=500,
        type=SERVER,
        code="internal_error",
    )


_HTTP_CODES = {404: "route_not_found", 405: "method_not_allowed", 413: "body_too_large"}


def from_http(error: web.HTTPException, *, body_bytes_max: int) -> RequestError:
    """How an error of the HTTP library is told to a client."""
    messages = {
        404: "no such route; docs/api.md lists them",
        405: "this route does not take this method; see the Allow header",
        413: f"the request body is larger than {body_bytes_max} bytes",
    }
    allow = error.headers.get("Allow")
    return RequestError(
        messages.get(error.status, error.reason),
        status=error.status,
        type=INVALID_REQUEST if error.status < 500 else SERVER,
        code=_HTTP_CODES.get(error.status, "http_error"),
        headers={"Allow": allow} if allow else None,
    )


def from_validation(error: ValidationError) -> RequestError:
    """How a body that does not fit its schema is told to a client: its first fault alone."""
    fault = error.errors(include_url=False, include_input=False)[0]
    if fault["type"] == "json_invalid":
        detail = fault.get("ctx", {}).get("error", "")
        return RequestError(f"the request body is not JSON: {detail}", code="invalid_json")
    param = _param(fault["loc"])
    if fault["type"] == "unsupported":
        return unsupported(str(fault.get("ctx", {})["field"]), fault["msg"])
    if fault["type"] == "extra_forbidden":
        return RequestError(f"unknown field '{param}'", param=param, code="unknown_parameter")
    if fault["type"] == "missing":
        return RequestError(f"'{param}' is missing", param=param, code="missing_required_parameter")
    detail = fault["msg"].removeprefix("Value error, ")
    detail = detail[:1].lower() + detail[1:]
    message = f"'{param}': {detail}" if param else f"the request body: {detail}"
    return RequestError(message, param=param, code="invalid_value")


def _param(location: tuple[int | str, ...]) -> str | None:
    """`("messages", 0, "role")` as `messages[0].role`; long names, which are made up, are cut."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part[:64]}"
    return text.removeprefix(".") or None
