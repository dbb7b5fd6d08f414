"""PACT: parameterized clipping activation (Choi et al., arXiv:1805.06085)."""

from __future__ import annotations

from quantsr.quant.autograd import ActivationQuant
from quantsr.quant.dorefa_quantizer import DoReFaActivation, DoReFaWeight
from quantsr.quant.quantizers import QUANTIZER_REGISTRY, Quantizer


class PACTActivation(DoReFaActivation):
    """``a_q = round(clip(a, 0, alpha) n / alpha) alpha / n``, ``n = 2^b - 1`` (PACT, section 3).

    ``alpha`` is learned.

    ``alpha`` receives the gradients of all ``a >= alpha`` (equation 3); for inputs that can be
    negative the range is ``[-alpha, alpha]``, and those of ``a < -alpha`` count against it. The
    paper starts from a constant, which suits no features in 0..255: here from DoReFa's calibrated
    bound.

    The parameter is the step, ``alpha / n`` or, signed, ``2 alpha / n``, so that learning rates
    mean for it what they mean for other quantizers. The paper's L2 penalty on ``alpha`` is the
    optimizer's matter: `train.optim_g` gives no quantizer weight decay, so there is none. Inputs
    run on values: on codes a step would learn as LSQ's.
    """

    learned_step = True

    def spec(self) -> ActivationQuant | None:
        self._require_calibrated()
        return None


@QUANTIZER_REGISTRY.register()
class PACT(Quantizer):
    """Clipping at a learned bound, weights as DoReFa. No packed form, see `DoReFaWeight`."""

    weight = DoReFaWeight
    activation = PACTActivation
