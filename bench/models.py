"""Models to measure with: the built-in one, and a larger random one made on the fly."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from p2pllm.builtin import model_path

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A model in a folder.

    Attributes:
        name: for the table.
        reference: what `--model` gets.
        folder: its files.
        layers: how many.
        layer_bytes: of the weights per layer in float32, embedding and head counted to the ends.
        vocabulary: size.
    """

    name: str
    reference: str
    folder: Path
    layers: int
    layer_bytes: tuple[int, ...]
    vocabulary: int


def builtin_model() -> BenchModel:
    """The one that is shipped."""
    return _described("built-in", "builtin", model_path())


def random_llama(folder: Path, *, hidden: int = 512, layers: int = 12, seed: int = 7) -> BenchModel:
    """A Llama with random weights, saved in `folder`; it shares the built-in model's tokenizer.

    It has no end-of-sequence token, so that every generation is as long as asked for.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    built_in = builtin_model()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=built_in.vocabulary,
            hidden_size=hidden,
            intermediate_size=hidden * 8 // 3 // 64 * 64,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=max(1, hidden // 128),
            max_position_embeddings=2_048,
            bos_token_id=0,
            eos_token_id=None,
            pad_token_id=None,
        )
    )
    model.generation_config = GenerationConfig(bos_token_id=0)
    model.save_pretrained(folder)
    for name in _TOKENIZER_FILES:
        shutil.copy(built_in.folder / name, folder / name)
    return _described(f"random Llama {layers} x {hidden}", str(folder), folder)


def _described(name: str, reference: str, folder: Path) -> BenchModel:
    from p2pllm.core.capacity import weight_bytes
    from p2pllm.domain.ids import ModelId
    from p2pllm.engine.describe import describe
    from p2pllm.weights.checkpoint import open_checkpoint

    spec = describe(open_checkpoint(folder), model_id=ModelId("bench"), reference=reference)
    return BenchModel(
        f"{name} ({sum(spec.layer_parameters()) / 1e6:.1f} M weights)",
        reference,
        folder,
        spec.num_layers,
        weight_bytes(spec, 4),
        spec.vocabulary_size,
    )
