from __future__ import annotations

import re

import pytest

from p2pllm.domain import errors
from p2pllm.domain.errors import (
    AuthenticationError,
    ClientError,
    InviteError,
    OverloadedError,
    P2PLLMError,
    RemoteProtocolError,
    SwarmError,
)

ALL = [
    item
    for item in vars(errors).values()
    if isinstance(item, type) and issubclass(item, P2PLLMError)
]


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_error_has_a_code_of_its_own_for_machines_and_a_line_for_people(
    cls: type[P2PLLMError],
) -> None:
    error = cls("what happened; what to do")
    assert str(error) == "what happened; what to do"
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", error.code)
    assert [other for other in ALL if other.code == cls.code] == [cls]


def test_a_code_may_be_narrower_than_its_class_and_stays_with_the_instance() -> None:
    assert InviteError("no", code="invite_expired").code == "invite_expired"
    assert InviteError("no").code == "invite_refused"


def test_blame_is_told_apart() -> None:
    for one in (ClientError, SwarmError, RemoteProtocolError, AuthenticationError):
        for other in (ClientError, SwarmError, RemoteProtocolError, AuthenticationError):
            assert issubclass(one, other) == (one is other)


def test_overload_says_when_to_try_again() -> None:
    assert OverloadedError("full", retry_after_s=2.5).retry_after_s == 2.5
    assert OverloadedError("full").retry_after_s > 0
