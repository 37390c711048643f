"""The optimiser's steps."""

import pytest
import torch

from p2pllm.builtin.muon import Muon, orthogonalised


def test_muon_steps_along_orthogonal_directions() -> None:
    matrices = torch.randn(3, 6, 10, generator=torch.Generator().manual_seed(1))
    singular_values = torch.linalg.svdvals(orthogonalised(matrices))
    assert singular_values.min() > 0.5
    assert singular_values.max() < 1.3
    torch.testing.assert_close(
        orthogonalised(matrices.mT), orthogonalised(matrices).mT, rtol=1e-4, atol=1e-4
    )


def test_muon_refuses_a_closure() -> None:
    optimizer = Muon([torch.nn.Parameter(torch.eye(2))])
    with pytest.raises(ValueError, match="closure"):
        optimizer.step(lambda: 0.0)
