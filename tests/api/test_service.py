from __future__ import annotations

import pytest

from p2pllm.api.limits import Limits
from p2pllm.api.metrics import Metrics
from p2pllm.api.schemas import CompletionBody
from p2pllm.api.service import SEED_MODULUS, Service
from p2pllm.domain.errors import OverloadedError
from p2pllm.domain.generation import STOP_TOKENS_MAX, SamplingParameters
from tests.api.fakes import ByteTokenizer, FakeControl, FakeGateway, spec


def service(**limits: int) -> Service:
    return Service(FakeGateway(), FakeControl(), Metrics(), Limits(**limits))  # type: ignore[arg-type]


def body(**fields: object) -> CompletionBody:
    return CompletionBody(model="fake", prompt="x", **fields)  # type: ignore[arg-type]


def test_room_is_taken_and_given_back_even_after_an_error() -> None:
    taking = service(generations_max=2)

    def fail() -> None:
        with taking.admitted(2):
            with pytest.raises(OverloadedError), taking.admitted(1):
                pass
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with taking.admitted(2):
        pass


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63)])
def test_every_seed_is_folded_to_one_that_any_codec_carries(seed: int) -> None:
    requests = service().requests(
        body(seed=seed, n=3), spec(), ByteTokenizer(), [(1,)], prompt_param="prompt"
    )
    assert [request.sampling.seed for request in requests] == [
        (seed + index) % SEED_MODULUS for index in range(3)
    ]


def test_what_is_not_asked_for_is_as_the_domain_has_it() -> None:
    (request,) = service().requests(
        body(seed=0), spec(), ByteTokenizer(), [(1,)], prompt_param="prompt"
    )
    assert request.sampling == SamplingParameters()


def test_a_model_with_many_end_tokens_keeps_within_the_protocol() -> None:
    class ManyEnds(ByteTokenizer):
        stop_tokens = tuple(range(100))

    (request,) = service().requests(body(), spec(), ManyEnds(), [(1,)], prompt_param="prompt")
    assert len(request.stop_tokens) == STOP_TOKENS_MAX


async def test_long_work_is_done_elsewhere_and_its_errors_come_back() -> None:
    def fail() -> None:
        raise KeyError("x")

    working = service(loop_text_length_max=10)
    async with working.running():
        assert await working.aside(lambda: 1, text_length=11) == 1
        with pytest.raises(KeyError):
            await working.aside(fail, text_length=11)
