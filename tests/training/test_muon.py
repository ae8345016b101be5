"""Muon's steps."""

import pytest
import torch
from torch import Tensor, nn

from training.muon import STEP_OF_ADAM, Muon, is_matrix, orthogonalize


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_direction_has_no_preference(dtype: torch.dtype) -> None:
    """Singular values that differ a thousandfold all come out near 1, of tall and of wide matrices."""
    generator = torch.Generator().manual_seed(0)
    for rows, columns in ((24, 8), (8, 24)):
        left, _ = torch.linalg.qr(torch.randn(rows, 8, generator=generator))
        right, _ = torch.linalg.qr(torch.randn(columns, 8, generator=generator))
        matrix = left @ torch.logspace(0, -3, 8).diag() @ right.T
        made = torch.linalg.svdvals(orthogonalize(matrix[None], dtype=dtype)[0])
        # Newton-Schulz of five rounds lifts even the least of them a hundredfold.
        assert made[:6].min() > 0.5
        assert made.max() < 1.35
        assert made.min() > 0.1


def test_a_step_is_as_long_as_adams() -> None:
    """The root mean square of what changes is ``STEP_OF_ADAM`` of the rate, whatever the gradient's length."""
    for length in (1e-4, 1e4):
        weight = nn.Parameter(torch.zeros(32, 16, 3, 3))
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * length
        Muon([weight], lr=0.01).step()
        assert 0.8 < float(weight.detach().square().mean().sqrt()) / (0.01 * STEP_OF_ADAM) < 1.2


def test_small_matrices_are_not_for_it() -> None:
    """Vectors, and matrices with a short side, go to another optimiser."""
    shapes: list[tuple[int, ...]] = [(16,), (16, 4), (4, 16), (16, 1, 2, 2), (16, 3, 2, 2), (16, 16)]
    answers: list[Tensor] = [torch.zeros(shape) for shape in shapes]
    assert [is_matrix(answer) for answer in answers] == [False, False, False, False, True, True]
