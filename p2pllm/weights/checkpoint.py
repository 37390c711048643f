"""A model's folder, looked through before anything of it is trusted.

A checkpoint is a folder with `config.json` and safetensors files, one or several with an index.
Every header is parsed here and measured against its file, so that a download that broke off is
named now and not by a crash in the middle of loading. Weights themselves are never read, but for a
few bytes of some tensors that tell two fine-tunes of one model apart.

Source of the format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard, cast

from p2pllm.domain.errors import ModelNotFoundError, ModelRefusedError

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

HEADER_BYTES_MAX = 100_000_000
"""The safetensors library's own limit."""

JSON_BYTES_MAX = 100_000_000
"""Above every index there is; bounds what a hostile folder can make us parse."""

SAMPLED_TENSORS_MAX = 512
SAMPLE_BYTES = 256

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")

_VOLATILE_CONFIG = frozenset({"_name_or_path", "name_or_path", "transformers_version"})
"""Says who saved it and where, not what it is."""

_ITEM_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits of one element; a type that is not here is checked by its offsets alone."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies.

    Attributes:
        file: name of its file within the folder.
        dtype: element type as safetensors writes it (`F32`, `BF16`, ...).
        shape: its dimensions.
        size_bytes: what its data measure.
        offset: of its first byte in the file.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    offset: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder that was looked through and found whole.

    Attributes:
        folder: where it lies.
        config: `config.json`.
        tensors: every tensor by its name, in order of name.
        fingerprint: 32 hexadecimal digits that say what the model is, wherever it lies and however
            it is sharded.
    """

    folder: Path
    config: Mapping[str, Any] = field(repr=False)
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    fingerprint: str

    @property
    def size_bytes(self) -> int:
        """Of all tensors together."""
        return sum(tensor.size_bytes for tensor in self.tensors.values())


def open_checkpoint(folder: Path) -> Checkpoint:
    """Look a folder through.

    Blocks on the disk; reads the headers and a few kilobytes, never the weights.

    Raises:
        ModelNotFoundError: no such folder.
        ModelRefusedError: the folder holds no checkpoint that can be run; the message names the
            file and what to do.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(f"There is no folder {folder}; check the path.")
    config = _read_config(folder)
    tensors: dict[str, TensorInfo] = {}
    for file, expected in _weight_files(folder).items():
        found = _read_header(folder, file)
        missing = sorted(expected - found.keys())
        if missing:
            raise ModelRefusedError(
                f"{folder / file} lacks the tensor {missing[0]} that {INDEX_FILE} says it has; "
                "download the model again."
            )
        for name, tensor in found.items():
            if name in tensors:
                raise ModelRefusedError(
                    f"The tensor {name} is both in {tensors[name].file} and in {file} of {folder}; "
                    "download the model again."
                )
            tensors[name] = tensor
    if not tensors:
        raise ModelRefusedError(f"The safetensors files in {folder} hold no tensors.")
    ordered = dict(sorted(tensors.items()))
    return Checkpoint(folder, config, ordered, _fingerprint(folder, config, ordered))


