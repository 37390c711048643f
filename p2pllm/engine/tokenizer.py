"""Text to token ids and back, with the model's own tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import jinja2
import transformers
from transformers import AutoTokenizer

from p2pllm.domain.errors import ClientError, ModelRefusedError
from p2pllm.domain.generation import STOP_TOKENS_MAX

transformers.logging.set_verbosity_error()


class ModelTokenizer:
    """A model's tokenizer. Loading blocks; the rest is fast enough for the event loop."""

    def __init__(self, tokenizer: Any, stop_tokens: tuple[int, ...]) -> None:
        self._tokenizer = tokenizer
        self._stop_tokens = stop_tokens

    @classmethod
    def load(cls, folder: Path) -> ModelTokenizer:
        """Load the tokenizer in `folder`; never runs code that comes with a model.

        Raises:
            ModelRefusedError: there is none that transformers can load.
        """
        try:
            tokenizer: Any = AutoTokenizer.from_pretrained(
                str(folder), trust_remote_code=False, local_files_only=True
            )
        except Exception as error:
            raise ModelRefusedError(
                f"{folder} has no tokenizer that transformers can load "
                f"({type(error).__name__}); add the model's tokenizer files."
            ) from error
        return cls(tokenizer, _stop_tokens(folder, tokenizer))

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """Ids that end a generation."""
        return self._stop_tokens

    @property
    def has_chat_template(self) -> bool:
        """Whether `encode_chat` works."""
        return bool(self._tokenizer.chat_template)

    def encode(self, text: str) -> list[int]:
        """Token ids of a plain prompt, with the special tokens the model expects."""
        return list(self._tokenizer.encode(text, add_special_tokens=True))

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a conversation, ending where the assistant begins.

        Raises:
            ClientError: the model has no chat template, or it refuses these messages.
        """
        if not self.has_chat_template:
            raise ClientError(
                "This model has no chat template; use /v1/completions with a plain prompt."
            )
        try:
            tokens = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=True,
                add_generation_prompt=True,
                return_dict=False,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise ClientError(
                f"The model's chat template refuses these messages: {reason}."
            ) from error
        return list(cast("Sequence[int]", tokens))

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of generated tokens, special ones left out."""
        return cast(
            "str",
            self._tokenizer.decode(
                list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
            ),
        )

    def token_text(self, token: int) -> str:
        """How one token is shown in logprobs."""
        return cast(
            "str",
            self._tokenizer.decode(
                [token], skip_special_tokens=False, clean_up_tokenization_spaces=False
            ),
        )


def _stop_tokens(folder: Path, tokenizer: Any) -> tuple[int, ...]:
    """End-of-sequence ids of generation settings, configuration and tokenizer, each once."""
    found: dict[int, None] = {}
    for source in (
        _end_ids(folder / "generation_config.json"),
        _end_ids(folder / "config.json"),
        tokenizer.eos_token_id,
    ):
        for token in cast("list[Any]", source) if isinstance(source, list) else [source]:
            if type(token) is int and token >= 0:
                found[token] = None
    return tuple(found)[:STOP_TOKENS_MAX]


def _end_ids(path: Path) -> Any:
    try:
        settings = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return (
        cast("dict[str, Any]", settings).get("eos_token_id") if isinstance(settings, dict) else None
    )
