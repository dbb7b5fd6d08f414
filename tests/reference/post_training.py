"""Post-training methods from their formulae: one number at a time, in double precision."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tests.reference.baselines import learned_bounds_activation


def dobi(values: Sequence[float], bits: int) -> float:
    """The least squared error of values, over 2DQuant's 100 positions of the bounds: both ends
    towards each other, or the upper one alone; no bound passes 0."""
    low, high = min(*values, 0.0), max(*values, 0.0)
    errors = []
    for k in range(100):
        share = k / 100 * (high - low)
        for below, above in ((low + share / 2, high - share / 2), (low, high - share)):
            below, above = min(below, 0.0), max(above, 0.0)
            if below < above:
                errors.append(
                    sum((learned_bounds_activation(v, below, above, bits)[0] - v) ** 2 for v in values)
                )
    return min(errors)


def dobi_weight(values: Sequence[float], bits: int) -> float:
    """The step of least squared error of weights, of 100 parts of the least that clips nothing."""
    qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    widest = max(max(values) / qmax, min(values) / qmin)
    steps = [widest * k / 100 for k in range(100, 0, -1)]

    def error(step: float) -> float:
        return sum((min(max(round(v / step), qmin), qmax) * step - v) ** 2 for v in values)

    return min(steps, key=error)


def rectified(
    weight: Sequence[Sequence[float]], b: Sequence[Sequence[float]], a: Sequence[Sequence[float]]
) -> list[list[float]]:
    """SPR2Q: ``W + B A`` of matrices (O, I), (O, r), (r, I)."""
    return [
        [w + sum(b[o][r] * a[r][i] for r in range(len(a))) for i, w in enumerate(row)]
        for o, row in enumerate(weight)
    ]


def by_bits(v: float, low: float, high: float, bits: int) -> float:
    """Derivative of a value between fixed bounds by the number of bits, straight-through.

    ``v_q = step(b) (round(v / step(b)))`` with ``step(b) = (high - low) / (2^b - 1)``: by the chain
    rule ``(round(u) - u) dstep/db``, with the derivative of ``2^b`` in the step.
    """
    n = 2**bits - 1
    step = (high - low) / n
    zero = min(max(round(-low / step), 0), n)
    u = v / step
    if not -zero <= u <= n - zero:
        return 0.0
    return (round(u) - u) * -(high - low) * math.log(2) * 2**bits / n**2
