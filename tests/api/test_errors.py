from __future__ import annotations

import pytest

from p2pllm.api.errors import RequestError, from_error, unsupported
from p2pllm.domain.errors import (
    AuthenticationError,
    ClientError,
    ConfigurationError,
    ContextLengthError,
    DeadlineExceededError,
    ModelNotFoundError,
    ModelRefusedError,
    NoPathError,
    OverloadedError,
    P2PLLMError,
    RemoteProtocolError,
    SwarmError,
)


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (ClientError, 400, "invalid_request_error"),
        (ContextLengthError, 400, "invalid_request_error"),
        (ModelRefusedError, 400, "invalid_request_error"),
        (ModelNotFoundError, 404, "invalid_request_error"),
        (AuthenticationError, 403, "permission_error"),
        (OverloadedError, 429, "rate_limit_error"),
        (SwarmError, 503, "server_error"),
        (NoPathError, 503, "server_error"),
        (DeadlineExceededError, 504, "server_error"),
        (RemoteProtocolError, 500, "server_error"),
        (ConfigurationError, 500, "server_error"),
    ],
)
def test_every_error_of_ours_has_its_status(
    error: type[P2PLLMError], status: int, kind: str
) -> None:
    told = from_error(error("what happened"))
    assert told.status == status
    assert told.body()["error"] | {"param": None} == {
        "message": "what happened",
        "type": kind,
        "param": None,
        "code": error.code,
    }


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (1.0, "1"), (1.2, "2"), (30, "30")])
def test_when_to_come_again_is_told_in_whole_seconds(seconds: float, header: str) -> None:
    told = from_error(OverloadedError("full", retry_after_s=seconds))
    assert told.headers == {"Retry-After": header}


def test_an_unsupported_field_is_named_and_the_way_out_told() -> None:
    told = unsupported("tools")
    assert (told.status, told.param) == (400, "tools")
    assert "leave it out" in told.message


def test_an_answer_is_json_with_its_headers() -> None:
    answer = RequestError("x", status=418, headers={"Allow": "GET"}).response()
    assert answer.status == 418
    assert answer.content_type == "application/json"
    assert answer.headers["Allow"] == "GET"
