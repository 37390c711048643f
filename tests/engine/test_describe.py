"""What is said of a model, and which ones are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from p2pllm.domain.errors import ModelRefusedError
from p2pllm.domain.ids import ModelId
from p2pllm.domain.models import LayerRun
from p2pllm.engine.describe import UNSTATED_CONTEXT_TOKENS, describe
from p2pllm.weights.checkpoint import open_checkpoint
from tests.engine.tiny_models import CONTEXT, FAMILIES, HIDDEN, LAYERS, VOCABULARY, make_tiny_model
from tests.engine.walking import MODEL, TinyModel

Tiny = Callable[[str], TinyModel]


def refusal_of(folder: Path) -> str:
    with pytest.raises(ModelRefusedError) as refused:
        describe(open_checkpoint(folder), model_id=MODEL, reference=str(folder))
    return str(refused.value)


def change_config(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_a_llama_is_described_by_the_numbers_of_its_configuration(tiny: Tiny) -> None:
    spec = tiny("llama").spec
    attention = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN // 2
    layer = attention + 3 * HIDDEN * 64 + 2 * HIDDEN
    assert spec.id == MODEL
    assert spec.reference == "tiny"
    assert spec.architecture == "LlamaForCausalLM"
    assert spec.runs == (LayerRun(LAYERS, layer, 2 * 2 * 8),)
    assert spec.embedding_parameters == VOCABULARY * HIDDEN
    assert spec.head_parameters == VOCABULARY * HIDDEN + HIDDEN
    assert spec.hidden_size == HIDDEN
    assert spec.context_length_max == CONTEXT
    assert spec.vocabulary_size == VOCABULARY
    assert spec.fingerprint == tiny("llama").checkpoint.fingerprint


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_weight_is_counted_once_and_a_tied_head_twice(family: str, tiny: Tiny) -> None:
    model = tiny(family)
    spec = model.spec
    tied = 0
    if spec.embedding_parameters + sum(spec.layer_parameters()) > 0:
        total = sum(spec.layer_parameters())
        tied = total - model.parameters
    assert tied in (0, VOCABULARY * HIDDEN, VOCABULARY * 16)
    assert spec.num_layers == LAYERS
    assert all(elements > 0 for elements in spec.layer_kv_elements())


def test_layers_of_different_sizes_are_told_apart(tiny: Tiny) -> None:
    runs = tiny("deepseek-v3").spec.runs
    assert [run.count for run in runs] == [1, LAYERS - 1]


def test_a_model_without_a_stated_context_gets_one(tiny: Tiny) -> None:
    assert tiny("bloom").spec.context_length_max == UNSTATED_CONTEXT_TOKENS


def test_a_name_that_cannot_be_served_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ModelRefusedError, match="cannot name a model"):
        describe(tiny("llama").checkpoint, model_id=ModelId("../up"), reference="x")


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path)
    change_config(folder, model_type="abacus", architectures=["AbacusForCausalLM"])
    refusal = refusal_of(folder)
    assert refusal.startswith("AbacusForCausalLM cannot be run")
    assert "'abacus'" in refusal


def test_a_model_that_needs_its_own_code_is_refused_and_the_code_never_runs(
    tmp_path: Path,
) -> None:
    folder = make_tiny_model("llama", tmp_path / "model")
    (folder / "configuration_own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    change_config(
        folder,
        model_type="own",
        architectures=["OwnForCausalLM"],
        auto_map={"AutoConfig": "configuration_own.OwnConfig"},
    )
    assert "code that comes with the model, which p2pllm never runs" in refusal_of(folder)
    assert not (tmp_path / "ran").exists()


def test_remote_code_is_ignored_where_transformers_knows_the_architecture(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path)
    change_config(folder, auto_map={"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"})
    spec = describe(open_checkpoint(folder), model_id=MODEL, reference="x")
    assert spec.architecture == "LlamaForCausalLM"


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    assert "BertForMaskedLM cannot be run: it is not a causal" in refusal_of(tmp_path)


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    config = T5Config(
        vocab_size=VOCABULARY, d_model=HIDDEN, d_kv=8, d_ff=32, num_layers=2, num_heads=4
    )
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    assert "it is an encoder-decoder" in refusal_of(tmp_path)


def test_a_multimodal_model_is_refused(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path)
    change_config(folder, model_type="gemma3", architectures=["Gemma3ForConditionalGeneration"])
    assert "it is a multimodal model" in refusal_of(folder)


def test_layers_that_share_keys_are_refused(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path)
    change_config(folder, num_kv_shared_layers=2)
    assert "share keys and values with each other" in refusal_of(folder)


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path)
    change_config(folder, quantization_config={"quant_method": "mxfp4"})
    assert "its weights are quantised (mxfp4)" in refusal_of(folder)


@pytest.mark.parametrize(
    "changes", [{"hidden_size": 33}, {"num_attention_heads": 0}, {"num_hidden_layers": "many"}]
)
def test_a_configuration_that_makes_no_sense_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = change_config(make_tiny_model("llama", tmp_path), **changes)
    assert "\n" not in refusal_of(folder)


def test_a_tensor_of_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.3.mlp.up_proj.weight"] = torch.zeros(63, HIDDEN)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    refusal = refusal_of(folder)
    assert "model.layers.3.mlp.up_proj.weight in the shape [63, 32]" in refusal
    assert "asks for [64, 32]" in refusal


def test_a_state_space_model_is_refused(tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, state_size=4, num_hidden_layers=2
    )
    MambaForCausalLM(config).save_pretrained(tmp_path)
    assert refusal_of(tmp_path).startswith("MambaForCausalLM cannot be run")
