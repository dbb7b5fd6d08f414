"""The damping loss of one layer's weight and its gradient, one number at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence


def factor(weight: float, iteration: int, iterations: int) -> float:
    """Half a cosine from 0 at iteration 0 to ``weight`` at the last."""
    return weight * (1 - math.cos(math.pi * iteration / iterations)) / 2


def damping(
    weights: Sequence[float], step: float, low: int, high: int, factor: float
) -> tuple[float, list[float]]:
    """The loss, and its derivative by each weight, of codes from ``low`` to ``high``."""
    loss, gradients = 0.0, []
    for w in weights:
        code = min(max(round(w / step), low), high)
        clipped = min(max(w, low * step), high * step)
        loss += factor * (code * step - clipped) ** 2
        gradients.append(2 * factor * (clipped - code * step))
    return loss, gradients
