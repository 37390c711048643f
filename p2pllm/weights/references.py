"""From what a user calls a model to a folder that holds it.

A *reference* is one of

    builtin             the model that comes with p2pllm
    a folder            on this machine: /models/llama, ./llama, ~/llama
    a hub id            owner/name on the Hugging Face hub

From the hub come just the files a text model needs: configuration, tokenizer, and weights as
safetensors. Pickles are never asked for.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import tqdm

from p2pllm.domain.errors import ModelNotFoundError, ModelRefusedError
from p2pllm.domain.ids import MODEL_ID_LENGTH_MAX, ModelId, is_model_id
from p2pllm.weights.checkpoint import CONFIG_FILE, INDEX_FILE, PICKLE_SUFFIXES, SINGLE_FILE

OnFetched = Callable[[int, int, str], None]
"""Told bytes fetched so far, bytes to fetch, and the file at hand; called on the event loop."""

METADATA_TIMEOUT_S = 20.0

_OnBytes = Callable[[float], None]

_CONFIG_FILES = frozenset(
    {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "spiece.model",
        "sentencepiece.bpe.model",
        "chat_template.jinja",
        "chat_template.json",
    }
)

_TransportError: type[Exception] = HfHubHTTPError.__bases__[0]
# The error base of the HTTP library beneath, which differs between versions of huggingface_hub.


@dataclass(frozen=True, slots=True)
class _HubFile:
    name: str
    size_bytes: int


class References:
    """Resolves references.

    Args:
        builtin: folders of the models that come with p2pllm, by reference.
        cache: where downloads go; None for the hub library's own place, shared with other tools.
        endpoint: of the hub; None for its usual one (or `HF_ENDPOINT`).
    """

    def __init__(
        self,
        builtin: Mapping[str, Path],
        *,
        cache: Path | None = None,
        endpoint: str | None = None,
    ) -> None:
        self._builtin = dict(builtin)
        self._cache = cache
        self._endpoint = endpoint

    async def resolve(self, reference: str, *, on_progress: OnFetched | None = None) -> Path:
        """The folder of a model, fetched from the hub where it has to be.

        Raises:
            ModelNotFoundError: there is nothing of that name, or the hub cannot be reached.
            ModelRefusedError: the hub has it, but not as safetensors.
        """
        if reference in self._builtin:
            return self._builtin[reference]
        folder = await asyncio.to_thread(_existing_folder, reference)
        if folder is not None:
            return folder
        if _is_path(reference):
            raise ModelNotFoundError(f"There is no folder {reference}; check the path.")
        if not is_model_id(reference):
            raise ModelNotFoundError(
                f"{reference!r} is no model: give a folder, or owner/name of a model on the hub."
            )
        loop = asyncio.get_running_loop()
        return await asyncio.to_thread(self._fetch, reference, loop, on_progress)

    def _fetch(
        self, hub_id: str, loop: asyncio.AbstractEventLoop, on_progress: OnFetched | None
    ) -> Path:
        try:
            return self._fetch_files(hub_id, loop, on_progress)
        except GatedRepoError as error:
            raise ModelNotFoundError(
                f"{hub_id} is gated: accept its terms on the hub and log in with `hf auth login`."
            ) from error
        except (RepositoryNotFoundError, HFValidationError) as error:
            raise ModelNotFoundError(
                f"{hub_id} is neither a folder here nor a public model on the hub; check the name, "
                "or log in with `hf auth login` if it is private."
            ) from error
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status >= 500 or status == 429:
                return self._cached(hub_id, error)
            raise ModelNotFoundError(
                f"The hub refused {hub_id} with HTTP status {status}; try again later."
            ) from error
        except (_TransportError, OfflineModeIsEnabled, LocalEntryNotFoundError) as error:
            return self._cached(hub_id, error)
        except OSError as error:
            raise ModelNotFoundError(
                f"{hub_id} could not be stored here ({error.strerror or error}); "
                "make room on the disk."
            ) from error

    def _cached(self, hub_id: str, error: Exception) -> Path:
        """What an earlier run fetched, where the hub cannot be reached now."""
        try:
            return Path(
                hf_hub_download(hub_id, CONFIG_FILE, cache_dir=self._cache, local_files_only=True)
            ).parent
        except (HFValidationError, EntryNotFoundError, OSError):
            raise ModelNotFoundError(
                f"The hub cannot be reached for {hub_id} ({type(error).__name__}); check the "
                "connection, or give the folder of a model that is on this machine."
            ) from error

    def _fetch_files(
        self, hub_id: str, loop: asyncio.AbstractEventLoop, on_progress: OnFetched | None
    ) -> Path:
        info = HfApi(endpoint=self._endpoint).model_info(
            hub_id, files_metadata=True, timeout=METADATA_TIMEOUT_S
        )
        revision = info.sha
        files = {
            item.rfilename: _HubFile(item.rfilename, item.size or 0)
            for item in info.siblings or ()
            if "/" not in item.rfilename
        }
        if CONFIG_FILE not in files:
            raise ModelRefusedError(f"{hub_id} has no config.json, so no transformers model.")

        def download(name: str, on_bytes: _OnBytes | None = None, *, of: str | None) -> Path:
            return Path(
                hf_hub_download(
                    hub_id,
                    name,
                    revision=of,
                    cache_dir=self._cache,
                    endpoint=self._endpoint,
                    tqdm_class=_silent(on_bytes),
                )
            )

        index = download(INDEX_FILE, of=revision) if INDEX_FILE in files else None
        wanted = [files[name] for name in sorted(_CONFIG_FILES & files.keys())]
        wanted += [files[name] for name in _weights(hub_id, files, index)]
        tally = _Tally(sum(file.size_bytes for file in wanted), loop, on_progress)
        folder = Path()
        for file in wanted:
            tally.start(file)
            try:
                folder = download(file.name, tally.add, of=revision).parent
            except EntryNotFoundError as error:
                raise ModelRefusedError(
                    f"{hub_id} lacks {file.name}, which it lists; try again later."
                ) from error
            tally.finish()
        # Asked for without a revision, so that the cache notes which one is the newest; that is
        # what is taken when the hub cannot be reached.
        download(CONFIG_FILE, of=None)
        return folder


def name_of(reference: str) -> ModelId:
    """The name a model is served under unless its owner gives another: hub id or folder name.

    Raises:
        ModelNotFoundError: nothing in the reference can serve as a name.
    """
    if not _is_path(reference) and is_model_id(reference):
        return ModelId(reference)
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(reference).expanduser().resolve().name)
    name = name.lstrip("._-")[:MODEL_ID_LENGTH_MAX]
    if not is_model_id(name):
        raise ModelNotFoundError(f"{reference!r} gives no name to serve the model under; name it.")
    return ModelId(name)


def _is_path(reference: str) -> bool:
    return reference.startswith(("/", "./", "../", "~")) or reference in (".", "..")


def _existing_folder(reference: str) -> Path | None:
    if not reference:
        return None  # pathlib takes it for the current folder
    try:
        folder = Path(reference).expanduser()
        return folder.resolve() if folder.is_dir() else None
    except (OSError, ValueError, RuntimeError):
        return None  # too long, with a null character, or of an unknown user


def _weights(hub_id: str, files: Mapping[str, object], index: Path | None) -> Sequence[str]:
    """Names of the weight files; the same choice as `open_checkpoint` makes."""
    if index is not None:
        try:
            weight_map = cast("dict[str, str]", json.loads(index.read_bytes())["weight_map"])
            shards = sorted(set(weight_map.values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelRefusedError(f"{hub_id} has a broken {INDEX_FILE}.") from error
        lacking = [shard for shard in shards if shard not in files]
        if lacking:
            raise ModelRefusedError(f"{hub_id} lacks {lacking[0]}, which its index names.")
        unsafe = [shard for shard in shards if not shard.endswith(".safetensors")]
        if unsafe:
            raise ModelRefusedError(f"{hub_id} names {unsafe[0]}, which is no safetensors file.")
        return [INDEX_FILE, *shards]
    if SINGLE_FILE in files:
        return [SINGLE_FILE]
    loose = sorted(name for name in files if name.endswith(".safetensors"))
    if len(loose) == 1:
        return loose
    pickles = sorted(name for name in files if name.endswith(PICKLE_SUFFIXES))
    if pickles:
        raise ModelRefusedError(
            f"{hub_id} has its weights only as {pickles[0]}, a pickle, which may run code when it "
            "is opened; use a version of the model saved as safetensors."
        )
    raise ModelRefusedError(f"{hub_id} has no weights as safetensors.")


class _Tally:
    """Adds up what was fetched, and tells the event loop."""

    def __init__(
        self, total: int, loop: asyncio.AbstractEventLoop, on_progress: OnFetched | None
    ) -> None:
        self._finished = 0
        self._current = 0
        self._total = total
        self._file = _HubFile("", 0)
        self._loop = loop
        self._on_progress = on_progress

    def start(self, file: _HubFile) -> None:
        self._file = file
        self._current = 0
        self._tell()

    def add(self, count: float) -> None:
        self._current = min(self._current + int(count), self._file.size_bytes)
        self._tell()

    def finish(self) -> None:
        # A file that was there already was not counted while it was fetched.
        self._finished += self._file.size_bytes
        self._current = 0
        self._tell()

    def _tell(self) -> None:
        if self._on_progress is not None:
            done = self._finished + self._current
            self._loop.call_soon_threadsafe(self._on_progress, done, self._total, self._file.name)


def _silent(on_bytes: _OnBytes | None) -> type[tqdm]:
    """A progress bar that shows nothing and passes on what it is told."""

    class Silent(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            if on_bytes is not None and n:
                on_bytes(n)
            return None

    return Silent
