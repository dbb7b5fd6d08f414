"""Products of attention with both operands quantized: ``q @ k^T`` and ``softmax(...) @ v``.

Shapes: B windows, N tokens in a window, h heads, d channels of a head, C = h * d. Operands come as
the network has them, (B, N, C) with all heads side by side or (B, h, N, N); RLQ's ``tau`` is one
per channel of that last dimension, as in a linear layer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from quantsr.quant.autograd import ActivationQuant, activation_codes, activation_gradients
from quantsr.quant.kernels import MIN_STEP, kernel
from quantsr.quant.layers import QuantizedLayer, compute_dtype, exact_products, runs_on_codes
from quantsr.ranges import FLOAT_BITS


class Layout(NamedTuple):
    """How an operand becomes the matrices of a product."""

    heads: int
    """(B, N, C) is split into so many heads; 0: the operand is (B, h, N, N) already."""
    transposed: bool

    def matrices(self, x: Tensor) -> Tensor:
        """(B, N, C) or (B, h, N, N) as (B, h, rows, columns), without a copy."""
        if self.heads:
            x = x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)  # (B, h, N, d)
        return x.transpose(-2, -1) if self.transposed else x

    def operand(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`matrices`."""
        x = x.transpose(-2, -1) if self.transposed else x
        return x.transpose(-3, -2).flatten(-2) if self.heads else x  # (B, N, C)


class _MatmulOnCodes(torch.autograd.Function):
    """A product of integer codes, scaled by the steps afterwards; saves only its operands."""

    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        tau_a: Tensor,
        step_a: Tensor,
        b: Tensor,
        tau_b: Tensor,
        step_b: Tensor,
        specs: tuple[ActivationQuant, ActivationQuant],
        layouts: tuple[Layout, Layout],
        dtype: torch.dtype,
    ) -> Tensor:
        codes_a = layouts[0].matrices(activation_codes(a, tau_a, step_a, specs[0], dtype))
        codes_b = layouts[1].matrices(activation_codes(b, tau_b, step_b, specs[1], dtype))
        scale = step_a.clamp_min(MIN_STEP) * step_b.clamp_min(MIN_STEP)
        product = codes_a @ codes_b  # (B, h, rows, columns)
        run = kernel("scale_bias", a.device.type)
        out: Tensor = run(product.flatten(0, -2), scale, torch.zeros_like(scale), False)
        ctx.save_for_backward(a, tau_a, step_a, b, tau_b, step_b)
        ctx.specs, ctx.layouts, ctx.dtype = specs, layouts, dtype
        return out.view(product.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        a, tau_a, step_a, b, tau_b, step_b = ctx.saved_tensors
        (spec_a, spec_b), (layout_a, layout_b) = ctx.specs, ctx.layouts
        grad = grads[0].to(ctx.dtype)
        values_a = _values(a, tau_a, step_a, spec_a, layout_a, ctx.dtype)
        values_b = _values(b, tau_b, step_b, spec_b, layout_b, ctx.dtype)
        grad_a = layout_a.operand(grad @ values_b.transpose(-2, -1))
        grad_b = layout_b.operand(values_a.transpose(-2, -1) @ grad)
        return (
            *activation_gradients(a, tau_a, step_a, spec_a, grad_a),
            *activation_gradients(b, tau_b, step_b, spec_b, grad_b),
            None,
            None,
            None,
        )


def _values(
    x: Tensor, tau: Tensor, step: Tensor, spec: ActivationQuant, layout: Layout, dtype: torch.dtype
) -> Tensor:
    codes = activation_codes(x, tau, step, spec, dtype)
    return layout.matrices(codes * step.clamp_min(MIN_STEP).to(dtype))


class QuantOperand(QuantizedLayer):
    """One operand of a :class:`QuantMatmul`: an input quantizer without a weight.

    Args:
        channels: size of the last dimension.
        nbits: 2..8, or 32 for float.
        quantizer: a name in ``QUANTIZER_REGISTRY``.
        heads: to split the last dimension into; 0 for (B, h, N, N).
        transposed: whether the product takes it transposed.
        signed: fixes the sign of the range; None leaves it to calibration.
    """

    def __init__(
        self,
        *,
        channels: int,
        nbits: int,
        quantizer: str,
        heads: int = 0,
        transposed: bool = False,
        signed: bool | None = None,
    ) -> None:
        super().__init__()
        self._add_quantizers(
            nbits_w=FLOAT_BITS,
            nbits_a=nbits,
            quantizer=quantizer,
            granularity="tensor",
            in_channels=channels,
            channel_dim=-1,
        )
        self.layout = Layout(heads, transposed)
        if self.input_quantizer is not None and signed is not None:
            self.input_quantizer.fix_sign(signed)

    def forward(self, x: Tensor) -> Tensor:
        """The operand fake-quantized, as matrices (B, h, rows, columns)."""
        return self.layout.matrices(self.input_quantizer(x) if self.input_quantizer is not None else x)


class QuantMatmul(nn.Module):
    """``left @ right`` with both operands quantized, over windows and heads.

    Args:
        left, right: the operands.
        shape: of the product in one window: heads, rows, inner size, columns.
    """

    def __init__(self, left: QuantOperand, right: QuantOperand, *, shape: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.left = left
        self.right = right
        self.shape = shape

    @property
    def is_quantized(self) -> bool:
        """Whether any operand is."""
        return min(self.left.nbits_a, self.right.nbits_a) != FLOAT_BITS

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """(B, h, rows, columns) from two operands in their own layouts."""
        self.left.observe(left)
        self.right.observe(right)
        dtype = compute_dtype(left)
        if runs_on_codes(dtype) and self.left.input_quantizer and self.right.input_quantizer:
            a, b = self.left.input_quantizer.spec(), self.right.input_quantizer.spec()
            if a is not None and b is not None:
                layouts = (self.left.layout, self.right.layout)
                out: Tensor = _MatmulOnCodes.apply(
                    left, a.tau, a.step, right, b.tau, b.step, (a, b), layouts, dtype
                )
                return out
        a_values, b_values = self.left(left), self.right(right)
        with exact_products(left.device.type):
            return a_values @ b_values

    def operands(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Both operands fake-quantized, for another product than that of matrices."""
        self.left.observe(left)
        self.right.observe(right)
        return self.left(left), self.right(right)


def attention_products(
    *, channels: int, heads: int, tokens: int, nbits: int, quantizer: str
) -> tuple[QuantMatmul, QuantMatmul]:
    """The two products of window attention: scores ``q @ k^T`` and mixture ``softmax(scores) @ v``.

    Outputs of the softmax are not negative: their codes are unsigned. Other signs are calibrated.

    Args:
        channels: C.
        heads: h.
        tokens: N.
        nbits: of every operand.
        quantizer: a name in ``QUANTIZER_REGISTRY``.
    """
    how: dict[str, Any] = {"nbits": nbits, "quantizer": quantizer}
    scores = QuantMatmul(
        QuantOperand(channels=channels, heads=heads, **how),
        QuantOperand(channels=channels, heads=heads, transposed=True, **how),
        shape=(heads, tokens, channels // heads, tokens),
    )
    mixture = QuantMatmul(
        QuantOperand(channels=tokens, signed=False, **how),
        QuantOperand(channels=channels, heads=heads, **how),
        shape=(heads, tokens, tokens, channels // heads),
    )
    return scores, mixture
