"""Devices, element types, and hidden states as bytes and back."""

from __future__ import annotations

from typing import Any, cast

import torch

from p2pllm.domain.errors import ConfigurationError
from p2pllm.domain.messages import Activation, ActivationType

_TYPES = {
    torch.float32: ActivationType.FLOAT32,
    torch.bfloat16: ActivationType.BFLOAT16,
    torch.float16: ActivationType.FLOAT16,
}
_DTYPES = {kind: dtype for dtype, kind in _TYPES.items()}

DTYPE_NAMES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the first of cuda, mps, cpu that is there.

    Raises:
        ConfigurationError: there is no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        if torch.backends.mps.is_available():
            return torch.device("mps")
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(
            f"This machine has no usable device {name!r}; use auto, cpu, cuda or mps."
        ) from error
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The element type called `name`; "auto" is the fastest that keeps the range of float32.

    That is bfloat16 where the device computes in it natively (CUDA from Ampere on, Apple's GPUs,
    CPUs with AVX-512 BF16 or AMX), and float32 elsewhere: a CPU without bfloat16 units emulates it
    more slowly than it computes in float32, and float16 overflows in models trained in bfloat16.

    Raises:
        ConfigurationError: there is no such type.
    """
    if name == "auto":
        return torch.bfloat16 if _computes_bfloat16(device) else torch.float32
    if name not in DTYPE_NAMES:
        raise ConfigurationError(
            f"There is no element type {name!r}; use auto, {', '.join(sorted(DTYPE_NAMES))}."
        )
    return DTYPE_NAMES[name]


def to_activation(hidden: torch.Tensor) -> Activation:
    """Rows of hidden states, `[rows, columns]`, as a message; on the CPU without a copy.

    The bytes are a view of the tensor's memory, which lives as long as the view does.
    """
    if hidden.dtype not in _TYPES:
        hidden = hidden.to(torch.float32)
    rows, columns = hidden.shape
    flat = hidden.detach().to(device="cpu").contiguous().view(-1)
    # numpy has no bfloat16, so two-byte elements travel as integers.
    raw = flat if flat.dtype is torch.float32 else flat.view(torch.int16)
    data = memoryview(cast("Any", raw.numpy())).cast("B")
    return Activation(_TYPES[hidden.dtype], rows, columns, data)


def from_activation(
    activation: Activation, *, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """The hidden states of a message, `[rows, columns]`; without a copy where nothing differs.

    Raises:
        ValueError: the bytes do not measure what rows, columns and type say.
    """
    data = activation.data
    if len(data) != activation.size_bytes:
        raise ValueError(
            f"an activation of {activation.rows} x {activation.columns} measures "
            f"{activation.size_bytes} bytes, not {len(data)}"
        )
    if memoryview(data).readonly:
        # torch cannot mark a tensor read-only, so it gets memory of its own.
        data = bytearray(data)
    flat = torch.frombuffer(data, dtype=_DTYPES[activation.type])
    return flat.view(activation.rows, activation.columns).to(device=device, dtype=dtype)


def _computes_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return True
    if device.type == "cpu":
        probes: Any = torch.cpu
        return bool(probes._is_avx512_bf16_supported() or probes._is_amx_tile_supported())
    return False
