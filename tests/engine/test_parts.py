"""What is read from disk when a part of a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from p2pllm.domain.errors import ModelRefusedError
from p2pllm.engine import parts
from p2pllm.engine.anatomy import dissect
from p2pllm.engine.parts import LazyTensors, Part, load_part, needed_elements
from p2pllm.weights.checkpoint import open_checkpoint
from tests.engine.tiny_models import FAMILIES, LAYERS, make_tiny_model
from tests.engine.walking import TinyModel

Tiny = Callable[[str], TinyModel]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tensors that were read, in no order."""
    names: list[str] = []
    get = LazyTensors.__getitem__

    def spy(self: LazyTensors, name: str) -> Any:
        tensor = get(self, name)
        wrapped = tensor._on_bytes

        def note(count: int) -> None:
            names.append(name)
            if wrapped is not None:
                wrapped(count)

        tensor._on_bytes = note
        return tensor

    monkeypatch.setattr(LazyTensors, "__getitem__", spy)
    return names


def load(model: TinyModel, part: Part) -> Any:
    return load_part(dissect(model.checkpoint), model.checkpoint, part, dtype=torch.float32)


def test_of_layers_in_the_middle_nothing_else_is_read(tiny: Tiny, read: list[str]) -> None:
    load(tiny("llama"), Part(frozenset({2, 3}), entry=False, exit=False))
    assert {name.split(".layers.")[1].split(".")[0] for name in read} == {"2", "3"}
    assert len(read) == len(set(read)) == 2 * 9


def test_the_first_layers_come_with_the_embedding(tiny: Tiny, read: list[str]) -> None:
    load(tiny("llama"), Part(frozenset({0}), entry=True, exit=False))
    assert [name for name in read if ".layers." not in name] == ["model.embed_tokens.weight"]


def test_the_last_layers_come_with_norm_and_head(tiny: Tiny, read: list[str]) -> None:
    load(tiny("llama"), Part(frozenset({5}), entry=False, exit=True))
    outside = sorted(name for name in read if ".layers." not in name)
    assert outside == ["lm_head.weight", "model.norm.weight"]


def test_a_tied_head_comes_with_the_embedding_it_shares(tiny: Tiny, read: list[str]) -> None:
    model = load(tiny("llama-tied"), Part(frozenset({5}), entry=False, exit=True))
    outside = sorted(name for name in read if ".layers." not in name)
    assert outside == ["model.embed_tokens.weight", "model.norm.weight"]
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_nothing_is_read_for_the_shell(tiny: Tiny, read: list[str]) -> None:
    for family in FAMILIES:
        load(tiny(family), Part(frozenset(), entry=False, exit=False))
    assert read == []


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_bytes_read_are_those_that_the_part_needs(family: str, tiny: Tiny) -> None:
    model = tiny(family)
    anatomy = dissect(model.checkpoint)
    for part in (
        Part(frozenset({2, 3}), entry=False, exit=False),
        Part(frozenset({0, 1}), entry=True, exit=False),
        Part(frozenset({5}), entry=False, exit=True),
        Part(frozenset(range(LAYERS)), entry=True, exit=True),
    ):
        counts: list[int] = []
        load_part(anatomy, model.checkpoint, part, dtype=torch.float32, on_bytes=counts.append)
        # The few buffers that a checkpoint holds are read too.
        buffers = sum(count for count in counts if count <= 8 * 4) if family[:4] == "deep" else 0
        assert sum(counts) - buffers == needed_elements(anatomy, part) * 4


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system shows no mappings")
def test_weights_are_mapped_from_the_file_and_not_copied(tiny: Tiny) -> None:
    model = tiny("llama")
    loaded = load(model, Part(frozenset({0}), entry=True, exit=False))
    address = loaded.model.layers[0].self_attn.q_proj.weight.data_ptr()
    mappings = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    files = [
        fields[-1]
        for fields in mappings
        if int(fields[0].split("-")[0], 16) <= address < int(fields[0].split("-")[1], 16)
    ]
    assert files == [str(model.folder / "model.safetensors")]


def test_the_type_of_the_process_is_left_alone(tiny: Tiny) -> None:
    model = tiny("llama")
    anatomy = dissect(model.checkpoint)
    part = Part(frozenset({1}), entry=False, exit=False)
    loaded = load_part(anatomy, model.checkpoint, part, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() is torch.float32


def test_families_that_insist_keep_float32_where_they_do(tiny: Tiny) -> None:
    model = tiny("gpt-oss")
    anatomy = dissect(model.checkpoint)
    part = Part(frozenset({1}), entry=False, exit=True)
    loaded: Any = load_part(anatomy, model.checkpoint, part, dtype=torch.float16)
    assert loaded.model.norm.weight.dtype is torch.float32
    assert loaded.model.layers[1].self_attn.q_proj.weight.dtype is torch.float16


def test_a_tensor_of_another_shape_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.2.mlp.up_proj.weight"
    tensors[name] = tensors[name].T.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(folder)
    part = Part(frozenset({2}), entry=False, exit=False)
    with pytest.raises(ModelRefusedError, match="does not load as LlamaForCausalLM"):
        load_part(dissect(checkpoint), checkpoint, part, dtype=torch.float32)


def test_no_lock_is_left_behind_by_a_refusal(tmp_path: Path) -> None:
    test_a_tensor_of_another_shape_is_refused_when_it_is_loaded(tmp_path)
    assert not parts._LOADING.locked()


def test_a_file_that_broke_after_it_was_looked_through_is_refused(tmp_path: Path) -> None:
    folder = make_tiny_model("llama", tmp_path / "model")
    checkpoint = open_checkpoint(folder)
    anatomy = dissect(checkpoint)
    file = folder / "model.safetensors"
    part = Part(frozenset({2}), entry=False, exit=False)
    file.write_bytes(file.read_bytes()[:-1_000])
    with pytest.raises(ModelRefusedError, match="does not load as LlamaForCausalLM"):
        load_part(anatomy, checkpoint, part, dtype=torch.float32)
    file.unlink()
    with pytest.raises(ModelRefusedError, match="does not load as LlamaForCausalLM"):
        load_part(anatomy, checkpoint, part, dtype=torch.float32)
