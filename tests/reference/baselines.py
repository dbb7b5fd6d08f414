"""Reference baseline quantizers: one number at a time, in double precision.

Each function takes a Python float and returns the quantized value and its derivatives. ``round`` is
Python's, half to even; where a formula rounds, its straight-through derivative is 1.
"""

from __future__ import annotations


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
