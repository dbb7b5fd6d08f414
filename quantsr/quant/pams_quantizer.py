"""The quantizers of PAMS (parameterized max scale; Li et al., ECCV 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from quantsr.quant import functional
from quantsr.quant.autograd import ActivationQuant, QuantizedWeight
from quantsr.quant.kernels import MIN_STEP
from quantsr.quant.quantizers import QUANTIZER_REGISTRY, Quantizer
from quantsr.quant.uniform import (
    CalibrationStatistics,
    MaxAbsWeight,
    UniformActivation,
    step_of_least_error,
    straight_through,
)


class PAMSWeight(MaxAbsWeight):
    """``w_q = s round(w / s)``, ``s = max|w| / (2^(b-1) - 1)``; straight-through gradient.

    As in the paper the lowest code is never used: three levels at 2 bits. Nothing is learned but
    the weight.
    """

    def quantize(self, weight: Tensor, dtype: torch.dtype) -> QuantizedWeight:
        """As :class:`WeightQuantizer`; ``step`` notes the present one."""
        self._require_calibrated()
        step = self.max_abs_step(weight, self.range.qmax)
        codes = functional.quantize(weight.detach(), step, self.range.qmin, self.range.qmax)
        return QuantizedWeight(straight_through(codes * step, weight), codes.to(dtype), step)


class PAMSActivation(UniformActivation):
    """``a_q = s round(clip(a, -alpha, alpha) / s)``, ``s = alpha / (2^(b-1) - 1)``.

    ``alpha`` is learned.

    The parameter is the step ``s``, which is ``alpha`` in another unit; its gradient is what the
    chain rule and a straight-through round give for the formula, which is LSQ's, and is scaled as
    LSQ's. ``alpha`` starts at the mean of the calibration batches' largest ``|a|`` (the paper:
    their moving average over the first epoch), or, with `train.initial_steps` ``mse``, at the part
    of the largest ``|a|`` that leaves the least squared error.

    Two things differ from the paper, so that PAMS has ``2^b`` levels as all others, and is packed
    as they are: inputs that are never negative take unsigned codes, where the paper wastes half of
    the range, and signed ones use the lowest code of two's complement too, one step below
    ``-alpha``.
    """

    @property
    def alpha(self) -> Tensor:
        """(1,) the upper bound."""
        return self.step.clamp_min(MIN_STEP) * self.range.qmax

    @torch.no_grad()
    def fit(self, seen: CalibrationStatistics) -> None:
        """The step of the largest value, or of least squared error."""
        qmin, qmax = self.range.qmin, self.range.qmax
        step = torch.tensor([seen.peak / qmax])
        if self.search_step:
            step = step_of_least_error(seen, qmax, lambda x, s: functional.fake_quantize(x, s, qmin, qmax))
        self.step.copy_(step.clamp_min(MIN_STEP))

    def spec(self) -> ActivationQuant:
        return self.affine(self.range)


@QUANTIZER_REGISTRY.register()
class PAMS(Quantizer):
    """Learned bounds for activations, ``max|w|`` for weights; without PAMS's distillation."""

    weight = PAMSWeight
    activation = PAMSActivation
