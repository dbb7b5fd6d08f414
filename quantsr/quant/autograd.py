"""Autograd functions of quantized layers: closed-form gradients that save nothing but their inputs.

As float convolutions, these functions save their input and weight for backward. Codes and the
position ``u`` on the integer axis are computed again in backward, which costs one fused pass
instead of four stored tensors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from quantsr.quant.functional import input_step_gradient_scale, step_gradient_scale
from quantsr.quant.kernels import MIN_STEP, bounds_on, kernel
from quantsr.ranges import IntRange


class QuantizedWeight(NamedTuple):
    """A layer's weight, quantized once per step and used by every depth."""

    values: Tensor
    """Fake-quantized FP32 weight; carries the gradient."""
    codes: Tensor | None
    """Integer codes in the compute type, no gradient; None if values are no multiples of a step."""
    step: Tensor
    """Step, detached, (1,) or (O, 1, ...); anything where ``codes`` is None."""


class ActivationQuant(NamedTuple):
    """Parameters of an activation quantizer, as the layer functions take them.

    Of an activation ``a`` the code is ``clip(round((a + tau) / step) + zero_point, *range)``, and
    the value that it stands for is ``step * (code - zero_point)``. Layers compute with
    ``code - zero_point``, so zero padding is the value 0, whose code is the zero point.
    """

    tau: Tensor
    """(C,)"""
    step: Tensor
    """(1,)"""
    range: IntRange
    """Of the codes; holds the zero point."""
    soft: bool
    """RLQ's smooth gradient of rounding instead of the straight-through one."""
    channel_dim: int
    zero_point: int = 0
    """The code of value 0, one for all channels."""
    limits: tuple[Tensor, Tensor] | None = None
    """:attr:`centred` as 0-dim tensors, where the zero point is known to the device only."""

    @property
    def centred(self) -> IntRange:
        """The range of ``code - zero_point``, the integers that layers compute with."""
        return self.range.shifted(-self.zero_point)

    def bounds_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """:attr:`centred` as tensors on ``device``."""
        return bounds_on(*self.centred.bounds, device) if self.limits is None else self.limits


def _view_per_channel(tau: Tensor, dim: int, channel_dim: int) -> Tensor:
    """``(C,)`` as a tensor that broadcasts against ``dim`` dimensions."""
    shape = [1] * dim
    shape[channel_dim] = -1
    return tau.reshape(shape)


class _FakeQuantizeActivation(torch.autograd.Function):
    """``v * round(clip((x + tau) / v))``, see :class:`ActivationQuant`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tau: Tensor, step: Tensor, spec: ActivationQuant) -> Tensor:
        ctx.save_for_backward(x, tau, step)
        ctx.spec = spec
        bounds = spec.bounds_on(x.device)
        rows = _as_rows(x, spec)
        run = kernel("activation_values", x.device.type)
        out: Tensor = run(rows, _view_per_channel(tau, rows.dim(), spec.channel_dim), step, bounds, x.dtype)
        return out.reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, tau, step = ctx.saved_tensors
        return (*activation_gradients(x, tau, step, ctx.spec, grads[0]), None)


def activation_gradients(
    x: Tensor, tau: Tensor, step: Tensor, spec: ActivationQuant, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``x``, ``tau`` and ``step``, from that of the fake-quantized activation."""
    shape = x.shape
    x, grad = _as_rows(x, spec), _as_rows(grad, spec)
    bounds = spec.bounds_on(x.device)
    view = _view_per_channel(tau, x.dim(), spec.channel_dim)
    if x.dtype in (torch.bfloat16, torch.float16):
        run = kernel("activation_backward_half", x.device.type)
        grad_x, grad_tau, grad_step = run(x, view, step, bounds, grad, spec.soft, spec.channel_dim)
    else:
        run = kernel("activation_backward", x.device.type)
        grad_x, grad_step = run(x, view, step, bounds, grad, spec.soft)
        channel = spec.channel_dim % x.dim()
        grad_tau = grad_x.sum([dim for dim in range(x.dim()) if dim != channel])
    scale = input_step_gradient_scale(x.numel(), spec.range.qmax)
    return grad_x.reshape(shape), grad_tau, (grad_step.sum() * scale).reshape(step.shape)


