"""Muon (Jordan, 2024): steps of equal size in every direction of a matrix, where Adam's go mostly in a few.

Must not know models or losses. torch has one, for matrices alone; here most weights are kernels of convolutions.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

LEAST_SIDE = 8  # smaller matrices are left to another optimiser
MOMENTUM = 0.95
STEP_OF_ADAM = 0.2  # the root mean square of a step, as AdamW's usually is: so that both share a learning rate (Liu, 2025)
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


def is_matrix(parameter: Tensor) -> bool:
    """Whether Muon is for it: a matrix or kernel (rows, ...) with enough rows and columns."""
    return parameter.ndim > 1 and min(parameter.shape[0], parameter[0].numel()) >= LEAST_SIDE


class Muon(torch.optim.Optimizer):
    """For parameters (rows, ...) that ``is_matrix`` says yes to; what follows the rows is taken as columns.

    Args:
        dtype: what directions are computed in; bfloat16 does, where the machine is fast at it.
    """

    def __init__(
        self, parameters: Iterable[Tensor], *, lr: float, weight_decay: float = 0.0, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step along the momentum of the gradients, made orthogonal."""
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    momentum = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                    momentum.lerp_(parameter.grad, 1.0 - MOMENTUM)
                    matrix = parameter.grad.lerp(momentum, MOMENTUM).flatten(1)
                    alike.setdefault((matrix.shape[0], matrix.shape[1]), []).append((parameter, matrix))
            for shape, pairs in alike.items():
                directions = orthogonalize(torch.stack([matrix for _, matrix in pairs]), dtype=self.dtype)
                for (parameter, _), direction in zip(pairs, directions, strict=True):
                    parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                    parameter.add_(direction.view(parameter.shape), alpha=-group["lr"] * STEP_OF_ADAM * max(shape) ** 0.5)


def orthogonalize(matrices: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Matrices (n, rows, columns) with all singular values brought near 1 (0.7 to 1.2), by Newton-Schulz rounds."""
    a, b, c = COEFFICIENTS
    x = matrices.to(dtype)
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.mT
    for _ in range(ROUNDS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    orthogonal: Tensor = x.mT if is_tall else x
    return orthogonal.float()
