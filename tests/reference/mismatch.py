"""ODM's mismatch loss and the weight of its gradient, one number at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence


def distance(values: Sequence[float], low: Sequence[float], high: Sequence[float]) -> float:
    """Mean over the values of the squared distance to each one's range."""
    total = 0.0
    for x, a, b in zip(values, low, high, strict=True):
        total += (a - x) ** 2 if x < a else (x - b) ** 2 if x > b else 0.0
    return total / len(values)


def weighed(task: Sequence[float], other: Sequence[float]) -> list[float]:
    """``task + (cos + 1) / 2 * other``, ``cos`` that of the angle between the two."""
    dot = sum(a * b for a, b in zip(task, other, strict=True))
    lengths = [math.sqrt(sum(x * x for x in vector)) for vector in (task, other)]
    cos = dot / (lengths[0] * lengths[1]) if all(lengths) else 0.0
    return [a + (cos + 1) / 2 * b for a, b in zip(task, other, strict=True)]