def _as_rows(x: Tensor, spec: ActivationQuant) -> Tensor:
    """(..., C) as a matrix if channels are last, so that such tensors share a compiled kernel."""
    return x.reshape(-1, x.shape[-1]).contiguous() if spec.channel_dim == -1 else x


class _QuantizeWeight(torch.autograd.Function):
    """RLQ / LSQ on a weight: FP32 values with a gradient, codes without."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, step: Tensor, bits_range: IntRange, soft: bool, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(weight, step)
        ctx.range, ctx.soft = bits_range, soft
        bounds = bounds_on(bits_range.qmin, bits_range.qmax, weight.device)
        values, codes = kernel("weight_values", weight.device.type)(weight, step, bounds, dtype)
        ctx.mark_non_differentiable(codes)
        return values, codes

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        weight, step = ctx.saved_tensors
        bounds = bounds_on(ctx.range.qmin, ctx.range.qmax, weight.device)
        run = kernel("weight_backward", weight.device.type)
        grad_weight, grad_step = run(weight, step, bounds, grads[0], ctx.soft)
        scale = step_gradient_scale(weight.numel() // step.numel(), ctx.range.qmax)
        if step.numel() == 1:
            grad_step = grad_step.sum()
        return grad_weight, (grad_step * scale).reshape(step.shape), None, None, None


class _ProductOnCodes(torch.autograd.Function):
    """A convolution or linear layer on integer codes, scaled by the steps afterwards.

    Codes of up to 8 bits are exact in bfloat16, so every product is exact and accumulates in FP32
    on the matrix units. The quantized weight enters twice, as values (for the gradient) and as
    codes (for the arithmetic).
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        tau: Tensor,
        step: Tensor,
        weight: Tensor,
        bias: Tensor,
        codes_w: Tensor,
        step_w: Tensor,
        spec: ActivationQuant,
        conv: tuple[Any, ...] | None,
        relu: bool,
    ) -> Tensor:
        """``conv`` holds the arguments of a convolution, None for a linear layer on rows (M, C)."""
        codes_x = activation_codes(x, tau, step, spec, codes_w.dtype)
        z = codes_x @ codes_w.t() if conv is None else _convolution(codes_x, codes_w, None, *conv)
        channels = 1 if conv is not None else -1
        scale = _view_per_channel(
            (step.clamp_min(MIN_STEP) * step_w.flatten()).reshape(-1), z.dim(), channels
        )
        run = kernel("scale_bias", x.device.type)
        out: Tensor = run(z, scale, _view_per_channel(bias, z.dim(), channels), relu)
        # The output of a ReLU is the next layer's input, which that layer saves too.
        ctx.save_for_backward(x, tau, step, weight, out if relu else None)
        ctx.spec, ctx.conv, ctx.dtype = spec, conv, codes_w.dtype
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, tau, step, weight, out = ctx.saved_tensors
        grad = grads[0]
        if out is not None:
            grad = kernel("relu_backward", x.device.type)(grad, out)
        codes_x = activation_codes(x, tau, step, ctx.spec, ctx.dtype)
        need_x = any(ctx.needs_input_grad[:3])
        grad_q, grad_w, grad_b = _product_backward(
            grad.to(ctx.dtype),
            codes_x,
            weight.to(ctx.dtype),
            ctx.conv,
            [need_x, ctx.needs_input_grad[3], ctx.needs_input_grad[4]],
        )
        if grad_w is not None:
            grad_w = grad_w.float() * step.clamp_min(MIN_STEP)
        if grad_b is not None:
            grad_b = grad_b.float()
        grad_x = grad_tau = grad_step = None
        if need_x:
            grad_x, grad_tau, grad_step = activation_gradients(x, tau, step, ctx.spec, grad_q)
        return grad_x, grad_tau, grad_step, grad_w, grad_b, None, None, None, None, None


_convolution = torch.ops.aten.convolution


