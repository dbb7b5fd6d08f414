"""LSQ+: quantization with a learned step and offset (Bhalgat et al., 2020, arXiv:2004.09576)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quantsr.quant import functional
from quantsr.quant.autograd import ActivationQuant, activation_codes, fake_quantize_activation
from quantsr.quant.kernels import MIN_STEP, wide
from quantsr.quant.quantizers import QUANTIZER_REGISTRY, Integers, Quantizer
from quantsr.quant.rlq_quantizer import LSQWeight
from quantsr.quant.uniform import (
    FRACTIONS,
    CalibrationStatistics,
    UniformActivation,
    least_error,
    straight_through,
)
from quantsr.ranges import IntRange


class LSQPlusActivation(UniformActivation):
    """``a_q = s round(clip((a - beta) / s, 0, 2^b - 1)) + beta``, ``s`` and ``beta`` learned.

    See "Learnable asymmetric quantization" in the paper.

    Gradients are the paper's: of ``s`` ``round(u) - u`` within the range, 0 below and ``2^b - 1``
    above, of ``beta`` 0 within and 1 beyond, both scaled by LSQ's ``g``. The step is used as
    ``max(s, MIN_STEP)``, so it stays positive. ``beta`` is one per tensor and starts at the lower
    bound: 0 for inputs that are never negative. Both start where the squared error over the
    calibration batches is least, as in the paper, here among parts of the smallest and the largest
    value, whatever `train.initial_steps` is.

    The offset is no multiple of the step, and the padding of a convolution, which is 0, is none of
    the levels: training runs on values. For packed files (:meth:`integers`) ``beta = delta - z s``
    with an integer zero point ``z``: codes are ``clip(round((a - delta) / s) + z, 0, 2^b - 1)``,
    and ``delta`` goes into the bias of the layer that reads them. A quantizer that was loaded from
    a packed file keeps that form, ``beta`` being ``delta``, and runs on codes.
    """

    zero_point: Tensor | None

    def __init__(self, *, bits: int, channels: int, channel_dim: int) -> None:
        super().__init__(bits=bits, channels=channels, channel_dim=channel_dim)
        self.beta = nn.Parameter(torch.zeros(1))
        self.register_buffer("zero_point", None)  # of a quantizer as trained, whose state has none
        self._zero_point: int | None = None
        self.levels = IntRange.of(bits, signed=False)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        self.zero_point = torch.tensor(0) if f"{prefix}zero_point" in state_dict else None
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _sync(self) -> None:
        super()._sync()
        # Mirror of the buffer, so that no forward waits for the device.
        self._zero_point = None if self.zero_point is None else int(self.zero_point)

    @torch.no_grad()
    def fit(self, seen: CalibrationStatistics) -> None:
        """Bounds of least squared error: the upper one, then the lower one, twice."""
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
        self.zero_point = None

    def spec(self) -> ActivationQuant | None:
        """Of a packed file's quantizer; None in training, which runs on values."""
        self._require_calibrated()
        if self._zero_point is None:
            return None
        tau = (-self.beta).expand(self.channels)
        return ActivationQuant(tau, self.step, self.levels, False, self.channel_dim, self._zero_point)

    def clipping_range(self) -> tuple[Tensor, Tensor] | None:
        """As :class:`ActivationQuantizer`, with the offset as trained."""
        if self._zero_point is not None:
            return super().clipping_range()
        low = self.beta.detach()
        return low, low + self.intervals * self.step.detach()

    @torch.no_grad()
    def integers(self) -> Integers:
        """The offset as an integer zero point and a remainder ``delta``.

        ``|delta|`` is at most half a step if 0 is within the levels.
        """
        spec = self.spec()
        if spec is not None:
            return Integers(spec)
        step = self.step.clamp_min(MIN_STEP)
        zero_point = int((-self.beta.double() / step.double()).round().clamp(*self.levels.bounds))
        delta = (self.beta.double() + zero_point * step.double()).to(self.beta.dtype)
        tau = (-delta).expand(self.channels)
        spec = ActivationQuant(tau, self.step, self.levels, False, self.channel_dim, zero_point)
        return Integers(spec, float(delta))

    @torch.no_grad()
    def load_integers(self, *, step: Tensor, tau: Tensor, codes: IntRange) -> None:
        """As :class:`ActivationQuantizer`; ``tau`` must be the same for all channels."""
        self.zero_point = torch.tensor(-codes.qmin, device=self.step.device)
        self.beta.copy_(-tau[:1])
        super().load_integers(step=step, tau=tau, codes=codes)

    @torch.no_grad()
    def codes(self, x: Tensor) -> Tensor:
        """As :class:`ActivationQuantizer`; in training their values are ``step * codes + beta``."""
        spec = self.spec()
        if spec is not None:
            return super().codes(x)
        shifted = wide(x) - self.beta
        return activation_codes(shifted, self.no_tau, self.step, self.affine(self.levels), torch.int16)

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantized ``x``; its shape and type."""
        if self._zero_point is not None:
            return super().forward(x)
        spec = self.affine(self.levels)
        scaled = self.beta * functional.input_step_gradient_scale(x.numel(), spec.range.qmax)
        beta = straight_through(self.beta, scaled)
        # The gradient of beta: 1 from the sum, -1 from the difference where the range does not
        # clip.
        return (fake_quantize_activation(wide(x) - beta, spec) + beta).to(x.dtype)


@QUANTIZER_REGISTRY.register()
class LSQPlus(Quantizer):
    """Learned step and offset for activations; weights as in LSQ, its initial step included."""

    weight = LSQWeight
    activation = LSQPlusActivation
