"""Hidden states as bytes and back."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from p2pllm.domain.messages import Activation, ActivationType
from p2pllm.engine.tensors import choose_device, choose_dtype, from_activation, to_activation

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_tensor_comes_back_bit_by_bit(dtype: torch.dtype) -> None:
    hidden = torch.randn(3, 8, generator=torch.Generator().manual_seed(1)).to(dtype)
    activation = to_activation(hidden)
    assert len(activation.data) == activation.size_bytes
    for data in (activation.data, bytes(activation.data), bytearray(activation.data)):
        received = Activation(activation.type, 3, 8, data)
        assert torch.equal(from_activation(received, dtype=dtype, device=CPU), hidden)


def test_nothing_is_copied_on_the_way_out() -> None:
    hidden = torch.zeros(2, 4)
    activation = to_activation(hidden)
    hidden[1, 3] = 1
    assert memoryview(activation.data).cast("f")[7] == 1


def test_nothing_is_copied_on_the_way_in() -> None:
    data = bytearray(32)
    activation = Activation(ActivationType.FLOAT32, 2, 4, data)
    hidden = from_activation(activation, dtype=torch.float32, device=CPU)
    memoryview(data).cast("f")[7] = 1
    assert hidden[1, 3] == 1


def test_the_senders_type_becomes_the_receivers() -> None:
    activation = to_activation(torch.ones(2, 4, dtype=torch.bfloat16))
    assert activation.type is ActivationType.BFLOAT16
    assert from_activation(activation, dtype=torch.float32, device=CPU).dtype is torch.float32


def test_rows_apart_in_memory_are_sent_in_order() -> None:
    hidden = torch.arange(8.0).view(4, 2).T
    activation = to_activation(hidden)
    assert memoryview(activation.data).cast("f").tolist() == hidden.flatten().tolist()


def test_a_type_without_a_number_on_the_wire_is_sent_as_float32() -> None:
    assert to_activation(torch.ones(1, 2, dtype=torch.float64)).type is ActivationType.FLOAT32


def test_bytes_that_do_not_measure_what_they_say_are_an_error() -> None:
    with pytest.raises(ValueError, match="measures 32 bytes, not 31"):
        from_activation(
            Activation(ActivationType.FLOAT32, 2, 4, bytes(31)), dtype=torch.float32, device=CPU
        )


def test_auto_finds_a_device_and_a_type() -> None:
    device = choose_device("auto")
    assert choose_dtype("auto", device) in (torch.float32, torch.bfloat16)
    assert choose_dtype("float16", CPU) is torch.float16


def test_torch_is_not_imported_before_it_is_needed() -> None:
    code = "import p2pllm.engine, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
