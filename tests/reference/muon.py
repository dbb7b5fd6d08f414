"""Reference of one step of Muon on a matrix in FP32, with the quintic Newton-Schulz iteration."""

from __future__ import annotations

import math

from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""K. Jordan, "Muon" (2024): chosen for a large slope at zero, not for convergence to 1."""


def orthogonal(matrix: Tensor) -> Tensor:
    """(A, B) with every singular value at about 1."""
    a, b, c = COEFFICIENTS
    x = matrix / matrix.norm()
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def muon_step(
    weight: Tensor, grad: Tensor, momentum: Tensor, *, lr: float, weight_decay: float
) -> tuple[Tensor, Tensor]:
    """New weight and momentum, (A, B); updates as large as Adam's (arXiv:2502.16982, eq. 4)."""
    momentum = 0.95 * momentum + 0.05 * grad
    update = orthogonal(0.95 * momentum + 0.05 * grad)
    return weight * (1 - lr * weight_decay) - lr * 0.2 * math.sqrt(max(weight.shape)) * update, momentum
