"""One choice: from the gateway's tokens to pieces of text, and several of them side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from p2pllm.api.gateway import Gateway, Tokenizer
from p2pllm.api.metrics import Metrics
from p2pllm.api.textstream import TextStream
from p2pllm.core.effects import PathChosen, TokenGenerated
from p2pllm.domain.errors import SwarmError
from p2pllm.domain.generation import FinishReason, GenerationRequest, Path, SampledToken


@dataclass(frozen=True, slots=True)
class ShownToken:
    """A token whose text begins within what the client sees.

    Attributes:
        sampled: the token and its log-probabilities.
        offset: where its text begins in the answer, in characters.
    """

    sampled: SampledToken
    offset: int


@dataclass(frozen=True, slots=True)
class Piece:
    """The next text of a choice, and the tokens that begin in it; either may be empty."""

    index: int
    text: str
    tokens: tuple[ShownToken, ...]


@dataclass(frozen=True, slots=True)
class Rerouted:
    """The choice goes this way from now on."""

    index: int
    attempt: int
    path: Path


@dataclass(frozen=True, slots=True)
class Ended:
    """No more comes of the choice."""

    index: int
    reason: FinishReason


ChoiceEvent = Piece | Rerouted | Ended
Sink = Callable[[ChoiceEvent], Awaitable[None]]


@dataclass(slots=True)
class Choice:
    """A choice on its way, and what is known of it in the end.

    Attributes:
        index: its place in the answer.
        request: what is generated.
        stops: strings that end it.
        context: tokens before the first one that decide how it is written.
        token_ids: all that was generated, an end-of-sequence token included.
        attempts: paths tried.
        path: the last one.
        started_s: when it was submitted, on the event loop's clock.
        first_token_s: when its first token came.
        ended_s: when its last token came.
    """

    index: int
    request: GenerationRequest
    stops: tuple[str, ...] = ()
    context: tuple[int, ...] = ()
    token_ids: list[int] = field(default_factory=list[int])
    attempts: int = 0
    path: Path = ()
    started_s: float = 0.0
    first_token_s: float | None = None
    ended_s: float = 0.0

    async def run(
        self, gateway: Gateway, tokenizer: Tokenizer, metrics: Metrics
    ) -> AsyncGenerator[ChoiceEvent, None]:
        """Generate; the last event is `Ended`.

        Closing this closes the gateway's generator, which cancels the work on every stage; so does
        a stop string.

        Raises:
            P2PLLMError: as `Gateway.generate`.
        """
        stream = TextStream(tokenizer.decode, stops=self.stops, context=self.context)
        waiting: list[ShownToken] = []
        clock = asyncio.get_running_loop().time
        self.started_s = self.ended_s = clock()
        async with aclosing(gateway.generate(self.request)) as events:
            async for event in events:
                if isinstance(event, PathChosen):
                    self.attempts, self.path = event.attempt, event.path
                    yield Rerouted(self.index, event.attempt, event.path)
                    continue
                self._note(event, clock(), metrics)
                text = ""
                token = event.sampled.token
                if event.finish is not FinishReason.STOP or token not in self.request.stop_tokens:
                    waiting.append(ShownToken(event.sampled, stream.decoded_length))
                    text = stream.push(token)
                if event.finish is not None and not stream.stopped:
                    text += stream.finish()
                is_last = event.finish is not None or stream.stopped
                shown = self._shown(waiting, stream, is_last=is_last)
                if text or shown:
                    yield Piece(self.index, text, shown)
                if is_last:
                    reason = FinishReason.STOP if stream.stopped else event.finish
                    yield Ended(self.index, reason or FinishReason.STOP)
                    return
        raise SwarmError("the generation ended before its last token; ask again")

    def _note(self, event: TokenGenerated, now: float, metrics: Metrics) -> None:
        if self.first_token_s is None:
            self.first_token_s = now
            metrics.first_token.observe(now - self.started_s)
        else:
            metrics.inter_token.observe(now - self.ended_s)
        self.ended_s = now
        self.token_ids.append(event.sampled.token)
        metrics.tokens.inc()

    def _shown(
        self, waiting: list[ShownToken], stream: TextStream, *, is_last: bool
    ) -> tuple[ShownToken, ...]:
        """Take from `waiting` the tokens that begin in the text given out so far."""
        count = 0
        whole = is_last and not stream.stopped
        while count < len(waiting) and (whole or waiting[count].offset < stream.released_length):
            count += 1
        shown = tuple(waiting[:count])
        del waiting[:count]
        return shown

    def details(self) -> dict[str, Any]:
        """Field `p2pllm` of an answer."""
        first_s = self.ended_s if self.first_token_s is None else self.first_token_s
        decode_s = self.ended_s - first_s
        steps = len(self.token_ids) - 1
        return {
            "token_ids": self.token_ids,
            "path": path_json(self.path),
            "attempts": self.attempts,
            "timings": {
                "first_token_s": first_s - self.started_s,
                "total_s": self.ended_s - self.started_s,
                "tokens_per_s": steps / decode_s if steps > 0 and decode_s > 0 else None,
            },
        }


def path_json(path: Path) -> list[dict[str, Any]]:
    """A path as clients see it."""
    return [{"node": hop.node, "layers": [hop.layers.start, hop.layers.stop]} for hop in path]


def usage_json(prompts: Sequence[tuple[int, ...]], choices: Sequence[Choice]) -> dict[str, int]:
    """Field `usage`: each prompt counts once, every generated token counts."""
    prompt_tokens = sum(map(len, prompts))
    completion_tokens = sum(len(choice.token_ids) for choice in choices)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


async def run_choices(
    choices: Sequence[Choice],
    gateway: Gateway,
    tokenizer: Tokenizer,
    metrics: Metrics,
    sink: Sink,
) -> None:
    """Run all choices at the same time; each waits for `sink` before it goes on.

    The first error ends all of them.

    Raises:
        P2PLLMError: as `Gateway.generate`.
    """

    async def run(choice: Choice) -> None:
        async with aclosing(choice.run(gateway, tokenizer, metrics)) as events:
            async for event in events:
                await sink(event)

    if len(choices) == 1:
        await run(choices[0])
        return
    try:
        async with asyncio.TaskGroup() as tasks:
            for choice in choices:
                tasks.create_task(run(choice))
    except ExceptionGroup as group:
        raise group.exceptions[0] from group
