"""Reference quantizers: the formulas of QuantSR (NeurIPS 2023), section 3.2.

Rounding is written as a value plus the difference of two equal terms, so that autograd computes the
gradient.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def phi(u: Tensor) -> Tensor:
    """The soft rounding function; its floor has no gradient."""
    low = u.floor().detach()
    return low + (torch.tanh(u - low - 0.5) / math.tanh(0.5) + 1) / 2


def quantize_with_gradient(u: Tensor, *, soft: bool) -> Tensor:
    """``round(u)`` whose derivative is that of ``phi`` (soft) or 1."""
    surrogate = phi(u) if soft else u
    return u.round().detach() + (surrogate - surrogate.detach())


def scale_gradient(v: Tensor, g: float) -> Tensor:
    """``v`` with its gradient multiplied by ``g``."""
    return v.detach() + (v * g - (v * g).detach())


def clip(u: Tensor, low: int, high: int) -> Tensor:
    """``u`` clipped to the bounds; the gradient at a bound itself is 1.

    Not ``torch.clamp``, whose gradient at a bound was 1 in PyTorch 1.8, which the released code
    pins, and is 0 in 2.15.
    """
    return torch.where(u < low, torch.full_like(u, low), torch.where(u > high, torch.full_like(u, high), u))


def fake_quantize(
    a: Tensor, tau: Tensor | None, v: Tensor, qmin: int, qmax: int, *, soft: bool, numel: int
) -> Tensor:
    """``v * round(clip((a + tau) / v, qmin, qmax))``; ``numel`` values share one step."""
    v = scale_gradient(v, 1 / math.sqrt(numel * qmax))
    shifted = a if tau is None else a + tau
    return quantize_with_gradient(clip(shifted / v, qmin, qmax), soft=soft) * v
