"""Fitting one quantized layer to its input without training: equalization, zero point, steps,
bias."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantsr.quant import functional
from quantsr.quant.calibrate import calibrate
from quantsr.quant.kernels import MIN_STEP
from quantsr.quant.layers import QuantConv2d, QuantizedLayer
from quantsr.quant.rlq_asymmetric_quantizer import AsymmetricRLQActivation
from quantsr.quant.rlq_quantizer import RLQActivation, RLQWeight
from quantsr.ranges import IntRange

POWERS = (0.0, 0.4, 0.6, 0.8, 1.0, 1.2)
"""Tried for the share of the channels' ranges that the input's equalization takes, the weight the
rest; 0.5 is that of Nagel et al. (ICCV 2019), others those of SmoothQuant (Xiao et al., ICML
2023)."""

STEP_FACTORS = tuple(2.0 ** (-k / 6) for k in range(31))

_LEAST = 1e-4  # of factors, relative to the largest


@torch.no_grad()
def fit(layer: QuantizedLayer, x: Tensor, *, correct_bias: bool = True) -> None:
    """Set the layer's quantizers, ``input_equal`` and bias so that its output on `x` is near that
    in float: in squared error, about the mean of each output channel.

    `POWERS` are tried where the layer is equalized; then, where the quantizer has a zero point and
    the input negative values, half, quarter, ... of the zero point by extremes. The bias takes the
    mean error of each output channel (Nagel et al., section 4.2).

    Args:
        layer: its quantizers need no calibration; its weight is the float one.
        x: (B, C, h, w), of a linear layer (..., C).
        correct_bias: whether the bias is changed.
    """
    trial = _Trial(layer, x)
    trial.choose("equal", [None] if layer.input_equal is None else _factors(layer, x, trial.weight))
    zero_point = trial.zero_point_by_extremes()
    if zero_point:
        trial.choose("zero_point", [zero_point >> shift for shift in range(zero_point.bit_length() + 1)])
    trial.set()
    if correct_bias:
        lacks = trial.difference().movedim(layer.channel_dim, 0).flatten(1).mean(1)
        bias: Tensor | None = layer.bias  # type: ignore[assignment]
        layer.bias = nn.Parameter(-lacks if bias is None else bias - lacks)


def least_error_step(rows: Tensor, codes: IntRange) -> Tensor:
    """(R,) steps with the least squared error for the values of each row, (R, N).

    Tried are those that clip nothing, and 1/32 of them and more: unlike the search from the mean in
    calibration, this reaches the extremes of values that are few and far out.
    """
    extremes = torch.stack([rows.amax(1) / max(codes.qmax, 1), rows.amin(1) / min(codes.qmin, -1)])
    largest = extremes.amax(0).clamp_min(MIN_STEP)
    steps = torch.stack([largest * factor for factor in STEP_FACTORS])
    errors = [
        (functional.fake_quantize(rows, step[:, None], codes.qmin, codes.qmax) - rows).square().mean(1)
        for step in steps
    ]
    return steps.gather(0, torch.stack(errors).argmin(0)[None])[0]


class _Trial:
    """A layer with the best settings so far."""

    def __init__(self, layer: QuantizedLayer, x: Tensor) -> None:
        self.layer, self.x = layer, x
        self.weight = layer.weight.detach().clone()
        self.wanted = _in_float(layer, x)
        self.signal = self._variances(self.wanted)
        self.signal = self.signal.clamp_min(1e-6 * float(self.signal.max()))
        self.settings: dict[str, Tensor | int | None] = {"equal": None, "zero_point": None}

    def choose(self, name: str, values: Iterable[Tensor | int | None]) -> None:
        """Keep the value of least error."""
        errors = []
        for value in values:
            self.settings[name] = value
            self.set()
            errors.append((float((self._variances(self.difference()) / self.signal).mean()), value))
        self.settings[name] = min(errors, key=lambda entry: entry[0])[1]

    def _variances(self, x: Tensor) -> Tensor:
        """(O,) of the output's channels."""
        return x.movedim(self.layer.channel_dim, 0).flatten(1).var(1, correction=0)

    def set(self) -> None:
        """Calibrate the layer with the settings."""
        equal, zero_point = self.settings["equal"], self.settings["zero_point"]
        if isinstance(equal, Tensor):
            assert self.layer.input_equal is not None
            self.layer.input_equal.copy_(equal)
            self.layer.weight.copy_(self.weight * equal.view(1, -1, *[1] * (self.weight.dim() - 2)))
        if isinstance(zero_point, int):
            assert isinstance(self.layer.input_quantizer, AsymmetricRLQActivation)
            self.layer.input_quantizer.fix_zero_point(zero_point)
        calibrate(self.layer, [self.x], "mse")
        weight, inputs = self.layer.weight_quantizer, self.layer.input_quantizer
        if isinstance(weight, RLQWeight):
            rows = self.layer.weight.reshape(weight.step.numel(), -1)
            weight.step.copy_(least_error_step(rows, weight.range))
        if isinstance(inputs, RLQActivation):
            values = functional.sample(self.layer.equalized(self.x))
            inputs.step.copy_(least_error_step(values[None], inputs.range))

    def difference(self) -> Tensor:
        """The layer's output less that in float."""
        found: Tensor = self.layer(self.x) - self.wanted
        return found

    def zero_point_by_extremes(self) -> int:
        """0 where the quantizer has none."""
        quantizer = self.layer.input_quantizer
        if not isinstance(quantizer, AsymmetricRLQActivation):
            return 0
        self.set()
        return int(quantizer.zero_point)


def _factors(layer: QuantizedLayer, x: Tensor, weight: Tensor) -> list[Tensor]:
    """(C,) for each of `POWERS`."""
    inputs = x.movedim(layer.channel_dim, 0).flatten(1).abs().amax(1)
    rows = weight.abs().flatten(2).amax(2) if weight.dim() > 2 else weight.abs()  # (O, C)
    weights = (rows / rows.amax(1, keepdim=True).clamp_min(1e-12)).amax(0)
    inputs, weights = (v.clamp_min(_LEAST * float(v.max())).clamp_min(1e-12) for v in (inputs, weights))
    found = []
    for power in POWERS:
        equal = inputs**power / weights ** (1 - power) if power else torch.ones_like(inputs)
        found.append(equal / equal.max())
    return found


def _in_float(layer: QuantizedLayer, x: Tensor) -> Tensor:
    if isinstance(layer, QuantConv2d):
        return layer._conv_forward(x, layer.weight, layer.bias)
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    return F.linear(x, layer.weight, bias)
