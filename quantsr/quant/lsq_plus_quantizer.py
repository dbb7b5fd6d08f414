"""LSQ+ (Bhalgat et al., "LSQ+: Improving low-bit quantization through learnable offsets and better initialization", 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantsr.quant import functional
from quantsr.quant.autograd import fake_quantize_activation
from quantsr.quant.kernels import MIN_STEP, wide
from quantsr.quant.quantizers import QUANTIZER_REGISTRY, Quantizer
from quantsr.quant.rlq_quantizer import LSQWeight
from quantsr.quant.uniform import FRACTIONS, Seen, UniformActivation, least_error, straight_through
from quantsr.ranges import IntRange


class LSQPlusActivation(UniformActivation):
    """``a_q = s round(clip((a - beta) / s, 0, 2^b - 1)) + beta``, ``s`` and ``beta`` learned ("Learnable asymmetric quantization").

    Gradients are the paper's: of ``s`` ``round(u) - u`` within the range, 0 below and ``2^b - 1`` above, of ``beta`` 0
    within and 1 beyond, both scaled by LSQ's ``g``. The step is used as ``max(s, MIN_STEP)``, so it stays positive.
    ``beta`` is one per tensor and starts at the lower bound: 0 for inputs that are never negative. Both start where the
    squared error over the calibration batches is least, as in the paper, here among parts of the smallest and the largest
    value, and whichever way `train.initial_steps` names.

    The offset moves the padding of a convolution, which is 0, off the levels: inputs run on values, packed files have no
    place for ``beta``, and export refuses.
    """

    def __init__(self, *, bits: int, channels: int, channel_dim: int) -> None:
        super().__init__(bits=bits, channels=channels, channel_dim=channel_dim)
        self.beta = nn.Parameter(torch.zeros(1))

    @torch.no_grad()
    def fit(self, seen: Seen) -> None:
        """Step and offset of the bounds of least squared error: the upper one, then the lower, and both again."""
        n = self.intervals
        low, high = seen.low, seen.high

        def between(x: Tensor, bounds: tuple[float, float]) -> Tensor:
            step = torch.tensor(max((bounds[1] - bounds[0]) / n, MIN_STEP))
            return functional.fake_quantize(x - bounds[0], step, 0, n) + bounds[0]

        for _ in range(2):
            low, high = least_error(seen.sample, ((low, seen.high * f) for f in FRACTIONS), between)
            if seen.low < 0:
                low, high = least_error(seen.sample, ((seen.low * f, high) for f in FRACTIONS), between)
        self.step.fill_(max((high - low) / n, MIN_STEP))
        self.beta.fill_(low)

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantized ``x``; its shape and type."""
        spec = self.affine(IntRange.of(self.bits, signed=False))
        scaled = self.beta * functional.step_gradient_scale(x.numel(), spec.range.qmax)
        beta = straight_through(self.beta, scaled)
        # The gradient of beta: 1 from the sum, -1 from the difference where the range does not clip.
        return (fake_quantize_activation(wide(x) - beta, spec) + beta).to(x.dtype)


@QUANTIZER_REGISTRY.register()
class LSQPlus(Quantizer):
    """Learned step and offset for activations; weights as in LSQ, its initial step included."""

    weight = LSQWeight
    activation = LSQPlusActivation
