"""Generations for the HTTP face, by way of the core."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from p2pllm.api.gateway import ServedModel, Tokenizer
from p2pllm.app.models import ModelLibrary
from p2pllm.core.effects import GenerationFailed, PathChosen, TokenGenerated
from p2pllm.core.events import Event, GenerationCancelled, GenerationSubmitted
from p2pllm.core.routing import missing_layers
from p2pllm.domain.errors import ModelNotFoundError
from p2pllm.domain.generation import GenerationRequest
from p2pllm.domain.ids import ModelId, SessionId
from p2pllm.domain.records import SwarmView

GenerationEffect = PathChosen | TokenGenerated | GenerationFailed


class CoreGateway:
    """Implements `p2pllm.api.gateway.Gateway`.

    Args:
        post: hands an event to the core.
        view: the swarm as this node sees it.
        library: for tokenizers.
        added_s: when a served model was added, seconds since 1970.
    """

    def __init__(
        self,
        post: Callable[[Event], None],
        view: Callable[[], SwarmView],
        library: ModelLibrary,
        added_s: Callable[[ModelId], int],
    ) -> None:
        self._post = post
        self._view = view
        self._library = library
        self._added_s = added_s
        # A queue holds at most the tokens its request asked for and a path per attempt, both of
        # which the core bounds; a slow client costs no more than its own answer.
        self._queues: dict[SessionId, asyncio.Queue[GenerationEffect]] = {}

    def models(self) -> Sequence[ServedModel]:
        """What the swarm serves."""
        view = self._view()
        return [
            ServedModel(spec, self._added_s(spec.id), missing_layers(view, spec))
            for spec in view.models
        ]

    async def tokenizer(self, model: ModelId) -> Tokenizer:
        """The model's tokenizer, fetched and kept."""
        spec = self._view().model(model)
        if spec is None:
            raise ModelNotFoundError(f"the swarm does not serve {model}; see /v1/models")
        return await self._library.tokenizer(spec)

    async def generate(
        self, request: GenerationRequest
    ) -> AsyncGenerator[PathChosen | TokenGenerated, None]:
        """Run one generation; closing the generator cancels it on every stage."""
        queue: asyncio.Queue[GenerationEffect] = asyncio.Queue()
        self._queues[request.session] = queue
        self._post(GenerationSubmitted(request))
        try:
            while True:
                effect = await queue.get()
                if isinstance(effect, GenerationFailed):
                    raise effect.error
                yield effect
                if isinstance(effect, TokenGenerated) and effect.finish is not None:
                    return
        finally:
            del self._queues[request.session]
            self._post(GenerationCancelled(request.session))

    def deliver(self, effect: GenerationEffect) -> None:
        """Pass on what the core made for a client; one that has gone is nobody's loss."""
        queue = self._queues.get(effect.session)
        if queue is not None:
            queue.put_nowait(effect)
