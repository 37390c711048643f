"""Generations answered the way OpenAI answers them, whole or streamed."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog
from aiohttp import web

from p2pllm.api.choices import (
    Choice,
    ChoiceEvent,
    Ended,
    Piece,
    Rerouted,
    ShownToken,
    Sink,
    path_json,
    run_choices,
    usage_json,
)
from p2pllm.api.errors import RequestError, from_error, internal
from p2pllm.api.gateway import Tokenizer
from p2pllm.api.schemas import GenerationBody
from p2pllm.api.service import Service
from p2pllm.api.sse import EventStream
from p2pllm.domain.errors import P2PLLMError
from p2pllm.domain.generation import FinishReason
from p2pllm.domain.models import ModelSpec

log = structlog.get_logger(__name__)


class Form(Protocol):
    """What differs between chat and plain completions."""

    @property
    def id_prefix(self) -> str:
        """How ids of answers begin."""
        ...

    @property
    def object_whole(self) -> str:
        """Field `object` of a whole answer."""
        ...

    @property
    def object_chunk(self) -> str:
        """Field `object` of a streamed chunk."""
        ...

    def opening(self, index: int) -> dict[str, Any] | None:
        """A choice's entry in the chunk before its first text, if there is one."""
        ...

    def delta(self, index: int, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        """A choice's entry in a chunk with text."""
        ...

    def end(self, index: int, reason: FinishReason) -> dict[str, Any]:
        """A choice's entry in its last chunk."""
        ...

    def whole(
        self, index: int, text: str, logprobs: dict[str, Any] | None, reason: FinishReason
    ) -> dict[str, Any]:
        """A choice's entry in a whole answer."""
        ...

    def logprobs(self, tokens: Sequence[ShownToken], tokenizer: Tokenizer) -> dict[str, Any]:
        """Field `logprobs` of an entry."""
        ...


@dataclass(slots=True)
class _Collected:
    """What has come of a choice so far."""

    texts: list[str] = field(default_factory=list[str])
    tokens: list[ShownToken] = field(default_factory=list[ShownToken])
    reason: FinishReason = FinishReason.STOP


def _told(error: Exception) -> RequestError:
    if isinstance(error, P2PLLMError):
        return from_error(error)
    log.error("api_stream_failed", exc_info=error)
    return internal()


class Answer:
    """The answer to one request.

    Args:
        service: generates.
        body: what was asked.
        spec: of the model.
        tokenizer: of the model.
        prompts: tokenised; `n` choices each.
        continues_prompt: whether the text goes on from the prompt, whose end then decides how the
            first token is written.
        prompt_param: the field the prompt came in, for errors.
        form: chat or plain.
    """

    def __init__(
        self,
        service: Service,
        body: GenerationBody,
        spec: ModelSpec,
        tokenizer: Tokenizer,
        prompts: Sequence[tuple[int, ...]],
        *,
        continues_prompt: bool,
        prompt_param: str,
        form: Form,
    ) -> None:
        self._service = service
        self._body = body
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._form = form
        requests = service.requests(body, spec, tokenizer, prompts, prompt_param=prompt_param)
        self._choices = [
            Choice(
                index=index,
                request=request,
                stops=body.stop,
                context=request.prompt if continues_prompt else (),
            )
            for index, request in enumerate(requests)
        ]
        self._head: dict[str, Any] = {
            "id": form.id_prefix + secrets.token_hex(12),
            "created": int(time.time()),  # noqa: TID251 - OpenAI's clients expect wall time
            "model": spec.id,
            # One seed and one fingerprint give one text, which is what the field is for.
            "system_fingerprint": f"fp_{spec.fingerprint[:12]}",
        }

    async def respond(self, request: web.Request) -> web.StreamResponse:
        """Generate and answer.

        Raises:
            P2PLLMError: before anything was sent; after that, errors are sent as an event.
        """
        with self._service.admitted(len(self._choices)):
            if self._body.stream:
                return await self._respond_streamed(request)
            return await self._respond_whole()

    async def _run(self, sink: Sink) -> None:
        service = self._service
        await run_choices(self._choices, service.gateway, self._tokenizer, service.metrics, sink)

    def _logprobs(self, tokens: Sequence[ShownToken]) -> dict[str, Any] | None:
        if self._body.alternatives is None:
            return None
        return self._form.logprobs(tokens, self._tokenizer)

    async def _respond_whole(self) -> web.Response:
        collected = [_Collected() for _ in self._choices]

        async def sink(event: ChoiceEvent) -> None:
            match event:
                case Piece(index, text, tokens):
                    collected[index].texts.append(text)
                    collected[index].tokens.extend(tokens)
                case Ended(index, reason):
                    collected[index].reason = reason
                case Rerouted():
                    pass

        await self._run(sink)
        document: dict[str, Any] = {
            **self._head,
            "object": self._form.object_whole,
            "choices": [
                self._form.whole(
                    index, "".join(choice.texts), self._logprobs(choice.tokens), choice.reason
                )
                for index, choice in enumerate(collected)
            ],
            "usage": usage_json(self._prompts, self._choices),
        }
        if self._body.wants_details:
            document["p2pllm"] = self._choices[0].details()
        return web.json_response(document)

    async def _respond_streamed(self, request: web.Request) -> web.StreamResponse:
        stream = EventStream(request, write_timeout_s=self._service.limits.write_timeout_s)
        # A client that went away needs no answer: leaving has closed the generators.
        with suppress(ConnectionError):
            try:
                await self._stream(stream)
                await stream.done()
            except ConnectionError:
                raise
            except Exception as error:
                if not stream.started:
                    raise
                self._service.metrics.stream_errors.inc()
                await stream.send(_told(error).body())
                await stream.end()
        return stream.response

    async def _stream(self, stream: EventStream) -> None:
        form, wants_details = self._form, self._body.wants_details
        head = {**self._head, "object": form.object_chunk}
        if self._body.wants_usage:
            head["usage"] = None
        opened = [False] * len(self._choices)

        async def open_choice(index: int) -> None:
            if not opened[index]:
                opened[index] = True
                if (entry := form.opening(index)) is not None:
                    await stream.send({**head, "choices": [entry]})

        async def sink(event: ChoiceEvent) -> None:
            match event:
                case Rerouted(_, attempt, path):
                    if wants_details:
                        document = {"attempt": attempt, "path": path_json(path)}
                        await stream.send({**head, "choices": [], "p2pllm": document})
                case Piece(index, text, tokens):
                    await open_choice(index)
                    entry = form.delta(index, text, self._logprobs(tokens))
                    await stream.send({**head, "choices": [entry]})
                case Ended(index, reason):
                    await open_choice(index)
                    document = {**head, "choices": [form.end(index, reason)]}
                    if wants_details and not self._body.wants_usage:
                        document["p2pllm"] = self._choices[index].details()
                    await stream.send(document)

        await self._run(sink)
        if self._body.wants_usage:
            usage = usage_json(self._prompts, self._choices)
            document = {**head, "choices": [], "usage": usage}
            if wants_details:
                document["p2pllm"] = self._choices[0].details()
            await stream.send(document)