def _product_backward(
    grad: Tensor, x: Tensor, weight: Tensor, conv: tuple[Any, ...] | None, needed: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, weight and bias in one type; None where not needed."""
    if conv is not None:
        bias_size = [weight.shape[0]]
        found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            grad, x, weight, bias_size, *conv, needed
        )
        return found
    return (
        grad @ weight if needed[0] else None,  # type: ignore[return-value]
        grad.t() @ x if needed[1] else None,
        grad.sum(0, dtype=torch.float32) if needed[2] else None,
    )


def activation_codes(
    x: Tensor, tau: Tensor, step: Tensor, spec: ActivationQuant, dtype: torch.dtype
) -> Tensor:
    """Codes of ``x``, less their zero point, in ``dtype``; shape of ``x``."""
    shape = x.shape
    x = _as_rows(x, spec)
    bounds = spec.bounds_on(x.device)
    run = kernel("activation_codes", x.device.type)
    codes: Tensor = run(x, _view_per_channel(tau, x.dim(), spec.channel_dim), step, bounds, dtype)
    return codes.reshape(shape)


class _ShortcutAdd(torch.autograd.Function):
    """``shortcut * x + res_scale * residual`` in one pass; the saved ``x`` is saved anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor, shortcut: Tensor, res_scale: float) -> Tensor:
        ctx.save_for_backward(x, shortcut)
        ctx.res_scale = res_scale
        out: Tensor = kernel("shortcut_add", x.device.type)(x, residual, shortcut, res_scale)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x, shortcut = ctx.saved_tensors
        grad = grads[0]
        grad_x, grad_s = kernel("shortcut_backward", x.device.type)(grad, x, shortcut)
        grad_r = grad if ctx.res_scale == 1 else grad * ctx.res_scale
        return grad_x, grad_r, grad_s, None


def fake_quantize_activation(x: Tensor, spec: ActivationQuant) -> Tensor:
    """Fake-quantize an activation; see :class:`ActivationQuant`. Type and shape of ``x``."""
    out: Tensor = _FakeQuantizeActivation.apply(x, spec.tau, spec.step, spec)
    return out


def quantize_weight(
    weight: Tensor, step: Tensor, bits_range: IntRange, soft: bool, dtype: torch.dtype
) -> QuantizedWeight:
    """Quantize a weight once.

    Args:
        weight: (O, ...) FP32.
        step: (1,) or (O,).
        bits_range: the codes' range.
        soft: RLQ's smooth gradient of rounding instead of the straight-through one.
        dtype: type of the codes.
    """
    view = step if step.numel() == 1 else step.reshape(-1, *[1] * (weight.dim() - 1))
    values, codes = _QuantizeWeight.apply(weight, view, bits_range, soft, dtype)
    return QuantizedWeight(values, codes, view.detach().clamp_min(MIN_STEP))


def conv2d_on_codes(
    x: Tensor,
    spec: ActivationQuant,
    weight: QuantizedWeight,
    bias: Tensor | None,
    *,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
    relu: bool = False,
) -> Tensor:
    """Quantized convolution on integer codes: (B, C, H, W) to (B, O, H', W'), type of the codes.

    Args:
        x: float activation, not yet quantized.
        spec: the input quantizer.
        weight: from :func:`quantize_weight`, codes in the type that the convolution is to run in.
        bias: (O,) or None.
        stride, padding, dilation, groups: as ``torch.nn.functional.conv2d``.
        relu: apply ReLU to the result, without another pass.
    """
    if bias is None:
        bias = torch.zeros(weight.values.shape[0], device=x.device)
    conv = (list(stride), list(padding), list(dilation), False, [0] * len(stride), groups)
    out: Tensor = _ProductOnCodes.apply(
        x, spec.tau, spec.step, weight.values, bias, weight.codes, weight.step, spec, conv, relu
    )
    return out


def linear_on_codes(x: Tensor, spec: ActivationQuant, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
    """Quantized linear layer on integer codes: (..., C) to (..., O), type of the codes.

    Args:
        x: float activation, not yet quantized.
        spec: the input quantizer, channels last.
        weight: (O, C) from :func:`quantize_weight`, codes in the type that the product is to run
            in.
        bias: (O,) or None.
    """
    if bias is None:
        bias = torch.zeros(weight.values.shape[0], device=x.device)
    out: Tensor = _ProductOnCodes.apply(
        x.reshape(-1, x.shape[-1]),
        spec.tau,
        spec.step,
        weight.values,
        bias,
        weight.codes,
        weight.step,
        spec,
        None,
        False,
    )
    return out.unflatten(0, x.shape[:-1])


def shortcut_add(x: Tensor, residual: Tensor, shortcut: Tensor, res_scale: float) -> Tensor:
    """``shortcut * x + res_scale * residual``; shapes and type of ``x``, ``shortcut`` (1,)."""
    out: Tensor = _ShortcutAdd.apply(x, residual, shortcut, res_scale)
    return out
