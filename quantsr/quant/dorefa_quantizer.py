"""DoReFa (Zhou et al., "DoReFa-Net", arXiv:1606.06160), adapted to features of any range."""

from __future__ import annotations

import torch
from torch import Tensor

from quantsr.quant.autograd import ActivationQuant, QuantizedWeight
from quantsr.quant.kernels import MIN_STEP, wide
from quantsr.quant.quantizers import QUANTIZER_REGISTRY, Quantizer
from quantsr.quant.uniform import (
    CalibrationStatistics,
    MaxAbsWeight,
    UniformActivation,
    step_of_least_error,
    straight_through,
)
from quantsr.ranges import IntRange


def quantize_clipped(x: Tensor, step: Tensor, intervals: int, signed: bool) -> Tensor:
    """``alpha * Q(clip(x / alpha, 0, 1))``.

    If signed ``alpha * (2 Q(clip(x / (2 alpha) + 1/2, 0, 1)) - 1)``.

    ``Q(r) = round(n r) / n`` with a straight-through gradient (DoReFa, equations 5 and 6), ``n``
    the intervals. The gradient of ``x`` is 1 within the bounds and 0 beyond, that of ``alpha`` is 1
    from ``alpha`` on (PACT, equation 3), and when signed -1 below ``-alpha``.

    Args:
        x: FP32 or FP64, any shape.
        step: (1,) distance of two levels; ``alpha`` is ``n * step``, signed ``n * step / 2``.
        intervals: n.
        signed: whether the levels are symmetric around 0, none of them 0, instead of beginning
            there.
    """
    step = straight_through(step.clamp_min(MIN_STEP), step)
    below = intervals / 2 if signed else 0.0  # steps from the lowest level to 0
    high, low = step * (intervals - below), step * -below
    clipped = torch.where(x >= high, high, torch.where(x < low, low, x))
    codes = (clipped.detach() / step.detach() + below).round() - below
    return straight_through(codes * step, clipped)


class DoReFaWeight(MaxAbsWeight):
    """``w_q = m (2 Q(tanh(w) / (2 m) + 1/2) - 1)``, ``m = max|tanh(w)|``.

    This is DoReFa's equation 9 times ``m``.

    The paper leaves out the factor ``m``, for which batch normalization makes up; super-resolution
    has none, and every layer's weights would grow to [-1, 1]. ``m`` is that of the present weight,
    over the tensor or each output channel, and constant to the gradient, which is that of ``tanh``.
    Nothing is learned but the weight.

    The levels are ``-n, -n + 2, ..., n`` times ``m / n``, ``n = 2^b - 1``: training computes on
    these integers, but b bits do not hold them, so that there are no :meth:`codes`, and export
    refuses.
    """

    def quantize(self, weight: Tensor, dtype: torch.dtype) -> QuantizedWeight:
        """As :class:`WeightQuantizer`; the codes are the odd integers, ``step`` notes ``m / n``."""
        self._require_calibrated()
        squashed = torch.tanh(weight)
        n = IntRange.of(self.bits, signed=False).qmax
        step = self.max_abs_step(squashed, n)
        codes = 2 * (squashed.detach() / (2 * step) + n / 2).round().clamp(0, n) - n
        return QuantizedWeight(straight_through(codes * step, squashed), codes.to(dtype), step)

    def codes(self, weight: Tensor) -> Tensor:
        """Always refuses.

        Raises:
            ValueError: the levels are odd multiples of half their distance.
        """
        raise ValueError(
            f"{type(self).__name__} has no integer codes of {self.bits} bits: its levels are odd multiples of half their distance"
        )


class DoReFaActivation(UniformActivation):
    """``a_q = alpha Q(clip(a / alpha, 0, 1))`` (DoReFa, section 2.4, for activations in [0, 1]).

    ``alpha`` stands in for what brings activations into that range in the paper's networks: it is
    the bound that leaves the least squared error over the calibration batches, and stays. Where
    inputs can be negative the range is ``[-alpha, alpha]``, quantized as the paper does weights:
    ``2^b`` levels symmetric around 0, none of them 0. Unsigned inputs run on codes, signed ones on
    values.
    """

    learned_step = False

    @property
    def alpha(self) -> Tensor:
        """(1,) the bound."""
        return self.step.clamp_min(MIN_STEP) * self._reach

    @property
    def _reach(self) -> float:
        """``alpha`` in steps."""
        return self.intervals / 2 if self.signed else self.intervals

    @torch.no_grad()
    def fit(self, seen: CalibrationStatistics) -> None:
        """The step with least squared error whose bound is a fraction of the largest value."""
        n, signed = self.intervals, bool(self.signed)
        step = step_of_least_error(seen, self._reach, lambda x, s: quantize_clipped(x, s, n, signed))
        self.step.copy_(step.clamp_min(MIN_STEP))

    def spec(self) -> ActivationQuant | None:
        self._require_calibrated()
        return None if self.range.qmin < 0 else self.affine(self.range)

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantized ``x``; its shape and type."""
        self._require_calibrated()
        return quantize_clipped(wide(x), self.step, self.intervals, self.range.qmin < 0).to(x.dtype)


@QUANTIZER_REGISTRY.register()
class DoReFa(Quantizer):
    """DoReFa's weights and activations; gradients stay float."""

    weight = DoReFaWeight
    activation = DoReFaActivation
