"""What the HTTP face needs of the node behind it. `p2pllm.app` provides it; tests fake it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from p2pllm.core.effects import PathChosen, TokenGenerated
from p2pllm.domain.generation import GenerationRequest
from p2pllm.domain.ids import ModelId
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.models import ModelSpec


class Tokenizer(Protocol):
    """A model's tokenizer; every method is fast enough for the event loop on bounded input.

    Long text is encoded on a worker thread, so `encode` and `encode_chat` must be safe beside
    every other method.
    """

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """Ids that end a generation."""
        ...

    @property
    def has_chat_template(self) -> bool:
        """Whether `encode_chat` works."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a plain prompt, with the special tokens the model expects."""
        ...

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation, ending where the assistant begins.

        Raises:
            ClientError: the model has no chat template, or it refuses these messages.
        """
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of generated tokens, special ones left out.

        Characters that are not whole yet show as U+FFFD. Text that does not end in U+FFFD stays as
        it is when more tokens follow; so no clean-up of spaces.
        """
        ...

    def token_text(self, token: int) -> str:
        """How one token is shown in logprobs, special ones too; U+FFFD for part of a character."""
        ...


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model of the swarm.

    Attributes:
        spec: what it is.
        added_s: when it was added, seconds since 1970.
        missing: layers without a READY holder; empty means it can generate now.
    """

    spec: ModelSpec
    added_s: int
    missing: tuple[LayerRange, ...]


class Gateway(Protocol):
    """Generates, on behalf of clients."""

    def models(self) -> Sequence[ServedModel]:
        """What the swarm serves, in order of name."""
        ...

    async def tokenizer(self, model: ModelId) -> Tokenizer:
        """The model's tokenizer, fetched and kept.

        Raises:
            ModelNotFoundError: the swarm does not serve it, or its files cannot be reached.
        """
        ...

    def generate(
        self, request: GenerationRequest
    ) -> AsyncGenerator[PathChosen | TokenGenerated, None]:
        """Run one generation; closing the generator cancels it on every stage.

        A `PathChosen` comes before the first token and after every detour. The last token has
        `finish` set, and is the end-of-sequence token itself where that ended it; the generator is
        closed after it, which must then be no cancellation.

        Raises:
            P2PLLMError: while iterating; what was yielded before stands.
        """
        ...


class Control(Protocol):
    """What the node's owner may ask of it over the control routes."""

    def status(self) -> dict[str, Any]:
        """The swarm as seen from here: what `p2pllm.api.status.status_json` makes.

        Asked for by every scrape of the metrics too, so it must be cheap.
        """
        ...

    async def add_model(self, reference: str, name: str | None) -> dict[str, Any]:
        """Have the swarm serve a model; what `p2pllm.api.models.model_json` makes of it.

        Cancelled where the client goes away first.

        Raises:
            ModelNotFoundError: nothing is there.
            ModelRefusedError: it cannot be run.
        """
        ...

    async def remove_model(self, model: ModelId) -> None:
        """Have the swarm serve it no longer.

        Raises:
            ModelNotFoundError: it does not serve it now.
        """
        ...

    async def plan(self, reference: str) -> dict[str, Any]:
        """Who would hold which layers, before anything is loaded.

        As JSON: `{"model": {"reference", "architecture", "layers", "parameters"}, "nodes":
        [{"id", "name", "layers": [[start, stop], ...], "bytes"}, ...], "missing":
        [[start, stop], ...]}`, ranges half-open.

        Raises:
            ModelNotFoundError: nothing is there.
            ModelRefusedError: it cannot be run.
        """
        ...

    def create_invite(self, uses: int, lifetime_s: int) -> str:
        """A new invite.

        Raises:
            AuthenticationError: this node does not hold the swarm's authority.
        """
        ...
