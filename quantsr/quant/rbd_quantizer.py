"""RBD, QuantSR+'s quantizer: weights bit by bit (Qin et al., TPAMI 2026)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantsr.quant.autograd import QuantizedWeight
from quantsr.quant.functional import step_gradient_scale
from quantsr.quant.kernels import MIN_STEP
from quantsr.quant.quantizers import QUANTIZER_REGISTRY, Granularity, Quantizer
from quantsr.quant.rlq_quantizer import RLQActivation, RLQWeight
from quantsr.quant.uniform import straight_through


def bitwise_codes(position: Tensor, scales: Tensor, offsets: Tensor) -> Tensor:
    """Codes ``-2^(b-1)..2^(b-1) - 1`` of weights, bit by bit from the highest one.

    With ``w' = -2 position``: ``z_i = (w' - 1 - sum_{j>i} q_j 2^j s_j) s_i - beta_i``, ``q_i = 1``
    where ``z_i >= 0`` and -1 elsewhere, and the code is ``-((sum_i q_i 2^i - 1) / 2 + 1)``. The
    gradient of ``q_i`` is that of ``tanh(z_i)``.

    Args:
        position: ``w / alpha``, any shape.
        scales, offsets: (b,) ``s`` and ``beta``, the lowest bit first.
    """
    rest = -2 * position - 1
    total = torch.zeros_like(position)
    for i in reversed(range(len(scales))):
        z = rest * scales[i] - offsets[i]
        bit = straight_through(torch.where(z >= 0, 1.0, -1.0).to(z.dtype), torch.tanh(z))
        total = total + bit * 2**i
        rest = rest - bit * 2**i * scales[i]
    return -((total - 1) / 2 + 1)


class RBDWeight(RLQWeight):
    """``w_q = alpha * code``, the codes by :func:`bitwise_codes`; ``alpha`` is the step.

    ``s_i = 1`` and ``beta_i = 0`` at first, when codes are those of RLQ but for ties; they are
    learned for each bit of a layer, and decide where a code ends, but not what it stands for, so
    that weights have integer codes. The formula's own go from ``1 - 2^(b-1)`` to ``2^(b-1)``, which
    b bits do not hold; here it is applied to ``-w``, and its codes are negated. The gradients of
    ``alpha``, ``s`` and ``beta`` are scaled by LSQ's ``g``, the first step is that of RLQ.
    """

    def __init__(self, *, bits: int, out_channels: int, granularity: Granularity = "tensor") -> None:
        super().__init__(bits=bits, out_channels=out_channels, granularity=granularity)
        self.bit_scale = nn.Parameter(torch.ones(bits))
        self.bit_offset = nn.Parameter(torch.zeros(bits))

    def unit(self, name: str) -> float:
        """As the base class; scales and offsets count half steps."""
        return super().unit(name) if name == "step" else 1.0

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        """The step as RLQ; scales 1 and offsets 0."""
        super().calibrate(weight)
        self.bit_scale.fill_(1.0)
        self.bit_offset.fill_(0.0)

    def quantize(self, weight: Tensor, dtype: torch.dtype) -> QuantizedWeight:
        self._require_calibrated()
        shared = weight.numel() // self.step.numel()
        step = _scaled(self.step.clamp_min(MIN_STEP), self.step, shared, self.range.qmax)
        step = step if step.numel() == 1 else step.view(-1, *[1] * (weight.dim() - 1))
        scale, offset = (
            _scaled(p, p, weight.numel(), self.range.qmax) for p in (self.bit_scale, self.bit_offset)
        )
        codes = bitwise_codes(weight / step, scale, offset)
        return QuantizedWeight(codes * step, codes.detach().to(dtype), step.detach())


def _scaled(values: Tensor, parameter: Tensor, numel: int, qmax: int) -> Tensor:
    """``values`` with the gradient of ``parameter``, scaled as that of LSQ's step."""
    return straight_through(values, parameter * step_gradient_scale(numel, qmax))


class RBDActivation(RLQActivation):
    """RLQ's activation quantizer with a straight-through gradient of rounding."""

    soft = False


@QUANTIZER_REGISTRY.register()
class RBD(Quantizer):
    """Weights bit by bit; activations as RLQ, with a straight-through round."""

    weight = RBDWeight
    activation = RBDActivation
