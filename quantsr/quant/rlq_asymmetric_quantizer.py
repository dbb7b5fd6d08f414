"""RLQ with a zero point: codes from ``-z`` to ``2^b - 1 - z``, for inputs of both signs that are
mostly positive, such as those behind SiLU, GELU and PReLU."""

from __future__ import annotations

import torch
from torch import Tensor

from quantsr.quant.quantizers import QUANTIZER_REGISTRY, Quantizer
from quantsr.quant.rlq_quantizer import RLQActivation, RLQWeight
from quantsr.ranges import IntRange


class AsymmetricRLQActivation(RLQActivation):
    """RLQ's activation quantizer with codes from ``-z`` to ``2^b - 1 - z``.

    ``z`` is 0 for inputs that are never negative and ``2^(b-1)``, as RLQ has it, for symmetric
    ones. The first calibration batch decides it by its extremes, or `fix_zero_point`.
    """

    zero_point: Tensor

    def __init__(self, *, bits: int, channels: int, channel_dim: int) -> None:
        super().__init__(bits=bits, channels=channels, channel_dim=channel_dim)
        self.register_buffer("zero_point", torch.tensor(2 ** (bits - 1)))
        self._sync()

    def fix_zero_point(self, zero_point: int) -> None:
        """Decide ``z``, 0 to ``2^b - 1``, here instead of by calibration."""
        self.zero_point.fill_(zero_point)
        self.fix_sign(zero_point > 0)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """As RLQ; ``z`` from the extremes of the first batch since `reset`."""
        if not self._statistics and not self.sign_fixed:
            low, high = float(x.min().clamp_max(0)), float(x.max().clamp_min(0))
            share = -low / (high - low) if high > low else 0.0
            self.zero_point.fill_(round(share * (2**self.bits - 1)))
            self.signed.fill_(bool(self.zero_point > 0))
            self._sync()
        fixed, self.sign_fixed = self.sign_fixed, True
        super().observe(x)
        self.sign_fixed = fixed

    @torch.no_grad()
    def load_integers(self, *, step: Tensor, tau: Tensor, codes: IntRange) -> None:
        """As :class:`ActivationQuantizer`."""
        self.zero_point.fill_(-codes.qmin)
        super().load_integers(step=step, tau=tau, codes=codes)

    def _sync(self) -> None:
        super()._sync()
        if "zero_point" in self._buffers:  # not yet in the base's constructor
            self.range = IntRange.of(self.bits, signed=False).shifted(-int(self.zero_point))


@QUANTIZER_REGISTRY.register()
class RLQAsymmetric(Quantizer):
    """RLQ whose activations have a zero point."""

    weight = RLQWeight
    activation = AsymmetricRLQActivation
