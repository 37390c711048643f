"""`POST /v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from p2pllm.api.choices import ShownToken
from p2pllm.api.errors import RequestError
from p2pllm.api.gateway import Tokenizer
from p2pllm.api.openai import Answer
from p2pllm.api.schemas import ChatBody
from p2pllm.api.service import SERVICE
from p2pllm.api.textstream import REPLACEMENT
from p2pllm.domain.generation import FinishReason


class ChatForm:
    """How chat answers look."""

    id_prefix = "chatcmpl-"
    object_whole = "chat.completion"
    object_chunk = "chat.completion.chunk"

    def opening(self, index: int) -> dict[str, Any] | None:
        """Who speaks."""
        return _entry(index, {"role": "assistant", "content": "", "refusal": None})

    def delta(self, index: int, text: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
        """What is said."""
        return _entry(index, {"content": text}, logprobs)

    def end(self, index: int, reason: FinishReason) -> dict[str, Any]:
        """Why it ends."""
        return {**_entry(index, {}), "finish_reason": str(reason)}

    def whole(
        self, index: int, text: str, logprobs: dict[str, Any] | None, reason: FinishReason
    ) -> dict[str, Any]:
        """All at once."""
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": logprobs,
            "finish_reason": str(reason),
        }

    def logprobs(self, tokens: Sequence[ShownToken], tokenizer: Tokenizer) -> dict[str, Any]:
        """Per token: itself, and the likeliest candidates."""
        return {
            "content": [
                {
                    **_token(token.sampled.token, token.sampled.logprob, tokenizer),
                    "top_logprobs": [
                        _token(item.token, item.logprob, tokenizer)
                        for item in token.sampled.alternatives
                    ],
                }
                for token in tokens
            ],
            "refusal": None,
        }


def _entry(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None}


def _token(token: int, logprob: float | None, tokenizer: Tokenizer) -> dict[str, Any]:
    text = tokenizer.token_text(token)
    # A token that is part of a character cannot be shown, and its bytes are not those of U+FFFD.
    octets = None if REPLACEMENT in text else list(text.encode("utf-8", "replace"))
    return {"token": text, "logprob": logprob, "bytes": octets}


async def create_chat_completion(request: web.Request) -> web.StreamResponse:
    """Continue a conversation."""
    service = request.app[SERVICE]
    body = await service.read(request, ChatBody)
    spec = service.served(body.model).spec
    tokenizer = await service.tokenizer(spec.id)
    if not tokenizer.has_chat_template:
        raise RequestError(
            f"'{spec.id}' has no chat template; use /v1/completions",
            param="model",
            code="no_chat_template",
        )
    messages = [message.template_fields() for message in body.messages]
    prompt = await service.aside(
        lambda: tokenizer.encode_chat(messages),
        text_length=sum(16 + len(message.content) for message in body.messages),
    )
    answer = Answer(
        service,
        body,
        spec,
        tokenizer,
        [tuple(prompt)],
        continues_prompt=False,
        prompt_param="messages",
        form=ChatForm(),
    )
    return await answer.respond(request)
