"""What a model is made of is found without a line about its family."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pllm.domain.errors import ModelRefusedError
from p2pllm.engine.anatomy import dissect
from p2pllm.weights.checkpoint import open_checkpoint
from tests.engine.tiny_models import HIDDEN, make_tiny_model


@pytest.mark.parametrize(
    ("family", "layers_path"),
    [("llama", "model.layers"), ("gpt2", "transformer.h"), ("mixtral", "model.layers")],
)
def test_the_list_of_layers_is_found_by_its_form(
    family: str, layers_path: str, tmp_path: Path
) -> None:
    found = dissect(open_checkpoint(make_tiny_model(family, tmp_path)))
    assert found.layers_path == layers_path
    assert found.num_layers == 6
    assert found.hidden_size == HIDDEN
    assert len(set(found.layer_parameters)) == 1
    assert all(elements > 0 for elements in found.kv_elements)


def test_a_tied_matrix_counts_at_both_ends(tmp_path: Path) -> None:
    tied = dissect(open_checkpoint(make_tiny_model("llama", tmp_path / "tied")))
    apart = dissect(
        open_checkpoint(make_tiny_model("llama", tmp_path / "apart", tie_word_embeddings=False))
    )
    assert tied.entry_parameters == apart.entry_parameters
    assert tied.exit_parameters == apart.exit_parameters


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path)
    config = folder / "config.json"
    config.write_text(
        config.read_text().replace('"llama"', '"abacus"').replace("LlamaFor", "AbacusFor")
    )
    with pytest.raises(ModelRefusedError, match=r"(?i)abacus"):
        dissect(open_checkpoint(folder))
