"""Elementwise passes of training, fused by ``torch.compile`` where a compiler is available.

Every function here is plain PyTorch and correct uncompiled; compilation only fuses its
operations, so that a pass reads and writes each tensor once. Arithmetic is FP32 whatever the
storage type (FP64 stays FP64, for tests).

``bounds`` is a pair of 0-dim FP32 tensors ``(Qn, Qp)`` rather than two integers: one compiled
kernel then serves every bit-width.
"""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from quantsr.cache import set_compile_cache
from quantsr.quant.functional import soft_round_grad

logger = logging.getLogger(__name__)

Bounds = tuple[Tensor, Tensor]
CompileMode = bool | Literal["auto"]

# phi'(u) as a polynomial in (frac(u) - 1/2)^2: Chebyshev interpolation, relative error 5e-9, below
# FP32's own rounding. tanh took three quarters of the backward pass.
_SLOPE = (
    1.0819767025714297,
    -1.0819754670531299,
    0.7212594575749834,
    -0.4077334764059277,
    0.20487901906805442,
    -0.07465022607357241,
)

MIN_STEP = 1e-8
"""Steps are used as ``max(step, MIN_STEP)``: a step that an update drove below zero can recover."""


def wide(x: Tensor) -> Tensor:
    """``x`` in the type that quantizers compute in: FP32, or FP64 where it has that."""
    return x if x.dtype == torch.float64 else x.float()


def soft_round_slope(u: Tensor) -> Tensor:
    """:func:`quantsr.quant.functional.soft_round_grad`, in FP32 by a polynomial."""
    if u.dtype == torch.float64:
        return soft_round_grad(u)
    t = u - u.floor() - 0.5
    z = t * t
    slope = torch.full_like(z, _SLOPE[-1])
    for c in reversed(_SLOPE[:-1]):
        slope = slope * z + c
    return slope


# --- activations: x is (B, C, H, W) with tau (1, C, 1, 1), or (..., C) with tau (C,) --------------


def activation_codes(x: Tensor, tau: Tensor, step: Tensor, bounds: Bounds, dtype: torch.dtype) -> Tensor:
    """Codes of ``x + tau`` in ``dtype``; codes of up to 8 bits are exact in bfloat16."""
    u = (wide(x) + tau) / step.clamp_min(MIN_STEP)
    return torch.minimum(torch.maximum(u, bounds[0]), bounds[1]).round().to(dtype)


def activation_values(x: Tensor, tau: Tensor, step: Tensor, bounds: Bounds, dtype: torch.dtype) -> Tensor:
    """Fake-quantized ``x + tau`` in ``dtype``."""
    v = step.clamp_min(MIN_STEP)
    u = (wide(x) + tau) / v
    return (torch.minimum(torch.maximum(u, bounds[0]), bounds[1]).round() * v).to(dtype)


def _slope(u: Tensor, bounds: Bounds, soft: bool) -> tuple[Tensor, Tensor]:
    """Derivatives of the value ``v * code(u)``, ``u = (x + tau) / v``: by ``x``, and by ``v``
    (QuantSR section 3.2; LSQ where ``soft`` is false)."""
    clipped = torch.minimum(torch.maximum(u, bounds[0]), bounds[1])
    slope = (clipped == u).to(u.dtype)
    if soft:
        slope = slope * soft_round_slope(u)
    return slope, clipped.round() - u * slope


