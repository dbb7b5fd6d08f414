"""Reference baseline quantizers: one number at a time, in double precision.

Each function takes a Python float and returns the quantized value and its derivatives. ``round`` is
Python's, half to even; where a formula rounds, its straight-through derivative is 1.
"""

from __future__ import annotations

import math


def clip(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


def quantize_k(r: float, bits: int) -> float:
    """DoReFa, equation 5: a number in [0, 1] on ``2^k`` levels."""
    return round((2**bits - 1) * r) / (2**bits - 1)


def dorefa_weight(tanh_w: float, m: float, bits: int) -> tuple[float, float]:
    """DoReFa, equation 9, times a constant ``m = max|tanh w|``: value, derivative by ``w``."""
    value = m * (2 * quantize_k(tanh_w / (2 * m) + 1 / 2, bits) - 1)
    return value, 1 - tanh_w**2


def dorefa_activation(a: float, alpha: float, bits: int, signed: bool) -> tuple[float, float]:
    """DoReFa, equation 11, on ``a / alpha``; signed as weights: value, derivative by ``a``."""
    if signed:
        value = alpha * (2 * quantize_k(clip(a / (2 * alpha) + 1 / 2, 0, 1), bits) - 1)
        return value, 1.0 if -alpha < a < alpha else 0.0
    return alpha * quantize_k(clip(a / alpha, 0, 1), bits), 1.0 if 0 <= a < alpha else 0.0


def pact_activation(a: float, alpha: float, bits: int, signed: bool) -> tuple[float, float, float]:
    """PACT, equations 1 to 3; odd if signed: value, derivatives by ``a`` and ``alpha``."""
    if signed:
        y = 0.5 * (abs(a + alpha) - abs(a - alpha))  # clip(a, -alpha, alpha)
        levels = round((y + alpha) * (2**bits - 1) / (2 * alpha))
        value = levels * 2 * alpha / (2**bits - 1) - alpha
    else:
        y = 0.5 * (abs(a) - abs(a - alpha) + alpha)  # clip(a, 0, alpha)
        value = round(y * (2**bits - 1) / alpha) * alpha / (2**bits - 1)
    if a >= alpha:
        return value, 0.0, 1.0
    if signed and a <= -alpha:
        return value, 0.0, -1.0
    return value, 1.0 if signed or a >= 0 else 0.0, 0.0


def lsq_plus_activation(a: float, s: float, beta: float, bits: int) -> tuple[float, float, float, float]:
    """LSQ+: value, derivatives by ``a``, ``s`` and ``beta``."""
    n, p = 0, 2**bits - 1
    u = (a - beta) / s
    value = round(clip(u, n, p)) * s + beta
    if u < n:
        return value, 0.0, float(n), 1.0
    if u > p:
        return value, 0.0, float(p), 1.0
    return value, 1.0, round(u) - u, 0.0


def pams_activation(a: float, alpha: float, bits: int, signed: bool) -> tuple[float, float, float]:
    """PAMS: value, derivatives by ``a`` and ``alpha`` (chain rule through both ``alpha``).

    In the package's range of PAMS: signed to one step below ``-alpha``, or unsigned.
    """
    top = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    bottom = -(2 ** (bits - 1)) if signed else 0
    s = alpha / top
    value = round(clip(a / s, bottom, top)) * s
    if a > alpha:
        return value, 0.0, 1.0
    if a < bottom * s:
        return value, 0.0, bottom / top
    return value, 1.0, (round(a / s) - a / s) / top


def pams_weight(w: float, largest: float, bits: int) -> tuple[float, float]:
    """PAMS: value, and derivative by ``w``, the largest ``|w|`` constant."""
    s = largest / (2 ** (bits - 1) - 1)
    return round(w / s) * s, 1.0


def affine(a: float, low: float, high: float, bits: int) -> tuple[float, float]:
    """MinMax with an integer zero point, bounds including 0: value, derivative by ``a``."""
    s = (high - low) / (2**bits - 1)
    z = round(-low / s)
    q = clip(a / s + z, 0, 2**bits - 1)
    return s * (round(q - z)), 1.0 if 0 < a / s + z < 2**bits - 1 else 0.0


def min_max_weight(w: float, smallest: float, largest: float, bits: int) -> tuple[float, float]:
    """MinMax weights, least step with errors up to half a step: value, derivative by ``w``."""
    bottom, top = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    s = max(largest / (top + 0.5), smallest / (bottom - 0.5))
    return s * round(clip(w / s, bottom, top)), 1.0 if bottom <= w / s <= top else 0.0


def percentile(values: list[float], share: float) -> float:
    """The percentile by linear interpolation between sorted values; ``share`` is in 0..1."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def learned_bounds_activation(
    a: float, low: float, high: float, bits: int
) -> tuple[float, float, float, float]:
    """DDTB without its gate: value, derivatives by ``a`` and by the two bounds.

    The zero point's round is straight-through: beyond the range the value moves with the bound.
    """
    n = 2**bits - 1
    s = (high - low) / n
    z = clip(round(-low / s), 0, n)
    value = s * (clip(round(a / s) + z, 0, n) - z)
    if a / s < -z:
        return value, 0.0, 1.0, 0.0
    if a / s > n - z:
        return value, 0.0, 0.0, 1.0
    error = round(a / s) - a / s
    return value, 1.0, -error / n, error / n


def odm_weight(w: float, p99: float, gamma: float, bits: int) -> tuple[float, float, float]:
    """ODM: value, derivatives by ``w`` and ``gamma``, the percentile constant."""
    top = 2 ** (bits - 1) - 1
    bound = p99 * gamma
    s = bound / top
    value = s * round(clip(w, -bound, bound) / s)
    if w > bound:
        return value, 0.0, p99
    if w < -bound:
        return value, 0.0, -p99
    return value, 1.0, (round(w / s) - w / s) * p99 / top


def rbd_weight(w: float, alpha: float, scales: list[float], offsets: list[float]) -> tuple[float, ...]:
    """QuantSR+'s RBD of ``-w``, negated: value, derivatives by ``w``, ``alpha``, each ``s_i`` and
    each ``beta_i``, the lowest bit first; of a step to +-1 that of tanh is taken."""
    bits = len(scales)
    count = 2 + 2 * bits  # w, alpha, s, beta
    slopes = {}  # of each bit, one number for each of these
    q = {}
    for i in range(bits - 1, -1, -1):
        rest = -2 * w / alpha - 1
        by = [0.0] * count  # derivatives of rest
        by[0], by[1] = -2 / alpha, 2 * w / alpha**2
        for j in range(i + 1, bits):
            rest -= q[j] * 2**j * scales[j]
            for k in range(count):
                by[k] -= slopes[j][k] * 2**j * scales[j]
            by[2 + j] -= q[j] * 2**j
        z = rest * scales[i] - offsets[i]
        by = [slope * scales[i] for slope in by]
        by[2 + i] += rest
        by[2 + bits + i] -= 1.0
        q[i] = 1.0 if z >= 0 else -1.0
        slopes[i] = [(1 - math.tanh(z) ** 2) * slope for slope in by]
    code = -((sum(q[i] * 2**i for i in range(bits)) - 1) / 2 + 1)
    found = [-sum(slopes[i][k] * 2**i for i in range(bits)) / 2 * alpha for k in range(count)]
    found[1] += code
    return (code * alpha, *found)
