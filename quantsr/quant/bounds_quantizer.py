"""Bounds searched on calibration data and learned: 2DQuant's quantizer (Liu et al., NeurIPS 2024).

DOBI, its search: among 100 positions of the bounds between the extremes of the data and their
middle, that of the least squared error. DQC, its training of the bounds, is
`quantsr.engine.bounds_training`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantsr.quant import functional
from quantsr.quant.kernels import MIN_STEP
from quantsr.quant.learned_bounds import LearnedBoundsActivation
from quantsr.quant.quantizers import QUANTIZER_REGISTRY, Quantizer
from quantsr.quant.rlq_quantizer import LSQWeight
from quantsr.quant.uniform import CalibrationStatistics, least_error

POSITIONS = 100
"""Positions of the bounds that are tried."""


class BoundsWeight(LSQWeight):
    """``s * round(clip(w / s, Qn, Qp))``, ``s`` learned; its bounds ``s Qn`` and ``s Qp`` are
    searched.

    The code of a weight of 0 is 0, so one number is both bounds.
    """

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        """The step of least squared error, over the tensor or each output channel.

        Tried are ``k / 100`` of the least step that clips nothing.
        """
        rows = weight.reshape(self.step.numel(), -1)  # (1, O * ...) or (O, ...)
        qmin, qmax = self.range.bounds
        widest = torch.maximum(rows.amax(1) / qmax, rows.amin(1) / qmin).clamp_min(MIN_STEP)
        best = torch.full_like(widest, torch.inf)
        found = widest
        for k in range(POSITIONS, 0, -1):
            step = widest * (k / POSITIONS)
            error = (functional.fake_quantize(rows, step[:, None], qmin, qmax) - rows).square().mean(1)
            found, best = torch.where(error < best, step, found), torch.minimum(error, best)
        self.step.copy_(found)
        self._mark_calibrated()


class BoundsActivation(LearnedBoundsActivation):
    """Learned bounds that start at the least squared error over a sample of the calibration
    batches, `search_bounds`."""

    def bounds(self, seen: CalibrationStatistics) -> tuple[float, float]:
        """Those of `search_bounds`."""
        return search_bounds(seen, self.intervals)


def search_bounds(seen: CalibrationStatistics, intervals: int) -> tuple[float, float]:
    """The lower and upper bound of least squared error (2DQuant's DOBI).

    Tried are 100 positions with both bounds moved by ``k / 200`` of the range towards each other,
    for symmetric data, and 100 with the upper one moved by ``k / 100``, for data behind GELU or
    softmax. The paper chooses between both by the layer, which is not known here. No bound moves
    beyond 0.
    """
    low, high = seen.low, seen.high
    width = high - low
    both = [
        (min(low + width * k / (2 * POSITIONS), 0.0), max(high - width * k / (2 * POSITIONS), 0.0))
        for k in range(POSITIONS)
    ]
    upper = [(low, max(low + width * (1 - k / POSITIONS), 0.0)) for k in range(POSITIONS)]

    def between(x: Tensor, bounds: tuple[float, float]) -> Tensor:
        low, high = bounds
        step = max((high - low) / intervals, MIN_STEP)
        first = -min(max(round(-low / step), 0), intervals)
        return functional.fake_quantize(x, torch.tensor(step, dtype=x.dtype), first, first + intervals)

    return least_error(
        seen.sample, [pair for pair in both + upper if pair[0] < pair[1]] or [(low, high)], between
    )


@QUANTIZER_REGISTRY.register()
class Bounds(Quantizer):
    """Bounds that are searched and learned (2DQuant)."""

    weight = BoundsWeight
    activation = BoundsActivation
