"""The levels of a layer's quantized input: a step for each channel, one range of codes for all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quantsr.quant import functional
from quantsr.quant.kernels import MIN_STEP
from quantsr.ranges import IntRange

STEP_FACTORS = tuple(2.0 ** (-k / 6) for k in range(31))
"""Steps that are tried, relative to the one that clips nothing."""

_LEAST = 1e-4  # of factors, relative to the largest


@dataclass(frozen=True)
class Grid:
    """Channel c has the levels ``equal[c] * step * code``, code in ``codes``."""

    codes: IntRange
    step: float
    equal: Tensor
    """(C,), the largest is 1."""


class Channels:
    """The values of each channel, and the levels of least squared error for them.

    Args:
        values: (C, N) sample.
        weights: (C,) of a channel's squared error in the sum over all.
        bits: of the codes.
    """

    def __init__(self, values: Tensor, weights: Tensor, bits: int) -> None:
        self.rows, self.weights = Rows(values), weights
        self._whole = IntRange.of(bits, signed=False)
        self._steps: dict[IntRange, Tensor] = {}

    def zero_point(self) -> int:
        """z of codes from -z, of those by the extremes, half, a quarter, ... of it that of the
        least error where each channel has its own step; 0 for values without a sign."""
        low, high = float(self.rows.least.min()), float(self.rows.largest.max().clamp_min(0))
        share = low / (low - high) if low < -functional.SIGN_TOLERANCE else 0.0
        first = round(share * self._whole.qmax)
        errors = {}
        for z in (first >> shift for shift in range(first.bit_length() + 1)):
            codes = self._whole.shifted(-z)
            errors[z] = float((self.weights * self.rows.errors(self._own(codes), codes)).sum())
        return min(errors, key=lambda z: errors[z])

    def grid(self, codes: IntRange, power: float | None, rows: Tensor) -> Grid:
        """The levels of an equalized input.

        Args:
            power: share of the channels' own steps in the factors, the weights have the rest: at 1
                every channel has its own step; None: all channels have one.
            rows: (C,) largest weight that multiplies each channel, relative to that of its output.
        """
        steps = self._own(codes)
        equal = torch.ones_like(steps)
        if power is not None:
            own, rows = (v.clamp_min(_LEAST * float(v.max())).clamp_min(1e-12) for v in (steps, rows))
            equal = own**power / rows ** (1 - power)
            equal = equal / equal.max()
        largest = float((steps / equal).max())
        errors = {}
        for factor in STEP_FACTORS:
            step = max(largest * factor, MIN_STEP)
            errors[step] = float((self.weights * self.rows.errors(step * equal, codes)).sum())
        return Grid(codes, min(errors, key=lambda step: errors[step]), equal)

    def _own(self, codes: IntRange) -> Tensor:
        """(C,) steps of least squared error."""
        if codes not in self._steps:
            self._steps[codes] = self.rows.least_error_step(codes)
        return self._steps[codes]


class Rows:
    """Rows of values, (R, N), and what is lost by rounding them to the levels of a step.

    The values are sorted once: then those that a level stands for are neighbours, and their number,
    sum and squares give the error without touching each value for each step.
    """

    def __init__(self, values: Tensor) -> None:
        self._sorted = values.double().sort(1).values
        self.least, self.largest = (self._sorted[:, end].to(values.dtype) for end in (0, -1))
        self._squares = self._sorted.square().sum(1)
        self._sums = F.pad(self._sorted.cumsum(1), (1, 0))

    def errors(self, steps: Tensor, codes: IntRange) -> Tensor:
        """(R,) mean squared errors of each row with its step, (R,)."""
        rows, count = self._sorted.shape
        steps = steps.double()[:, None]
        if codes.qmax - codes.qmin > count:  # more levels than values
            found = functional.fake_quantize(self._sorted, steps, codes.qmin, codes.qmax)
            return (found - self._sorted).square().mean(1)
        levels = torch.arange(codes.qmin, codes.qmax + 1).to(steps) * steps
        ends = torch.searchsorted(self._sorted, (levels[:, 1:] + levels[:, :-1]) / 2)
        ends = torch.cat([ends.new_zeros(rows, 1), ends, ends.new_full((rows, 1), count)], 1)
        error = (ends.diff() * levels - 2 * self._sums.gather(1, ends).diff()) * levels
        return (self._squares + error.sum(1)) / count

    def least_error_step(self, codes: IntRange) -> Tensor:
        """(R,) steps of least squared error.

        Tried are those that clip nothing, and 1/32 of them and more: unlike the search from the
        mean in calibration, this reaches the extremes of values that are few and far out.
        """
        extremes = torch.stack([self.largest / max(codes.qmax, 1), self.least / min(codes.qmin, -1)])
        steps = extremes.amax(0).clamp_min(MIN_STEP) * torch.tensor(STEP_FACTORS).to(extremes)[:, None]
        errors = torch.stack([self.errors(step, codes) for step in steps])
        return steps.gather(0, errors.argmin(0)[None])[0]
