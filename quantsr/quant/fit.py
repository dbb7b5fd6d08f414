"""Fitting one quantized layer to its input without training: levels of the input, weight, bias."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantsr.quant.calibrate import calibrate
from quantsr.quant.input_grids import Channels, Grid, Rows
from quantsr.quant.layers import QuantConv2d, QuantizedLayer
from quantsr.quant.least_squares import Moments, refitted, rounded
from quantsr.quant.rlq_asymmetric_quantizer import AsymmetricRLQActivation
from quantsr.quant.rlq_quantizer import RLQActivation, RLQWeight
from quantsr.ranges import IntRange

POWERS = (1.0, 0.8, 0.6, 0.4, 0.0)
"""Tried for the share of the channels' steps that the input's equalization takes, the weight the
rest; 0.5 is that of Nagel et al. (ICCV 2019), others those of SmoothQuant (Xiao et al., ICML
2023)."""

SAMPLES = 2**14
"""Values of each channel that the search for the levels of the input reads."""

_ROOM = 0.49  # a weight that is rounded to another code than the nearest lies so far from its own

T = TypeVar("T")


@torch.no_grad()
def fit(
    layer: QuantizedLayer,
    x: Tensor,
    wanted: Tensor | None = None,
    *,
    importance: Tensor | None = None,
    correct_bias: bool = True,
) -> None:
    """Set the layer's quantizers, ``input_equal``, weight and bias so that its output on `x` is
    near the wanted one.

    1. The input: zero point, equalization and step. Which of `POWERS` the equalization has is
       tried with the levels of every second picture, on the other pictures: by the output's squared
       error about its mean, weighed for each channel by its importance. Channels of rare large
       values would else be cut where other pictures have them.
    2. The weight: refitted to the quantized input, then rounded column by column
       (`quantsr.quant.least_squares`).
    3. The bias takes the mean error of each output channel (Nagel et al., section 4.2).

    Of quantizers other than RLQ's, the second or all of the first step is calibration alone.

    Args:
        layer: its quantizers need no calibration; its weight is the float one.
        x: (B, C, h, w), of a linear layer (B, ..., C).
        wanted: the output in the float network; default: that of the float layer on `x`.
        importance: (O,) of squared errors, not negative; default: 1 / the variance of the channel.
        correct_bias: whether the bias is changed.
    """
    calibrate(layer, [x], "mse")
    trial = _Trial(layer, x, wanted, importance)
    if isinstance(layer.input_quantizer, RLQActivation):
        trial.choose_grid(layer.input_quantizer)
    if isinstance(layer.weight_quantizer, RLQWeight) and getattr(layer, "groups", 1) == 1:
        trial.refit(layer.weight_quantizer, centred=correct_bias)
    if correct_bias:
        lacks = (layer(x) - trial.wanted).movedim(layer.channel_dim, 0).flatten(1).mean(1)
        bias: Tensor | None = layer.bias  # type: ignore[assignment]
        layer.bias = nn.Parameter(-lacks if bias is None else bias - lacks)


class _Trial:
    """A layer with the best settings so far."""

    def __init__(
        self, layer: QuantizedLayer, x: Tensor, wanted: Tensor | None, importance: Tensor | None
    ) -> None:
        self.layer, self.x = layer, x
        self.weight = layer.weight.detach().clone()
        self.exact = in_float(layer, x)
        self.wanted = self.exact if wanted is None else wanted
        if importance is None:
            signal = self._variances(self.exact)
            importance = 1 / signal.clamp_min(1e-6 * float(signal.max())).clamp_min(1e-12)
        self.importance = importance
        self.channel_weights = self._channel_weights(x.shape[layer.channel_dim])

    def choose_grid(self, inputs: RLQActivation) -> None:
        """Set the input quantizer, the equalization, and steps of the weight."""
        rows = self.weight.abs().flatten(2).amax(2) if self.weight.dim() > 2 else self.weight.abs()
        rows = (rows / rows.amax(1, keepdim=True).clamp_min(1e-12)).amax(0)  # (C,)
        whole = self._channels(self.x, inputs.bits)
        codes = inputs.range
        if isinstance(inputs, AsymmetricRLQActivation):
            codes = IntRange.of(inputs.bits, signed=False).shifted(-whole.zero_point())
        power = None
        if self.layer.input_equal is not None:
            half = self._channels(self.x[::2], inputs.bits)
            grids = {power: half.grid(codes, power, rows) for power in POWERS}
            power = self.best(POWERS, lambda power: self.set(inputs, grids[power]))
        self.set(inputs, whole.grid(codes, power, rows))

    def _channels(self, x: Tensor, bits: int) -> Channels:
        values = _sample(x, self.layer.channel_dim)
        return Channels(values, self.channel_weights, bits)

    def best(self, values: Iterable[T], settle: Callable[[T], None]) -> T:
        """The value of least error on every second picture from the second one; of a single picture
        on that."""
        others = slice(1 if len(self.x) > 1 else 0, None, 2)
        x, exact = self.x[others], self.exact[others]
        errors = []
        for value in values:
            settle(value)
            difference = self.layer(x) - exact
            errors.append((float((self._variances(difference) * self.importance).mean()), value))
        return min(errors, key=lambda entry: entry[0])[1]

    def set(self, inputs: RLQActivation, grid: Grid) -> None:
        """Give the layer these levels, and its weight steps of least squared error."""
        if isinstance(inputs, AsymmetricRLQActivation):
            inputs.fix_zero_point(-grid.codes.qmin)
        inputs.step.fill_(grid.step)
        if self.layer.input_equal is not None:
            self.layer.input_equal.copy_(grid.equal)
        self.set_weight(self.equalized(self.weight))

    def set_weight(self, weight: Tensor) -> None:
        """Its steps are those of least squared error."""
        self.layer.weight.copy_(weight)
        quantizer = self.layer.weight_quantizer
        if isinstance(quantizer, RLQWeight):
            rows = weight.reshape(quantizer.step.numel(), -1)
            quantizer.step.copy_(Rows(rows).least_error_step(quantizer.range))

    def equalized(self, weight: Tensor) -> Tensor:
        """The weight times the factors that the input is divided by."""
        if self.layer.input_equal is None:
            return weight
        return weight * self.layer.input_equal.view(1, -1, *[1] * (weight.dim() - 2))

    def refit(self, quantizer: RLQWeight, *, centred: bool) -> None:
        """Give the layer the weight of least squared error on the quantized input."""
        x = self.layer.equalized(self.x)
        if self.layer.input_quantizer is not None:
            x = self.layer.input_quantizer(x)
        bias: Tensor | None = self.layer.bias  # type: ignore[assignment]
        wanted = self.wanted if bias is None else self.wanted - _per_channel(bias, self.layer, x)
        moments = Moments.of(self.layer, x, wanted, centred=centred)
        shape = self.weight.shape
        weight = refitted(self.equalized(self.weight).flatten(1), moments)
        self.set_weight(weight.float().view(shape))
        step = quantizer.step.expand(len(weight))
        codes = rounded(weight, moments, step, quantizer.range)
        cell = torch.stack([codes - _ROOM, codes + _ROOM]) * step[:, None]
        self.layer.weight.copy_(weight.clamp(*cell).float().view(shape))

    def _variances(self, x: Tensor) -> Tensor:
        """(O,) of the output's channels."""
        return x.movedim(self.layer.channel_dim, 0).flatten(1).var(1, correction=0)

    def _channel_weights(self, channels: int) -> Tensor:
        """(C,) what a channel's squared error adds to the output's, were errors independent."""
        squares = self.weight.square().flatten(2).sum(2) if self.weight.dim() > 2 else self.weight.square()
        if squares.shape[1] != channels:  # groups: no input is shared by all outputs
            return torch.ones(channels).to(squares)
        found: Tensor = self.importance.to(squares) @ squares
        return found


def _sample(x: Tensor, channel_dim: int) -> Tensor:
    """(C, n) values of places at random, the same ones each time."""
    rows = x.movedim(channel_dim, 0).flatten(1)
    places = torch.randint(rows.shape[1], (SAMPLES,), generator=torch.Generator().manual_seed(0))
    return rows[:, places.to(x.device)]


def _per_channel(values: Tensor, layer: QuantizedLayer, x: Tensor) -> Tensor:
    shape = [1] * x.dim()
    shape[layer.channel_dim] = -1
    return values.view(shape)


def in_float(layer: QuantizedLayer, x: Tensor) -> Tensor:
    if isinstance(layer, QuantConv2d):
        return layer._conv_forward(x, layer.weight, layer.bias)
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    return F.linear(x, layer.weight, bias)
