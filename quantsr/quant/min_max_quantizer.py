"""MinMax and Percentile: bounds from calibration, for post-training quantization or training.

The affine quantizer with an integer zero point is that of Jacob et al. (CVPR 2018, section 2.1),
the two ways to choose its bounds are two of the calibrations of Wu et al. (arXiv:2004.09602).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from quantsr.quant.autograd import ActivationQuant, QuantizedWeight, quantize_weight
from quantsr.quant.kernels import MIN_STEP
from quantsr.quant.quantizers import QUANTIZER_REGISTRY, Quantizer, WeightQuantizer
from quantsr.quant.uniform import CalibrationStatistics, UniformActivation
from quantsr.ranges import IntRange


class MinMaxWeight(WeightQuantizer):
    """``w_q = s round(clip(w / s, Qn, Qp))``, with the least ``s`` of errors up to ``s / 2``.

    That is ``max(max(w) / (Qp + 1/2), min(w) / (Qn - 1/2))`` of the tensor or each output channel,
    at calibration; the zero point is 0. Where ``w`` is trained its gradient is 1 within the bounds,
    0 beyond, and the step stays.
    """

    learned_step = False

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        """The step from smallest and largest weight."""
        rows = weight.reshape(self.step.numel(), -1)  # (1, O * ...) or (O, ...)
        above = rows.amax(1) / (self.range.qmax + 0.5)
        below = rows.amin(1) / (self.range.qmin - 0.5)
        self.step.copy_(torch.maximum(above, below).clamp_min(MIN_STEP))
        self._mark_calibrated()

    def quantize(self, weight: Tensor, dtype: torch.dtype) -> QuantizedWeight:
        self._require_calibrated()
        return quantize_weight(weight, self.step, self.range, False, dtype)


class MinMaxActivation(UniformActivation):
    """``a_q = s (q - z)`` with ``q = clip(round(a / s) + z, 0, 2^b - 1)``.

    ``s = (high - low) / (2^b - 1)``, ``z = round(-low / s)``.

    ``low`` and ``high`` are the smallest and largest value of all calibration batches, extended to
    include 0. Nothing is learned; the gradient of ``a`` is 1 within the bounds and 0 beyond.
    `train.initial_steps` has no effect.

    Codes are unsigned, the zero point ``z`` is 0 for inputs that are never negative.
    """

    learned_step = False
    zero_point: Tensor

    def __init__(self, *, bits: int, channels: int, channel_dim: int) -> None:
        super().__init__(bits=bits, channels=channels, channel_dim=channel_dim)
        self.register_buffer("zero_point", torch.tensor(0))

    def _sync(self) -> None:
        super()._sync()
        self.range = IntRange.of(self.bits, signed=False)
        # Copy of the buffer on the host, so that forward passes need no synchronization.
        self._zero_point = int(self.zero_point)

    def bounds(self, seen: CalibrationStatistics) -> tuple[float, float]:
        """``low`` and ``high``."""
        return seen.low, seen.high

    @torch.no_grad()
    def fit(self, seen: CalibrationStatistics) -> None:
        """Step and zero point of the bounds."""
        low, high = self.bounds(seen)
        step = max((high - low) / self.intervals, MIN_STEP)
        self.step.fill_(step)
        self.zero_point.fill_(min(round(-low / step), self.intervals))
        self.signed.fill_(bool(self.zero_point > 0))

    def spec(self) -> ActivationQuant:
        return self.affine(self.range, self._zero_point)

    @torch.no_grad()
    def load_integers(self, *, step: Tensor, tau: Tensor, codes: IntRange) -> None:
        """As :class:`ActivationQuantizer`; any range of ``2^b`` codes."""
        self.zero_point.fill_(-codes.qmin)
        super().load_integers(step=step, tau=tau, codes=codes)


class PercentileActivation(MinMaxActivation):
    """:class:`MinMaxActivation` between two percentiles of a sample of the calibration batches.

    If both are 0, between the extremes.
    """

    percentile: ClassVar[float] = 99.0
    """The upper percentile p, 99 as in DDTB and ODM; the lower is 100 - p. Subclass to change."""

    def bounds(self, seen: CalibrationStatistics) -> tuple[float, float]:
        return percentile_bounds(seen, self.percentile)


def percentile_bounds(seen: CalibrationStatistics, percentile: float) -> tuple[float, float]:
    """That percentile and its counterpart from below, extended to include 0.

    The extremes if both are 0.
    """
    share = percentile / 100
    low, high = torch.quantile(seen.sample, torch.tensor([1 - share, share])).tolist()
    low, high = min(low, 0.0) if seen.low < 0 else 0.0, max(high, 0.0)
    return (low, high) if low < high else (seen.low, seen.high)


@QUANTIZER_REGISTRY.register()
class MinMax(Quantizer):
    """Smallest and largest value of calibration data and of weights."""

    weight = MinMaxWeight
    activation = MinMaxActivation


@QUANTIZER_REGISTRY.register()
class Percentile(Quantizer):
    """The 1st and 99th percentile of calibration data; weights as :class:`MinMax`."""

    weight = MinMaxWeight
    activation = PercentileActivation
