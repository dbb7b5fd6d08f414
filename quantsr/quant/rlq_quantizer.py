"""RLQ, QuantSR's quantizer, and LSQ, which is RLQ without redistribution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantsr.quant import functional
from quantsr.quant.autograd import ActivationQuant, QuantizedWeight, quantize_weight
from quantsr.quant.kernels import MIN_STEP
from quantsr.quant.quantizers import QUANTIZER_REGISTRY, ActivationQuantizer, Quantizer, WeightQuantizer
from quantsr.ranges import IntRange


class RLQWeight(WeightQuantizer):
    """QuantSR's weight quantizer ``v * round(clip(w / v, Qn, Qp))``, ``v`` learned."""

    soft = True

    @torch.no_grad()
    def calibrate(self, weight: Tensor) -> None:
        """``v = 2 mean|w| / sqrt(Qp)``, over the tensor or each output channel."""
        rows = weight.reshape(self.step.numel(), -1)
        step = functional.initial_step(rows.abs().mean(1), self.range.qmax).clamp_min(MIN_STEP)
        if self.search_step:
            step = functional.least_error_step(
                functional.step_errors(rows, step, self.range.qmin, self.range.qmax), step
            )
        self.step.copy_(step)
        self._mark_calibrated()

    def quantize(self, weight: Tensor, dtype: torch.dtype) -> QuantizedWeight:
        self._require_calibrated()
        return quantize_weight(weight, self.step, self.range, self.soft, dtype)


class RLQActivation(ActivationQuantizer):
    """QuantSR's activation quantizer: ``v * round(clip((a + tau) / v, Qn, Qp))``.

    ``v`` is learned per tensor, ``tau`` per channel.

    The sign of the range is decided by the first calibration batch and kept (section 3.2;
    ``ours_operator.py``).
    """

    soft = True
    redistribute = True

    def __init__(self, *, bits: int, channels: int, channel_dim: int) -> None:
        super().__init__(bits=bits, channels=channels, channel_dim=channel_dim)
        self._add_step(1)
        tau = torch.zeros(channels)
        self.tau: Tensor
        if self.redistribute:
            self.tau = nn.Parameter(tau)
        else:
            self.register_buffer("tau", tau, persistent=False)

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Set sign and step from the mean of ``|a + tau|`` over all batches since `reset`."""
        shape = [1] * x.dim()
        shape[self.channel_dim] = -1
        shifted = x.float() + self.tau.reshape(shape)
        seen = self._statistics
        if not seen and not self.sign_fixed:
            self.signed.fill_(bool(shifted.min() < -functional.SIGN_TOLERANCE))
        seen["sum"] = (
            seen.get("sum", torch.zeros((), dtype=torch.float64)) + shifted.abs().mean().double().cpu()
        )
        seen["count"] = seen.get("count", torch.zeros(())) + 1
        self._mark_calibrated()
        mean = (seen["sum"] / seen["count"]).float()
        step = functional.initial_step(mean, self.range.qmax).clamp_min(MIN_STEP)
        if self.search_step:
            errors = functional.step_errors(
                functional.sample(shifted), step.to(shifted.device), self.range.qmin, self.range.qmax
            ).cpu()
            seen["errors"] = seen.get("errors", torch.zeros(())) + errors
            step = functional.least_error_step(seen["errors"], step)
        self.step.copy_(step.reshape(1))

    def spec(self) -> ActivationQuant:
        self._require_calibrated()
        return ActivationQuant(self.tau, self.step, self.range, self.soft, self.channel_dim)

    @torch.no_grad()
    def load_integers(self, *, step: Tensor, tau: Tensor, codes: IntRange) -> None:
        """As :class:`ActivationQuantizer`."""
        if self.redistribute:
            self.tau.copy_(tau)
        super().load_integers(step=step, tau=tau, codes=codes)


class LSQWeight(RLQWeight):
    """LSQ's weight quantizer (Esser et al., 2020): RLQ's with a straight-through gradient."""

    soft = False


class LSQActivation(RLQActivation):
    """LSQ's activation quantizer: RLQ's without ``tau``, with a straight-through gradient."""

    soft = False
    redistribute = False


@QUANTIZER_REGISTRY.register()
class RLQ(Quantizer):
    """Redistribution-driven learnable quantizer (QuantSR, NeurIPS 2023, section 3.2)."""

    weight = RLQWeight
    activation = RLQActivation


@QUANTIZER_REGISTRY.register()
class LSQ(Quantizer):
    """Learned step size quantization (Esser et al., ICLR 2020)."""

    weight = LSQWeight
    activation = LSQActivation
