"""What the routes share: the way from a request's fields to generation requests, and admission."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TypeVar

from aiohttp import web

from p2pllm.api.errors import INVALID_REQUEST, RequestError
from p2pllm.api.gateway import Control, Gateway, ServedModel, Tokenizer
from p2pllm.api.limits import Limits
from p2pllm.api.metrics import Metrics
from p2pllm.api.schemas import GenerationBody, Model, parse
from p2pllm.domain.errors import ContextLengthError, ModelNotFoundError, OverloadedError
from p2pllm.domain.generation import (
    STOP_TOKENS_MAX,
    GenerationRequest,
    SamplingParameters,
)
from p2pllm.domain.ids import ModelId, SessionId
from p2pllm.domain.models import ModelSpec

Result = TypeVar("Result")

SEED_MODULUS = 2**62
"""Seeds are folded into `0..SEED_MODULUS - 1`, which every codec can carry."""


class Service:
    """Gateway, control and limits, for the routes.

    Args:
        gateway: generates.
        control: acts for the node's owner.
        metrics: counts.
        limits: bounds.
    """

    def __init__(
        self, gateway: Gateway, control: Control, metrics: Metrics, limits: Limits
    ) -> None:
        self.gateway = gateway
        self.control = control
        self.metrics = metrics
        self.limits = limits
        self._generations = 0
        self._worker: ThreadPoolExecutor | None = None

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None, None]:
        """Hold the worker thread for long texts; one, so that they wait for each other."""
        self._worker = ThreadPoolExecutor(1, "p2pllm-api")
        try:
            yield
        finally:
            self._worker.shutdown(wait=False, cancel_futures=True)

    async def read(self, request: web.Request, model: type[Model]) -> Model:
        """The request's JSON body.

        Raises:
            RequestError: it is of another type, too slow, not JSON, or does not fit.
        """
        if request.content_type != "application/json":
            # A browser sends JSON to a foreign site only after asking, and asking is refused: this
            # keeps web pages from spending the owner's machines.
            raise RequestError(
                "send the body with 'Content-Type: application/json'",
                status=415,
                type=INVALID_REQUEST,
                code="unsupported_media_type",
            )
        if (request.content_length or 0) > self.limits.body_bytes_max:
            # Told at once; the library would only notice once that much had come.
            raise web.HTTPRequestEntityTooLarge(
                max_size=self.limits.body_bytes_max, actual_size=request.content_length or 0
            )
        try:
            async with asyncio.timeout(self.limits.body_timeout_s):
                body = await request.read()
        except TimeoutError:
            raise RequestError(
                f"the request body did not arrive within {self.limits.body_timeout_s:g} s",
                status=408,
                code="body_timeout",
            ) from None
        return await self.aside(lambda: parse(model, body), text_length=len(body))

    def served(self, name: str) -> ServedModel:
        """The model a client names.

        Raises:
            ModelNotFoundError: the swarm does not serve it.
        """
        models = self.gateway.models()
        for model in models:
            if model.spec.id == name:
                return model
        names = ", ".join(model.spec.id for model in models) or "none yet"
        raise ModelNotFoundError(f"the swarm does not serve '{name[:128]}'; it serves: {names}")

    async def tokenizer(self, model: ModelId) -> Tokenizer:
        """The model's tokenizer; errors as `Gateway.tokenizer`."""
        return await self.gateway.tokenizer(model)

    async def aside(self, work: Callable[[], Result], *, text_length: int) -> Result:
        """Do `work` on a text here, or on the worker thread where the text is long."""
        if text_length <= self.limits.loop_text_length_max:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    def requests(
        self,
        body: GenerationBody,
        spec: ModelSpec,
        tokenizer: Tokenizer,
        prompts: Sequence[tuple[int, ...]],
        *,
        prompt_param: str,
    ) -> tuple[GenerationRequest, ...]:
        """One generation request per choice: `n` of the first prompt, `n` of the second, ...

        Raises:
            RequestError: a prompt is empty, leaves no room for a single token, or names a token
                that the model does not have.
        """
        for prompt in prompts:
            self._check_prompt(prompt, spec, prompt_param)
        sampling = _sampling(body, spec)
        requests: list[GenerationRequest] = []
        for prompt in prompts:
            room = spec.context_length_max - len(prompt)
            for _ in range(body.n or 1):
                seed = (sampling.seed + len(requests)) % SEED_MODULUS
                requests.append(
                    GenerationRequest(
                        session=SessionId(secrets.token_hex(16)),
                        model=spec.id,
                        prompt=prompt,
                        tokens_max=min(room, body.tokens_max or self.limits.tokens_default),
                        sampling=replace(sampling, seed=seed),
                        stop_tokens=tokenizer.stop_tokens[:STOP_TOKENS_MAX],
                        deadline_s=self.limits.deadline_s,
                    )
                )
        if len(requests) > self.limits.generations_max:
            raise RequestError(
                f"'n' times the number of prompts exceeds {self.limits.generations_max}",
                param="n",
                code="invalid_value",
            )
        if body.wants_details and len(requests) > 1:
            raise RequestError(
                "'p2pllm.details' needs one prompt and 'n' = 1",
                param="p2pllm.details",
                code="invalid_value",
            )
        return tuple(requests)

    @staticmethod
    def _check_prompt(prompt: tuple[int, ...], spec: ModelSpec, param: str) -> None:
        if not prompt:
            raise RequestError(
                "the prompt has no tokens; write something", param=param, code="empty_prompt"
            )
        if len(prompt) >= spec.context_length_max:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens, and '{spec.id}' takes at most "
                f"{spec.context_length_max - 1} of them; shorten it",
                param=param,
                code=ContextLengthError.code,
            )
        if max(prompt) >= spec.vocabulary_size:
            raise RequestError(
                f"'{spec.id}' has no token above {spec.vocabulary_size - 1}",
                param=param,
                code="invalid_value",
            )

    @contextmanager
    def admitted(self, count: int) -> Generator[None, None, None]:
        """Room for `count` generations.

        Raises:
            OverloadedError: there is none now.
        """
        if self._generations + count > self.limits.generations_max:
            raise OverloadedError(
                f"{self._generations} generations run here already; try again in a moment",
                retry_after_s=1.0,
            )
        self._generations += count
        self.metrics.generations_running.inc(count)
        try:
            yield
        finally:
            self._generations -= count
            self.metrics.generations_running.dec(count)


SERVICE: web.AppKey[Service] = web.AppKey("service", Service)


def _sampling(body: GenerationBody, spec: ModelSpec) -> SamplingParameters:
    """The drawing parameters; a random seed where none is given."""
    bias = tuple((int(token), value) for token, value in (body.logit_bias or {}).items())
    for token, _ in bias:
        if token >= spec.vocabulary_size:
            raise RequestError(
                f"'{spec.id}' has no token above {spec.vocabulary_size - 1}",
                param="logit_bias",
                code="invalid_value",
            )
    return SamplingParameters(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_k=max(0, body.top_k or 0),
        min_p=body.min_p or 0.0,
        seed=secrets.randbelow(SEED_MODULUS) if body.seed is None else body.seed % SEED_MODULUS,
        repetition_penalty=body.repetition_penalty or 1.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=bias,
        logprobs=body.alternatives,
    )
