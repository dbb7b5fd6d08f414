"""Convolution and linear layers whose weight and input are quantized."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantsr.quant.autograd import ActivationQuant, QuantizedWeight, conv2d_on_codes, linear_on_codes
from quantsr.quant.quantizers import ActivationQuantizer, Granularity, WeightQuantizer, get_quantizer
from quantsr.ranges import FLOAT_BITS, check_bits

_exact_fp32 = False


def set_exact_fp32(enabled: bool) -> None:
    """Set whether layers compute on dequantized FP32 values, also under autocast.

    This is slower, and what the released code does.
    """
    global _exact_fp32
    _exact_fp32 = bool(enabled)


class QuantizedLayer(nn.Module):
    """Base of quantized layers: the two quantizers, and their calibration.

    ``weight_quantizer`` and ``input_quantizer`` are None where the bit-width is 32. An equalized
    layer reads ``x / input_equal``, and ``weight`` is that of a plain layer times ``input_equal``.
    """

    weight: nn.Parameter
    input_equal: Tensor | None
    """(C,) of the input's channels, 1 until it is set; None in a layer that is not equalized."""
    weight_quantizer: WeightQuantizer | None
    input_quantizer: ActivationQuantizer | None

    def _add_quantizers(
        self,
        *,
        nbits_w: int,
        nbits_a: int,
        quantizer: str,
        granularity: Granularity,
        in_channels: int,
        channel_dim: int,
        equalized: bool = False,
    ) -> None:
        check_bits(nbits_w, "nbits_w")
        check_bits(nbits_a, "nbits_a")
        method = get_quantizer(quantizer)
        self.quantizer = quantizer
        self.calibrating = False
        self.watch: Callable[[QuantizedLayer, Tensor], None] | None = None
        """Called with the layer and each input, before it is quantized."""
        self.channel_dim = channel_dim
        self.register_buffer("input_equal", torch.ones(in_channels) if equalized else None)
        self.weight_quantizer = None
        self.input_quantizer = None
        if nbits_w != FLOAT_BITS:
            self.weight_quantizer = method.weight(
                bits=nbits_w, out_channels=self.weight.shape[0], granularity=granularity
            )
        if nbits_a != FLOAT_BITS:
            self.input_quantizer = method.activation(
                bits=nbits_a, channels=in_channels, channel_dim=channel_dim
            )

    @property
    def nbits_w(self) -> int:
        """Bits of the weight, 32 for float."""
        return self.weight_quantizer.bits if self.weight_quantizer is not None else FLOAT_BITS

    @property
    def nbits_a(self) -> int:
        """Bits of the input, 32 for float."""
        return self.input_quantizer.bits if self.input_quantizer is not None else FLOAT_BITS

    def quantized_weight(self, dtype: torch.dtype = torch.float32) -> QuantizedWeight | None:
        """The quantized weight, for several calls of :meth:`forward`; None if it is float.

        Args:
            dtype: type of the codes, which is the type a convolution on codes computes in.
        """
        if self.weight_quantizer is None:
            return None
        if self.calibrating:
            self.weight_quantizer.calibrate(self.weight)
        return self.weight_quantizer.quantize(self.weight, dtype)

    def observe(self, x: Tensor) -> None:
        """Update the input quantizer's statistics if this forward pass is a calibration batch.

        And pass the input on to :attr:`watch`.
        """
        if self.calibrating and self.input_quantizer is not None:
            self.input_quantizer.observe(x)
        if self.watch is not None:
            self.watch(self, x)

    def equalized(self, x: Tensor) -> Tensor:
        """The input that is quantized, shape of ``x``."""
        if self.input_equal is None:
            return x
        shape = [1] * x.dim()
        shape[self.channel_dim] = -1
        return x / self.input_equal.view(shape)

    def weight_codes(self) -> Tensor:
        """Integer codes of the weight, int8, shape of the weight.

        Raises:
            ValueError: if the weight is float.
        """
        if self.weight_quantizer is None:
            raise ValueError("this layer's weight is not quantized (nbits_w is 32)")
        return self.weight_quantizer.codes(self.weight)

    def _spec_on_codes(self, dtype: torch.dtype, weight: QuantizedWeight | None) -> ActivationQuant | None:
        """The input quantizer where the product can run on codes in ``dtype``, else None."""
        if self.input_quantizer is None or not runs_on_codes(dtype):
            return None
        return self.input_quantizer.spec() if weight is not None and weight.codes is not None else None

    def _fake_quantized(self, x: Tensor, weight: QuantizedWeight | None) -> tuple[Tensor, Tensor]:
        x = self.input_quantizer(x) if self.input_quantizer is not None else x
        return x, weight.values if weight is not None else self.weight


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type of a matrix product on ``x``: autocast's if enabled, else that of ``x``."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def runs_on_codes(dtype: torch.dtype) -> bool:
    """Whether products in this type run on integer codes: FP32 and half precision.

    Never after ``set_exact_fp32(True)``.

    Codes are exact in half precision, where values are not; sums of codes in FP32 are integers, the
    same in every order of summation and on every engine (docs/explanation/numerics.md); and
    backward needs the layer's input alone.
    """
    return not _exact_fp32 and dtype in (torch.bfloat16, torch.float16, torch.float32)


