"""The models this node can reach: references resolved, described and opened once each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from p2pllm.api.gateway import Tokenizer
from p2pllm.builtin import model_path
from p2pllm.domain.errors import ModelNotFoundError, ModelRefusedError, P2PLLMError
from p2pllm.domain.ids import ModelId, is_model_id
from p2pllm.domain.models import ModelSpec
from p2pllm.weights.checkpoint import Checkpoint, open_checkpoint
from p2pllm.weights.references import OnFetched, References, name_of

BUILTIN = "builtin"


def references() -> References:
    """Resolves references; knows the built-in model."""
    return References({BUILTIN: model_path()})


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model whose files are on this machine.

    Attributes:
        spec: what it is.
        checkpoint: its files.
    """

    spec: ModelSpec
    checkpoint: Checkpoint


class ModelLibrary:
    """Finds models by reference, and by what the swarm says of them.

    Args:
        resolve: turns references into folders.
        on_fetched: told of progress where files have to be fetched.
        own_references: what this node was told to serve; tried where the reference of the node
            that added a model leads nowhere here, and taken if the files are the same.
    """

    def __init__(
        self,
        resolve: References,
        own_references: Iterable[str] = (),
        on_fetched: OnFetched | None = None,
    ) -> None:
        self._references = resolve
        self._on_fetched = on_fetched
        self._own_references = tuple(own_references)
        self._found: dict[str, FoundModel] = {}
        self._tokenizers: dict[str, Tokenizer] = {}
        # One at a time: two describing at once would double the peak of memory for nothing.
        self._lock = asyncio.Lock()

    async def describe(self, reference: str, name: str | None = None) -> FoundModel:
        """What is at a reference.

        Raises:
            ModelNotFoundError: nothing is.
            ModelRefusedError: what is there cannot be run, or the name is none.
        """
        model = name if name is not None else name_of(reference)
        if not is_model_id(model):
            raise ModelRefusedError(
                f"{model!r} cannot name a model; give it one of letters, digits, '.', '_', '-' "
                "with --name"
            )
        async with self._lock:
            folder = await self._references.resolve(reference, on_progress=self._on_fetched)
            found = await asyncio.to_thread(_describe, folder, ModelId(model), reference)
        self._found[found.spec.fingerprint] = found
        return found

    async def find(self, spec: ModelSpec) -> FoundModel:
        """The files of a model that the swarm serves.

        Raises:
            ModelNotFoundError: they cannot be reached from here; the message says why.
        """
        known = self._found.get(spec.fingerprint)
        if known is not None:
            return known
        reasons: list[str] = []
        for reference in (spec.reference, *self._own_references):
            try:
                found = await self.describe(reference, spec.id)
            except P2PLLMError as error:
                reasons.append(str(error))
                continue
            if found.spec.fingerprint == spec.fingerprint:
                return found
            reasons.append(f"the files at {reference} are of another model or version")
        raise ModelNotFoundError(
            f"the files of {spec.id} cannot be reached from this node ({'; '.join(reasons)}); "
            "put them here and start the node with --model FOLDER"
        )

    async def tokenizer(self, spec: ModelSpec) -> Tokenizer:
        """The model's tokenizer, loaded once.

        Raises:
            ModelNotFoundError: the files cannot be reached from here.
        """
        known = self._tokenizers.get(spec.fingerprint)
        if known is None:
            found = await self.find(spec)
            known = await asyncio.to_thread(_load_tokenizer, found.checkpoint.folder)
            self._tokenizers[spec.fingerprint] = known
        return known

    def forget_except(self, specs: Iterable[ModelSpec]) -> None:
        """Let go of models that are served no longer."""
        keep = {spec.fingerprint for spec in specs}
        for table in (self._found, self._tokenizers):
            for fingerprint in [item for item in table if item not in keep]:
                del table[fingerprint]


def _describe(folder: Path, model: ModelId, reference: str) -> FoundModel:
    # Imports torch and transformers, which takes seconds: hence here and not above.
    from p2pllm.engine.describe import describe

    checkpoint = open_checkpoint(folder)
    return FoundModel(describe(checkpoint, model_id=model, reference=reference), checkpoint)


def _load_tokenizer(folder: Path) -> Tokenizer:
    from p2pllm.engine.tokenizer import ModelTokenizer

    return ModelTokenizer.load(folder)
