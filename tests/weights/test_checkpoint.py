"""Folders that are whole, and folders that are not."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from p2pllm.domain.errors import ModelNotFoundError, ModelRefusedError
from p2pllm.weights.checkpoint import open_checkpoint

CONFIG: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
TENSORS = {
    "first": np.arange(12, dtype=np.float32).reshape(3, 4),
    "second": np.arange(5, dtype=np.float16),
}


def write_config(folder: Path, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return folder


def write_checkpoint(folder: Path, **changes: Any) -> Path:
    write_config(folder, **changes)
    save_file(TENSORS, folder / "model.safetensors")
    return folder


def write_sharded(folder: Path) -> Path:
    write_config(folder)
    weight_map: dict[str, str] = {}
    for number, (name, tensor) in enumerate(TENSORS.items()):
        file = f"model-{number}.safetensors"
        save_file({name: tensor}, folder / file)
        weight_map[name] = file
    write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: object) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))


def write_header(folder: Path, header: object, data: bytes = b"") -> Path:
    raw = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return folder


def test_a_whole_checkpoint_lists_its_tensors(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path))
    assert list(checkpoint.tensors) == ["first", "second"]
    first = checkpoint.tensors["first"]
    assert (first.file, first.dtype, first.shape, first.size_bytes) == (
        "model.safetensors",
        "F32",
        (3, 4),
        48,
    )
    assert checkpoint.size_bytes == 48 + 10
    assert checkpoint.config["model_type"] == "llama"
    assert len(checkpoint.fingerprint) == 32
    assert set(checkpoint.fingerprint) <= set("0123456789abcdef")


def test_the_fingerprint_does_not_depend_on_place_or_sharding(tmp_path: Path) -> None:
    one = open_checkpoint(write_checkpoint(tmp_path / "one", transformers_version="5.0"))
    two = open_checkpoint(write_checkpoint(tmp_path / "two", _name_or_path="elsewhere"))
    sharded = open_checkpoint(write_sharded(tmp_path / "three"))
    assert one.fingerprint == two.fingerprint == sharded.fingerprint


def test_another_configuration_is_another_model(tmp_path: Path) -> None:
    one = open_checkpoint(write_checkpoint(tmp_path / "one"))
    two = open_checkpoint(write_checkpoint(tmp_path / "two", rope_theta=5.0))
    assert one.fingerprint != two.fingerprint


def test_a_fine_tune_of_the_same_shapes_is_another_model(tmp_path: Path) -> None:
    one = open_checkpoint(write_checkpoint(tmp_path / "one"))
    folder = write_config(tmp_path / "two")
    save_file({**TENSORS, "first": TENSORS["first"] + 1}, folder / "model.safetensors")
    assert one.fingerprint != open_checkpoint(folder).fingerprint


def test_a_missing_folder_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no folder"):
        open_checkpoint(tmp_path / "missing")


def test_a_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    with pytest.raises(ModelRefusedError, match=r"no config\.json"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["[1]", "{", "", "\x00", "[" * 100_000])
def test_a_broken_configuration_is_refused(tmp_path: Path, text: str) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelRefusedError, match=r"config\.json is not"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("cut_bytes", [1, 30, 150])
def test_a_download_that_broke_off_is_named(tmp_path: Path, cut_bytes: int) -> None:
    path = write_checkpoint(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-cut_bytes])
    with pytest.raises(ModelRefusedError, match=r"model\.safetensors is shorter.*download it"):
        open_checkpoint(tmp_path)


def test_an_empty_weight_file_is_named(tmp_path: Path) -> None:
    (write_checkpoint(tmp_path) / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelRefusedError, match=r"model\.safetensors is shorter"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "x.ckpt"])
def test_pickles_alone_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (write_config(tmp_path) / name).write_bytes(b"x")
    with pytest.raises(ModelRefusedError, match=f"{name}, a pickle"):
        open_checkpoint(tmp_path)


def test_gguf_alone_is_refused(tmp_path: Path) -> None:
    (write_config(tmp_path) / "model.gguf").write_bytes(b"x")
    with pytest.raises(ModelRefusedError, match="GGUF"):
        open_checkpoint(tmp_path)


def test_no_weights_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefusedError, match="no weights"):
        open_checkpoint(write_config(tmp_path))


def test_a_single_file_of_another_name_is_taken(tmp_path: Path) -> None:
    save_file(TENSORS, write_config(tmp_path) / "weights.safetensors")
    assert len(open_checkpoint(tmp_path).tensors) == 2


def test_several_files_without_an_index_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file(TENSORS, write_config(tmp_path) / f"{name}.safetensors")
    with pytest.raises(ModelRefusedError, match="several safetensors files but no"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", ".."])
def test_an_index_may_not_leave_the_folder(tmp_path: Path, file: str) -> None:
    write_index(write_checkpoint(tmp_path), {"first": file})
    with pytest.raises(ModelRefusedError, match="outside its folder"):
        open_checkpoint(tmp_path)


def test_an_index_may_not_name_a_pickle(tmp_path: Path) -> None:
    write_index(write_checkpoint(tmp_path), {"first": "pytorch_model.bin"})
    with pytest.raises(ModelRefusedError, match="no safetensors file"):
        open_checkpoint(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (write_sharded(tmp_path) / "model-1.safetensors").unlink()
    with pytest.raises(ModelRefusedError, match=r"lacks model-1\.safetensors.*finish the download"):
        open_checkpoint(tmp_path)


def test_a_tensor_that_the_index_promises_must_be_there(tmp_path: Path) -> None:
    write_index(write_sharded(tmp_path), {"third": "model-0.safetensors"})
    with pytest.raises(ModelRefusedError, match="lacks the tensor third"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("weight_map", [None, [], {}, "x"])
def test_an_index_without_a_map_is_refused(tmp_path: Path, weight_map: object) -> None:
    write_index(write_checkpoint(tmp_path), weight_map)
    with pytest.raises(ModelRefusedError, match="no weight_map"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": 32, "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]},
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path, entry: object) -> None:
    write_header(write_config(tmp_path), {"broken": entry}, bytes(8))
    with pytest.raises(ModelRefusedError, match="broken header entry for broken"):
        open_checkpoint(tmp_path)


def test_a_header_without_tensors_is_refused(tmp_path: Path) -> None:
    write_header(write_config(tmp_path), {"__metadata__": {"format": "pt"}})
    with pytest.raises(ModelRefusedError, match="hold no tensors"):
        open_checkpoint(tmp_path)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(junk=st.binary(max_size=64), at=st.integers(0, 200))
def test_damaged_files_never_crash_the_reader(tmp_path: Path, junk: bytes, at: int) -> None:
    path = write_checkpoint(tmp_path) / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + junk + whole[at + len(junk) :])
    try:
        checkpoint = open_checkpoint(tmp_path)
    except ModelRefusedError:
        return
    assert all(
        tensor.offset + tensor.size_bytes <= path.stat().st_size
        for tensor in checkpoint.tensors.values()
    )
