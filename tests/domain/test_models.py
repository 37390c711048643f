from __future__ import annotations

from p2pllm.domain.ids import ModelId
from p2pllm.domain.layers import LayerRange
from p2pllm.domain.models import LayerRun, ModelSpec


def spec(*runs: LayerRun) -> ModelSpec:
    return ModelSpec(
        id=ModelId("m"),
        reference="builtin",
        fingerprint="f" * 32,
        architecture="LlamaForCausalLM",
        runs=runs,
        embedding_parameters=1_000,
        head_parameters=500,
        hidden_size=64,
        context_length_max=128,
        vocabulary_size=256,
    )


MIXED = spec(LayerRun(2, 10, 4), LayerRun(1, 70, 8), LayerRun(2, 20, 0))


def test_runs_add_up_to_the_model() -> None:
    assert MIXED.num_layers == 5
    assert MIXED.layers == LayerRange(0, 5)


def test_the_embedding_counts_to_the_first_layer_and_the_head_to_the_last() -> None:
    assert MIXED.layer_parameters() == (1_010, 10, 70, 20, 520)


def test_the_only_layer_of_a_model_bears_both_ends() -> None:
    assert spec(LayerRun(1, 10, 4)).layer_parameters() == (1_510,)


def test_every_layer_caches_what_its_run_says_and_the_ends_cache_nothing() -> None:
    assert MIXED.layer_kv_elements() == (4, 4, 8, 0, 0)
