"""DDTB: two learned bounds of activations (Zhong et al., ECCV 2022), without its gate."""

from __future__ import annotations

from quantsr.quant.learned_bounds import LearnedBoundsActivation
from quantsr.quant.min_max_quantizer import percentile_bounds
from quantsr.quant.pams_quantizer import PAMSWeight
from quantsr.quant.quantizers import QUANTIZER_REGISTRY, Quantizer
from quantsr.quant.uniform import CalibrationStatistics


class DDTBActivation(LearnedBoundsActivation):
    """Learned bounds that start at the 1st and the 99th percentile of the calibration batches."""

    def bounds(self, seen: CalibrationStatistics) -> tuple[float, float]:
        """Both percentiles, extended to include 0."""
        return percentile_bounds(seen, 99.0)


@QUANTIZER_REGISTRY.register()
class DDTB(Quantizer):
    """Two learned bounds; weights as PAMS, up to ``max|w|``. Without the gate that scales the
    bounds for each picture, whose constants no integer network can hold."""

    weight = PAMSWeight
    activation = DDTBActivation
