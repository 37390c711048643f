"""Tiny random models of many families, saved as transformers saves them, tokenizer and all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 128
LAYERS = 6
HIDDEN = 32
CONTEXT = 128

_USUAL = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_ALTERNATING = ["sliding_attention", "full_attention"] * (LAYERS // 2)

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _USUAL),
    "llama-tied": ("LlamaConfig", {**_USUAL, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", _USUAL),
    "qwen3": ("Qwen3Config", {**_USUAL, "head_dim": 16}),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        {
            **_USUAL,
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
        },
    ),
    "mistral": ("MistralConfig", {**_USUAL, "sliding_window": 8}),
    "mixtral": ("MixtralConfig", {**_USUAL, "num_local_experts": 4}),
    "gemma": ("GemmaConfig", {**_USUAL, "head_dim": 16}),
    "gemma2": (
        "Gemma2Config",
        {**_USUAL, "head_dim": 16, "sliding_window": 8, "layer_types": _ALTERNATING},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            **_USUAL,
            "head_dim": 16,
            "sliding_window": 8,
            "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
        },
    ),
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": VOCABULARY,
            "n_embd": HIDDEN,
            "n_layer": LAYERS,
            "n_head": 4,
            "n_positions": CONTEXT,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "gpt-neox": ("GPTNeoXConfig", _USUAL),
    "gpt-oss": (
        "GptOssConfig",
        {
            **_USUAL,
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "layer_types": _ALTERNATING,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150_000.0,
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": CONTEXT // 32,
            },
        },
    ),
    "opt": (
        "OPTConfig",
        {**_USUAL, "ffn_dim": 64, "word_embed_proj_dim": 16, "do_layer_norm_before": True},
    ),
    "bloom": (
        "BloomConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "n_layer": LAYERS,
            "n_head": 4,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "tie_word_embeddings": False,
        },
    ),
    "falcon": ("FalconConfig", {**_USUAL, "alibi": False, "new_decoder_architecture": False}),
    "falcon-alibi": ("FalconConfig", {**_USUAL, "alibi": True, "multi_query": False}),
    "phi3": ("Phi3Config", _USUAL),
    "starcoder2": ("Starcoder2Config", _USUAL),
    "olmo2": ("Olmo2Config", _USUAL),
    "granite": (
        "GraniteConfig",
        {**_USUAL, "embedding_multiplier": 2.0, "logits_scaling": 3.0, "residual_multiplier": 0.5},
    ),
    "deepseek-v3": (
        "DeepseekV3Config",
        {
            **_USUAL,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 16,
            "n_routed_experts": 8,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 16,
        },
    ),
}

_OLD_NAMES = {
    "vocab_size": VOCABULARY,
    "n_embd": HIDDEN,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

MORE_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "biogpt": ("BioGptConfig", _USUAL),
    "codegen": ("CodeGenConfig", {**_OLD_NAMES, "rotary_dim": 4}),
    "cohere": ("CohereConfig", _USUAL),
    "cohere2": ("Cohere2Config", {**_USUAL, "sliding_window": 8}),
    "deepseek-v2": (
        "DeepseekV2Config",
        {**FAMILIES["deepseek-v3"][1], "topk_method": "greedy"},
    ),
    "ernie": ("Ernie4_5Config", _USUAL),
    "exaone4": ("Exaone4Config", {**_USUAL, "sliding_window": 8}),
    "glm": ("GlmConfig", {**_USUAL, "head_dim": 8}),
    "glm4": ("Glm4Config", {**_USUAL, "head_dim": 8}),
    "gpt-bigcode": ("GPTBigCodeConfig", _OLD_NAMES),
    "gpt-j": ("GPTJConfig", {**_OLD_NAMES, "rotary_dim": 4}),
    "gpt-neo": (
        "GPTNeoConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "num_layers": LAYERS,
            "num_heads": 4,
            "attention_types": [[["global", "local"], LAYERS // 2]],
            "window_size": 8,
            "max_position_embeddings": CONTEXT,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "granite-moe": ("GraniteMoeConfig", {**_USUAL, "num_local_experts": 4}),
    "hunyuan": ("HunYuanDenseV1Config", {**_USUAL, "head_dim": 8}),
    "llama4": (
        "Llama4TextConfig",
        {
            **_USUAL,
            "head_dim": 8,
            "num_local_experts": 4,
            "attention_chunk_size": 8,
            "intermediate_size_mlp": 32,
        },
    ),
    "mpt": (
        "MptConfig",
        {
            "vocab_size": VOCABULARY,
            "d_model": HIDDEN,
            "n_layers": LAYERS,
            "n_heads": 4,
            "max_seq_len": CONTEXT,
        },
    ),
    "nemotron": ("NemotronConfig", _USUAL),
    "olmo": ("OlmoConfig", _USUAL),
    "olmo3": ("Olmo3Config", {**_USUAL, "sliding_window": 8}),
    "persimmon": ("PersimmonConfig", _USUAL),
    "phi": ("PhiConfig", _USUAL),
    "phimoe": ("PhimoeConfig", {**_USUAL, "num_local_experts": 4}),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        {
            **_USUAL,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "seed-oss": ("SeedOssConfig", {**_USUAL, "head_dim": 8}),
    "smollm3": ("SmolLM3Config", _USUAL),
    "stablelm": ("StableLmConfig", _USUAL),
}
"""Proven to run, by one test each."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('unknown role ' + message.role) }}{% endif %}"
    "<{{ message.role[0] }}>{{ message.content }}</>"
    "{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


def make_tiny_model(
    family: str, folder: Path, *, seed: int = 1, shard_bytes: int | None = None, **changes: Any
) -> Path:
    """Save a random model of `family` into `folder`, with a tokenizer, and return `folder`.

    Weights are spread wide enough that greedy decoding does not repeat one token. `changes` go
    into the configuration; `shard_bytes` splits the weights into files of about that size.
    """
    name, settings = {**FAMILIES, **MORE_FAMILIES}[family]
    config = getattr(transformers, name)(**{**settings, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():
                spread = 0.3 if parameter.dim() > 1 else 0.1
                parameter.add_(torch.randn_like(parameter) * spread)
            # A head that mirrors a strong embedding would say the last token again for ever.
            model.get_input_embeddings().weight.mul_(0.1)
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config.eos_token_id = 2
    if shard_bytes is None:
        model.save_pretrained(folder)
    else:
        model.save_pretrained(folder, max_shard_size=shard_bytes)
    make_tiny_tokenizer().save_pretrained(folder)
    return folder


def make_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per printable ASCII character, and a chat template."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    pieces = special + [chr(code) for code in range(32, 127)]
    tokenizer = Tokenizer(
        models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
    )