def activation_backward(
    x: Tensor, tau: Tensor, step: Tensor, bounds: Bounds, grad: Tensor, soft: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of :func:`activation_values` for ``x`` in FP32 or FP64, in one pass.

    Returns:
        gradient of ``x``, whose sums over all but the channels are the gradient of ``tau``, and the
        gradient of the step (), unscaled.
    """
    by_x, by_step = _slope((x + tau) / step.clamp_min(MIN_STEP), bounds, soft)
    return grad * by_x, (grad * by_step).sum()


def activation_backward_half(
    x: Tensor, tau: Tensor, step: Tensor, bounds: Bounds, grad: Tensor, soft: bool, channel_dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`activation_values` for ``x`` in half precision.

    That of ``tau`` is summed before the gradient of ``x`` is rounded.

    Returns:
        gradient of ``x`` (type of ``x``), of ``tau`` (C,), and of the step as per-channel sums
        (C,), unscaled.
    """
    # Channels last, as rows of a matrix: the sums then run down its columns, which vectorises.
    rows = x.movedim(channel_dim, -1)  # (..., C)
    shape = rows.shape
    rows = rows.reshape(-1, shape[-1])  # (M, C), M positions of all pictures
    g = wide(grad.movedim(channel_dim, -1).reshape(-1, shape[-1]))  # (M, C)
    u = (wide(rows) + tau.reshape(1, -1)) / step.clamp_min(MIN_STEP)  # (M, C) + (1, C)
    by_x, by_step = _slope(u, bounds, soft)
    grad_x = g * by_x
    back = grad_x.to(x.dtype).reshape(shape).movedim(-1, channel_dim)  # shape of x
    return back, grad_x.sum(0), (g * by_step).sum(0)


# --- weights: w is (O, ...), step () or (O, 1, ...) -----------------------------------------------


def weight_values(w: Tensor, step: Tensor, bounds: Bounds, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Fake-quantized FP32 weights, and their codes in ``dtype``."""
    v = step.clamp_min(MIN_STEP)
    codes = torch.minimum(torch.maximum(w / v, bounds[0]), bounds[1]).round()
    return codes * v, codes.to(dtype)


def weight_backward(
    w: Tensor, step: Tensor, bounds: Bounds, grad: Tensor, soft: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of ``w`` and, as one sum per output channel (O,), of the step, unscaled."""
    u = w / step.clamp_min(MIN_STEP)
    clipped = torch.minimum(torch.maximum(u, bounds[0]), bounds[1])
    slope = (clipped == u).to(u.dtype)
    if soft:
        slope = slope * soft_round_slope(u)
    grad_step = (grad * (clipped.round() - u * slope)).flatten(1).sum(1)  # (O, I * k * k) to (O,)
    return grad * slope, grad_step


# --- around the convolution -----------------------------------------------------------------------


def scale_bias(z: Tensor, scale: Tensor, bias: Tensor, relu: bool) -> Tensor:
    """``scale * z + bias``, then ReLU if asked; type of ``z``."""
    out = wide(z) * scale
    out += bias
    return (out.clamp_min_(0) if relu else out).to(z.dtype)


def relu_backward(grad: Tensor, out: Tensor) -> Tensor:
    """Gradient before a ReLU whose output is ``out``."""
    return torch.where(out > 0, grad, torch.zeros_like(grad))


def shortcut_add(x: Tensor, residual: Tensor, shortcut: Tensor, res_scale: float) -> Tensor:
    """``shortcut * x + res_scale * residual`` (QuantSR section 3.3); type of ``x``."""
    return (wide(x) * shortcut + wide(residual) * res_scale).to(x.dtype)


def shortcut_backward(grad: Tensor, x: Tensor, shortcut: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``shortcut * x``: of ``x`` in its type, of ``shortcut`` (1,)."""
    g = wide(grad)
    return (g * shortcut).to(x.dtype), (g * wide(x)).sum().reshape(1)


# --- choosing between the compiled and the plain form ---------------------------------------------

_EAGER: dict[str, Callable[..., Any]] = {
    f.__name__: f
    for f in (
        activation_codes,
        activation_values,
        activation_backward,
        activation_backward_half,
        weight_values,
        weight_backward,
        scale_bias,
        relu_backward,
        shortcut_add,
        shortcut_backward,
    )
}
_mode: CompileMode = False


def set_compile(mode: CompileMode) -> None:
    """Set whether passes are compiled: ``True``, ``False``, or ``"auto"``: where that works.

    Raises:
        ValueError: for anything else.
    """
    global _mode
    if mode not in (True, False, "auto"):
        raise ValueError(f"compile must be auto, true or false, got {mode!r}")
    _mode = mode


def get_compile() -> CompileMode:
    """The mode set by :func:`set_compile`; the start is ``False``."""
    return _mode


@functools.cache
def compiler_works(device_type: str) -> bool:
    """Whether ``torch.compile`` can build and run a kernel for this kind of device (tried once)."""
    if device_type == "cpu" and not (shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")):
        logger.info("no C++ compiler: quantizers run uncompiled (slower, same results)")
        return False
    try:
        set_compile_cache()
        probe = torch.compile(relu_backward)
        x = torch.ones(8, device=device_type)
        probe(x, x)
    except Exception as error:  # a compiler has many ways to fail; all of them mean "run plain"
        reason = str(error).strip().splitlines() or [type(error).__name__]
        logger.warning("torch.compile does not work here (%s): quantizers run uncompiled", reason[0])
        return False
    return True


@functools.cache
def _compiled(name: str) -> Callable[..., Any]:
    """The compiled function, with a wrapper that avoids recompilation.

    Autocast is off inside, and parameters arrive as plain tensors: neither changes what is
    computed, but each would compile again. Matrices, rows of a linear layer or its weight, may have
    any size; other tensors compile once for each.
    """
    set_compile_cache()
    compiled = torch.compile(_EAGER[name])

    def run(*args: Any) -> Any:
        plain = [_plain(arg) if isinstance(arg, Tensor) else arg for arg in args]
        device_type = plain[0].device.type
        if not torch.is_autocast_enabled(device_type):
            return compiled(*plain)
        with torch.autocast(device_type, enabled=False):
            return compiled(*plain)

    return run


def _plain(x: Tensor) -> Tensor:
    x = x.detach()
    if x.dim() == 2:
        for dim in (0, 1):
            if x.shape[dim] > 1:  # 1 is how tau and bias broadcast
                torch._dynamo.maybe_mark_dynamic(x, dim)
    return x


def kernel(name: str, device_type: str) -> Callable[..., Any]:
    """The function of this module called ``name``, compiled or plain as :func:`set_compile` says.

    Plain in inference mode: evaluation meets many picture shapes, and compiling for each costs more
    than it saves.
    """
    if (
        _mode is False
        or torch.is_inference_mode_enabled()
        or (_mode == "auto" and not compiler_works(device_type))
    ):
        return _EAGER[name]
    return _compiled(name)


@functools.cache
def bounds_on(qmin: int, qmax: int, device: torch.device) -> Bounds:
    """``(qmin, qmax)`` as tensors on ``device``, made once."""
    # Made outside any inference mode: a cached inference tensor could not be saved for backward
    # later.
    with torch.inference_mode(False):
        return (
            torch.tensor(float(qmin), device=device),
            torch.tensor(float(qmax), device=device),
        )
