"""The levels of a layer's quantized input: a step for each channel, one range of codes for all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
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
        self.values, self.weights = values, weights
        self._whole = IntRange.of(bits, signed=False)

    def zero_point(self) -> int:
        """z of codes from -z, of those by the extremes, half, a quarter, ... of it that of the
        least error where each channel has its own step; 0 for values without a sign."""
        low, high = float(self.values.min()), float(self.values.max().clamp_min(0))
        share = low / (low - high) if low < -functional.SIGN_TOLERANCE else 0.0
        first = round(share * self._whole.qmax)
        errors = {}
        for z in (first >> shift for shift in range(first.bit_length() + 1)):
            codes = self._whole.shifted(-z)
            error = self.weights * self._errors(least_error_step(self.values, codes), codes)
            errors[z] = float(error.sum())
        return min(errors, key=lambda z: errors[z])

    def grid(self, codes: IntRange, power: float | None, rows: Tensor) -> Grid:
        """The levels of an equalized input.

        Args:
            power: share of the channels' own steps in the factors, the weights have the rest: at 1
                every channel has its own step; None: all channels have one.
            rows: (C,) largest weight that multiplies each channel, relative to that of its output.
        """
        steps = least_error_step(self.values, codes)
        equal = torch.ones_like(steps)
        if power is not None:
            own, rows = (v.clamp_min(_LEAST * float(v.max())).clamp_min(1e-12) for v in (steps, rows))
            equal = own**power / rows ** (1 - power)
            equal = equal / equal.max()
        largest = float((steps / equal).max())
        errors = {}
        for factor in STEP_FACTORS:
            step = max(largest * factor, MIN_STEP)
            errors[step] = float((self.weights * self._errors(step * equal, codes)).sum())
        return Grid(codes, min(errors, key=lambda step: errors[step]), equal)

    def _errors(self, steps: Tensor, codes: IntRange) -> Tensor:
        """(C,) mean squared errors."""
        found = functional.fake_quantize(self.values, steps[:, None], codes.qmin, codes.qmax)
        return (found - self.values).square().mean(1)


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