def _read_config(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ModelRefusedError(
            f"{folder} has no {CONFIG_FILE}, so it is not a transformers model; "
            "give the folder that holds one."
        )
    config = _read_json(path)
    if not isinstance(config, dict):
        raise ModelRefusedError(f"{path} is not a JSON object; download the model again.")
    return cast("dict[str, Any]", config)


def _weight_files(folder: Path) -> dict[str, set[str]]:
    """The safetensors files, and for each the tensors the index says it has."""
    if (folder / INDEX_FILE).is_file():
        return _indexed_files(folder)
    if (folder / SINGLE_FILE).is_file():
        return {SINGLE_FILE: set()}
    others = sorted(path.name for path in folder.iterdir() if path.is_file())
    loose = [name for name in others if name.endswith(".safetensors")]
    if len(loose) == 1:
        return {loose[0]: set()}
    if loose:
        raise ModelRefusedError(
            f"{folder} holds several safetensors files but no {INDEX_FILE} that says which belong "
            "to the model; download the model again."
        )
    pickles = [name for name in others if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        raise ModelRefusedError(
            f"{folder} holds its weights only as {pickles[0]}, a pickle, which may run code when "
            "it is opened; use a version of the model saved as safetensors."
        )
    if any(name.endswith(".gguf") for name in others):
        raise ModelRefusedError(
            f"{folder} holds its weights only as GGUF, which is llama.cpp's format; "
            "use the original model saved as safetensors."
        )
    raise ModelRefusedError(f"{folder} holds no weights: no {SINGLE_FILE} and no {INDEX_FILE}.")


def _indexed_files(folder: Path) -> dict[str, set[str]]:
    path = folder / INDEX_FILE
    index = _read_json(path)
    weight_map = (
        cast("dict[str, Any]", index).get("weight_map") if isinstance(index, dict) else None
    )
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelRefusedError(f"{path} has no weight_map; download the model again.")
    files: dict[str, set[str]] = {}
    for tensor, file in cast("dict[str, Any]", weight_map).items():
        if not isinstance(file, str) or not _is_plain_name(file):
            raise ModelRefusedError(
                f"{path} names a file outside its folder ({file!r} for {tensor}); "
                "do not use this model."
            )
        files.setdefault(file, set()).add(tensor)
    for file in sorted(files):
        if not file.endswith(".safetensors"):
            raise ModelRefusedError(f"{path} names {file}, which is no safetensors file.")
        if not (folder / file).is_file():
            raise ModelRefusedError(
                f"{folder} lacks {file}, which {INDEX_FILE} names; finish the download."
            )
    return dict(sorted(files.items()))


def _is_plain_name(name: str) -> bool:
    return name not in ("", ".", "..") and not any(mark in name for mark in "/\\:\0")


def _read_json(path: Path) -> object:
    if path.stat().st_size > JSON_BYTES_MAX:
        raise ModelRefusedError(f"{path} is larger than any real one; do not use this model.")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelRefusedError(f"{path} is not JSON; download the model again.") from error


def _read_header(folder: Path, file: str) -> dict[str, TensorInfo]:
    path = folder / file
    with path.open("rb") as stream:
        return _parse_header(path, file, stream)


def _parse_header(path: Path, file: str, stream: BinaryIO) -> dict[str, TensorInfo]:
    file_bytes = path.stat().st_size
    length = int.from_bytes(stream.read(8), "little")
    if file_bytes < 8 or 8 + length > file_bytes:
        raise _truncated(path)
    if length > HEADER_BYTES_MAX:
        raise ModelRefusedError(f"{path} is no safetensors file; download the model again.")
    try:
        header = json.loads(stream.read(length))
    except (ValueError, RecursionError) as error:
        raise ModelRefusedError(f"{path} has a broken header; download the model again.") from error
    if not isinstance(header, dict):
        raise ModelRefusedError(f"{path} has a broken header; download the model again.")
    tensors: dict[str, TensorInfo] = {}
    end = 0
    for name, entry in cast("dict[str, Any]", header).items():
        if name == "__metadata__":
            continue
        tensor = _parse_entry(file, entry, data_start=8 + length)
        if tensor is None:
            raise ModelRefusedError(
                f"{path} has a broken header entry for {name}; download the model again."
            )
        end = max(end, tensor.offset + tensor.size_bytes)
        tensors[name] = tensor
    if end > file_bytes:
        raise _truncated(path)
    return tensors


def _parse_entry(file: str, entry: object, *, data_start: int) -> TensorInfo | None:
    if not isinstance(entry, dict):
        return None
    fields = cast("dict[str, Any]", entry)
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or not _are_sizes(shape) or not _are_sizes(offsets):
        return None
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        return None
    size_bytes = offsets[1] - offsets[0]
    bits = _ITEM_BITS.get(dtype)
    if bits is not None and size_bytes * 8 != math.prod(shape) * bits:
        return None
    return TensorInfo(file, dtype, tuple(shape), size_bytes, data_start + offsets[0])


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item < 2**63 for item in cast("list[Any]", value)
    )


def _truncated(path: Path) -> ModelRefusedError:
    return ModelRefusedError(
        f"{path} is shorter than its header says: the download broke off; "
        "delete the file and download it again."
    )


def _fingerprint(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> str:
    """Hash what the model is: configuration, names, types, shapes and a sample of contents.

    The sample (256 bytes from the middle of up to 512 tensors) tells fine-tunes of one model
    apart, whose files measure the same. How the tensors are spread over files does not count.
    """
    digest = hashlib.sha256()
    lasting = {key: value for key, value in config.items() if key not in _VOLATILE_CONFIG}
    digest.update(json.dumps(lasting, sort_keys=True, separators=(",", ":")).encode())
    for name, tensor in tensors.items():
        digest.update(f"\0{name}\0{tensor.dtype}\0{tensor.shape}".encode())
    names = list(tensors)
    stride = -(-len(names) // SAMPLED_TENSORS_MAX)
    sampled: dict[str, list[TensorInfo]] = {}
    for name in names[::stride]:
        sampled.setdefault(tensors[name].file, []).append(tensors[name])
    samples: dict[tuple[str, int], bytes] = {}
    for file, infos in sampled.items():
        with (folder / file).open("rb") as stream:
            for tensor in infos:
                length = min(SAMPLE_BYTES, tensor.size_bytes)
                stream.seek(tensor.offset + (tensor.size_bytes - length) // 2)
                samples[(file, tensor.offset)] = stream.read(length)
    for name in names[::stride]:
        digest.update(samples[(tensors[name].file, tensors[name].offset)])
    return digest.hexdigest()[:32]
