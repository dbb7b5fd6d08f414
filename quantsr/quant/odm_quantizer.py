"""ODM (Hong and Lee, "Overcoming distribution mismatch ...", ECCV 2024, arXiv:2307.13337).

Its loss on the mismatch of features is `train.mismatch_weight` (`quantsr/models/mismatch.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantsr.quant.autograd import QuantizedWeight, quantize_weight
from quantsr.quant.ddtb_quantizer import DDTBActivation
from quantsr.quant.kernels import MIN_STEP
from quantsr.quant.quantizers import QUANTIZER_REGISTRY, Granularity, Quantizer, WeightQuantizer
from quantsr.quant.uniform import percentile_of
from quantsr.ranges import IntRange


class ODMWeight(WeightQuantizer):
    """``w_q = s round(clip(w, -B, B) / s)``, ``s = B / (2^(b-1) - 1)``, ``B = P99|w| gamma``.

    ``gamma`` is learned, one per tensor or output channel, and starts at 1. The percentile is that
    of the present weight, as the largest weight of PAMS is, and constant to the gradient: the paper
    leaves both open. The gradient of ``s`` is LSQ's, with LSQ's scale, and reaches ``gamma`` by the
    chain rule. The lowest code is never used: three levels at 2 bits.
    """

    learned_step = False

    def __init__(self, *, bits: int, out_channels: int, granularity: Granularity = "tensor") -> None:
        super().__init__(bits=bits, out_channels=out_channels, granularity=granularity)
        self.range = IntRange(-self.range.qmax, self.range.qmax)
        self.gamma = nn.Parameter(torch.ones_like(self.step))

    def unit(self, name: str) -> float:
        """As the base class; ``gamma`` is a factor."""
        return 1.0 if name == "gamma" else super().unit(name)

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        """``gamma = 1``; the bound follows from the weight."""
        self.gamma.fill_(1.0)
        self._mark_calibrated()
        self.quantize(weight, torch.float32)

    def quantize(self, weight: Tensor, dtype: torch.dtype) -> QuantizedWeight:
        """As :class:`WeightQuantizer`; ``step`` notes the present one."""
        self._require_calibrated()
        rows = weight.detach().reshape(self.step.numel(), -1)  # (1, O * ...) or (O, ...)
        step = percentile_of(rows.abs(), 99.0) * self.gamma / self.range.qmax
        with torch.no_grad():
            self.step.copy_(step.clamp_min(MIN_STEP))
        return quantize_weight(weight, step, self.range, False, dtype)


@QUANTIZER_REGISTRY.register()
class ODM(Quantizer):
    """Two learned bounds for activations, as DDTB; a learned factor of a percentile for weights."""

    weight = ODMWeight
    activation = DDTBActivation
