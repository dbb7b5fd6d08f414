"""The arithmetic of learned-step quantizers as pure functions.

Symbols as in QuantSR (NeurIPS 2023), section 3.2: ``a`` the value, ``tau`` the redistribution
offset, ``v`` the step, ``u = (a + tau) / v`` the position on the integer axis, ``[Qn, Qp]`` the
range of codes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TANH_HALF = math.tanh(0.5)

SIGN_TOLERANCE = 1e-5
"""An activation is signed when its calibration minimum lies below minus this."""


def quantize(x: Tensor, step: Tensor, qmin: int, qmax: int) -> Tensor:
    """Codes ``round(clip(x / step, qmin, qmax))``, half to even, as floats; shape of ``x``."""
    return (x / step).clamp(qmin, qmax).round()


def dequantize(codes: Tensor, step: Tensor) -> Tensor:
    """Values ``codes * step``."""
    return codes * step


def fake_quantize(x: Tensor, step: Tensor, qmin: int, qmax: int) -> Tensor:
    """``dequantize(quantize(x))``; no gradient of its own (see :mod:`quantsr.quant.autograd`)."""
    return dequantize(quantize(x, step, qmin, qmax), step)


def soft_round(u: Tensor) -> Tensor:
    """RLQ's smooth ``round``: ``floor(u) + (tanh(frac(u) - 1/2) / tanh(1/2) + 1) / 2``.

    Continuous, equal to ``u`` at integers and half way between them. QuantSR, section 3.2
    (redistribution-driven backward); ``ours_operator.py`` in the released code.
    """
    floor = u.floor()
    return floor + (torch.tanh(u - floor - 0.5) / _TANH_HALF + 1.0) / 2.0


def soft_round_grad(u: Tensor) -> Tensor:
    """``sech^2(frac(u) - 1/2) / (2 tanh(1/2))``: 0.851 at integers, 1.082 half way, mean 1."""
    t = torch.tanh(u - u.floor() - 0.5)
    return (1.0 - t * t) / (2.0 * _TANH_HALF)


def initial_step(mean_abs: Tensor, qmax: int) -> Tensor:
    """``v = 2 * mean|x| / sqrt(Qp)``, the start of LSQ (Esser et al., 2020) and of RLQ.

    Args:
        mean_abs: mean of the absolute values that are to be quantized, any shape.
        qmax: largest code.
    """
    return 2.0 * mean_abs / math.sqrt(qmax)


STEP_FACTORS = tuple(2.0 ** (k / 8) for k in range(-16, 17))
"""Multiples of a first guess among which a step of least squared error is searched: 1/4 to 4."""


def step_errors(x: Tensor, step: Tensor, qmin: int, qmax: int) -> Tensor:
    """Mean squared error of quantizing ``x`` with each of ``STEP_FACTORS`` times ``step``.

    Args:
        x: (..., N) float.
        step: (...,) positive.
        qmin, qmax: smallest and largest code.

    Returns:
        (len(STEP_FACTORS), ...)
    """
    errors = []
    for factor in STEP_FACTORS:
        quantized = fake_quantize(x, step.unsqueeze(-1) * factor, qmin, qmax)
        errors.append((quantized - x).square().mean(-1))
    return torch.stack(errors)


def least_error_step(errors: Tensor, step: Tensor) -> Tensor:
    """``step`` times the factor with the least error (:func:`step_errors`); shape of ``step``."""
    factors = torch.tensor(STEP_FACTORS, dtype=step.dtype, device=step.device)
    return step * factors[errors.argmin(0)]


SAMPLE = 2**18
"""How many values of a batch RLQ's search for a step looks at."""


def sample(x: Tensor, count: int = SAMPLE) -> Tensor:
    """At most ``count`` values of ``x``, the same ones each time: (N,)."""
    values = x.flatten()
    if values.numel() <= count:
        return values
    places = torch.randint(values.numel(), (count,), generator=torch.Generator().manual_seed(0))
    return values[places.to(values.device)]


_processes = 1


def set_processes(count: int) -> None:
    """Set the number of processes that share a batch, and thus the step of an activation."""
    global _processes
    _processes = count


def input_step_gradient_scale(numel: int, qmax: int) -> float:
    """:func:`step_gradient_scale` of activations, for the whole batch of all processes.

    Args:
        numel: how many values of this process's part of the batch share the step.
        qmax: as above.
    """
    return step_gradient_scale(numel * _processes, qmax)


def step_gradient_scale(numel: int, qmax: int) -> float:
    """``g = 1 / sqrt(numel * Qp)``, by which the gradient of a step is scaled (LSQ, section 2.2).

    Args:
        numel: how many values share the step.
        qmax: largest code; 0 counts as 1.
    """
    return 1.0 / math.sqrt(numel * max(qmax, 1))