def exact_products(device_type: str) -> AbstractContextManager[Any]:
    """Context without autocast after ``set_exact_fp32(True)``."""
    return torch.autocast(device_type, enabled=False) if _exact_fp32 else nullcontext()


class QuantConv2d(QuantizedLayer, nn.Conv2d):  # type: ignore[misc]
    """``torch.nn.Conv2d`` on quantized input and weight; zero padding follows quantization.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as
            ``torch.nn.Conv2d``.
        nbits_w: bits of the weight, 2..8, or 32 for float.
        nbits_a: bits of the input, 2..8, or 32 for float.
        quantizer: a name in ``QUANTIZER_REGISTRY``.
        weight_granularity: one weight step per ``tensor`` (the paper) or per output ``channel``.
        equalized: whether the channels of the input are scaled before they are quantized.

    Raises:
        ValueError: for other bit-widths, an unknown quantizer or granularity.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        nbits_w: int,
        nbits_a: int,
        quantizer: str = "RLQ",
        weight_granularity: Granularity = "tensor",
        equalized: bool = False,
    ) -> None:
        nn.Conv2d.__init__(
            self, in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        )
        self._add_quantizers(
            nbits_w=nbits_w,
            nbits_a=nbits_a,
            quantizer=quantizer,
            granularity=weight_granularity,
            in_channels=in_channels,
            channel_dim=1,
            equalized=equalized,
        )

    def forward(self, x: Tensor, weight: QuantizedWeight | None = None, relu: bool = False) -> Tensor:
        """(B, C, H, W) to (B, O, H', W').

        Args:
            x: input, not yet quantized.
            weight: from :meth:`quantized_weight`, to quantize it once for several calls.
            relu: apply ReLU to the result.
        """
        x = self.equalized(x)
        self.observe(x)
        dtype = compute_dtype(x)
        if weight is None:
            weight = self.quantized_weight(dtype)
        spec = self._spec_on_codes(dtype, weight)
        if spec is not None and weight is not None:
            return conv2d_on_codes(
                x,
                spec,
                weight,
                self.bias,
                stride=self.stride,
                padding=self.padding,  # type: ignore[arg-type]
                dilation=self.dilation,
                groups=self.groups,
                relu=relu,
            )
        x, w = self._fake_quantized(x, weight)
        with exact_products(x.device.type):
            out = self._conv_forward(x.to(w.dtype) if _exact_fp32 else x, w, self.bias)
        return F.relu(out) if relu else out


class FirstConv2d(nn.Conv2d):
    """``torch.nn.Conv2d`` whose FP32 evaluation does not depend on the order of summation.

    Later layers quantize its output, so a difference in the last bit between engines could change a
    code. Without gradients the sums are taken in FP64, rounded once, and the bias is added in FP32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, O, H', W')."""
        if torch.is_grad_enabled() or compute_dtype(x) != torch.float32:
            return super().forward(x)
        sums = self._conv_forward(x.double(), self.weight.double(), None).float()
        return sums if self.bias is None else sums.add_(self.bias.view(-1, 1, 1))


class QuantLinear(QuantizedLayer, nn.Linear):  # type: ignore[misc]
    """``torch.nn.Linear`` on a quantized input and a quantized weight.

    Args:
        in_features, out_features, bias: as ``torch.nn.Linear``.
        nbits_w, nbits_a, quantizer, weight_granularity, equalized: as :class:`QuantConv2d`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        nbits_w: int,
        nbits_a: int,
        quantizer: str = "RLQ",
        weight_granularity: Granularity = "tensor",
        equalized: bool = False,
    ) -> None:
        nn.Linear.__init__(self, in_features, out_features, bias)
        self._add_quantizers(
            nbits_w=nbits_w,
            nbits_a=nbits_a,
            quantizer=quantizer,
            granularity=weight_granularity,
            in_channels=in_features,
            channel_dim=-1,
            equalized=equalized,
        )

    def forward(self, x: Tensor, weight: QuantizedWeight | None = None) -> Tensor:
        """(..., C) to (..., O)."""
        x = self.equalized(x)
        self.observe(x)
        dtype = compute_dtype(x)
        if weight is None:
            weight = self.quantized_weight(dtype)
        spec = self._spec_on_codes(dtype, weight)
        if spec is not None and weight is not None:
            return linear_on_codes(x, spec, weight, self.bias)
        x, w = self._fake_quantized(x, weight)
        with exact_products(x.device.type):
            return F.linear(x.to(w.dtype) if _exact_fp32 else x, w, self.bias)


def quantized_layers(net: nn.Module) -> dict[str, Any]:
    """All quantized layers of ``net`` by module name."""
    return {name: m for name, m in net.named_modules() if isinstance(m, QuantizedLayer)}
