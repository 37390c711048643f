"""`POST /v1/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from p2pllm.api.choices import ShownToken
from p2pllm.api.gateway import Tokenizer
from p2pllm.api.openai import Answer
from p2pllm.api.schemas import CompletionBody, Prompt
from p2pllm.api.service import SERVICE, Service
from p2pllm.domain.generation import FinishReason


class CompletionForm:
    """How plain completions look, whole or streamed."""

    id_prefix = "cmpl-"
    object_whole = "text_completion"
    object_chunk = "text_completion"

    def opening(self, index: int) -> dict[str, Any] | None:
        """Nothing comes before the text."""
        return None

    def delta(self, index: int, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        """The next text."""
        return _entry(index, text, logprobs, None)

    def end(self, index: int, reason: FinishReason) -> dict[str, Any]:
        """Why it ends."""
        return _entry(index, "", None, reason)

    def whole(
        self, index: int, text: str, logprobs: dict[str, Any] | None, reason: FinishReason
    ) -> dict[str, Any]:
        """All at once."""
        return _entry(index, text, logprobs, reason)

    def logprobs(self, tokens: Sequence[ShownToken], tokenizer: Tokenizer) -> dict[str, Any]:
        """Four lists with an item per token; the chosen token is among the candidates."""
        text_of = tokenizer.token_text
        return {
            "tokens": [text_of(token.sampled.token) for token in tokens],
            "token_logprobs": [token.sampled.logprob for token in tokens],
            "top_logprobs": [
                {
                    **{text_of(item.token): item.logprob for item in token.sampled.alternatives},
                    text_of(token.sampled.token): token.sampled.logprob,
                }
                for token in tokens
            ],
            "text_offset": [token.offset for token in tokens],
        }


def _entry(
    index: int, text: str, logprobs: dict[str, Any] | None, reason: FinishReason | None
) -> dict[str, Any]:
    return {
        "index": index,
        "text": text,
        "logprobs": logprobs,
        "finish_reason": None if reason is None else str(reason),
    }


async def create_completion(request: web.Request) -> web.StreamResponse:
    """Continue one or more texts."""
    service = request.app[SERVICE]
    body = await service.read(request, CompletionBody)
    spec = service.served(body.model).spec
    tokenizer = await service.tokenizer(spec.id)
    answer = Answer(
        service,
        body,
        spec,
        tokenizer,
        [await _tokens(service, tokenizer, prompt) for prompt in body.prompt],
        continues_prompt=True,
        prompt_param="prompt",
        form=CompletionForm(),
    )
    return await answer.respond(request)


async def _tokens(service: Service, tokenizer: Tokenizer, prompt: Prompt) -> tuple[int, ...]:
    if not isinstance(prompt, str):
        return prompt
    return tuple(await service.aside(lambda: tokenizer.encode(prompt), text_length=len(prompt)))
