"""Two learned bounds of activations, as DDTB, ODM and 2DQuant have them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from quantsr.quant import functional
from quantsr.quant.autograd import ActivationQuant, fake_quantize_activation
from quantsr.quant.kernels import MIN_STEP, wide
from quantsr.quant.quantizers import Integers
from quantsr.quant.uniform import CalibrationStatistics, UniformActivation, straight_through
from quantsr.ranges import IntRange


class LearnedBoundsActivation(UniformActivation):
    """``a_q = s (q - z)`` with ``q = clip(round(a / s) + z, 0, n)``, ``n = 2^b - 1``.

    ``s = (alpha_u - alpha_l) / n``, ``z = clip(round(-alpha_l / s), 0, n)``.

    The bounds ``alpha_l`` and ``alpha_u`` start where the subclass finds them, and are learned;
    `train.initial_steps` has no effect. Rounding is straight-through, that of the zero point ``z``
    too. So the gradient of ``alpha_u`` is 1 above the range, that of ``alpha_l`` 1 below it, and
    within it ``alpha_u`` receives ``(round(a / s) - a / s) / n`` and ``alpha_l`` the opposite.
    Both are scaled by LSQ's ``g``.

    The parameters are the bounds in another unit, ``lower = alpha_l / n`` and ``upper =
    alpha_u / n``, so that ``step`` is their difference, and a learning rate moves a bound as far
    as it moves that of PAMS or PACT. The clip of ``z`` to the codes is this package's: 0, with
    which convolutions are padded, stays one of the levels where both bounds have one sign.

    Training runs on values, since its zero point is known to the device only; without gradients
    layers run on codes, as packed files do.
    """

    def _add_step(self, count: int) -> None:
        self.lower = nn.Parameter(torch.zeros(count))
        self.upper = nn.Parameter(torch.ones(count))

    @property
    def step(self) -> Tensor:  # type: ignore[override]
        """(1,) the distance of two levels."""
        return self.upper - self.lower

    def _sync(self) -> None:
        super()._sync()
        self.range = IntRange.of(self.bits, signed=False)

    @torch.no_grad()
    def fit(self, seen: CalibrationStatistics) -> None:
        """The bounds that `bounds` finds."""
        low, high = self.bounds(seen)
        self.lower.fill_(low / self.intervals)
        self.upper.fill_(max(high, low + self.intervals * MIN_STEP) / self.intervals)

    def bounds(self, seen: CalibrationStatistics) -> tuple[float, float]:
        """The first lower bound, at most 0, and the first upper one, at least 0."""
        raise NotImplementedError

    def zero_point(self) -> Tensor:
        """(1,) ``z``, no gradient."""
        step = self.step.detach().clamp_min(MIN_STEP)
        return (-self.intervals * self.lower.detach() / step).round().clamp(0, self.intervals)

    def clipping_range(self) -> tuple[Tensor, Tensor]:
        """(1,) the smallest and the largest level, no gradient."""
        step, zero = self.step.detach().clamp_min(MIN_STEP), self.zero_point()
        return -zero * step, (self.intervals - zero) * step

    def spec(self) -> ActivationQuant | None:
        """None where the bounds need gradients, for which there are no codes."""
        self._require_calibrated()
        learns = self.lower.requires_grad or self.upper.requires_grad
        return None if torch.is_grad_enabled() and learns else self._on_codes()

    def _on_codes(self) -> ActivationQuant:
        spec = self.affine(self.range, int(self.zero_point()))
        return spec._replace(step=self.step.detach())

    def integers(self) -> Integers:
        """As :class:`ActivationQuantizer`."""
        self._require_calibrated()
        return Integers(self._on_codes())

    @torch.no_grad()
    def load_integers(self, *, step: Tensor, tau: Tensor, codes: IntRange) -> None:
        """As :class:`ActivationQuantizer`; the bounds give this step to the last bit."""
        exact = float(step)
        # Multiples of the step's last bit: in FP32 neither the sum nor the difference is rounded.
        last_bit = 2.0 ** (math.floor(math.log2(exact)) - 23)
        lower = round(codes.qmin * exact / self.intervals / last_bit) * last_bit
        self.lower.fill_(lower)
        self.upper.fill_(lower + exact)
        self.signed.fill_(codes.qmin < 0)
        self._mark_calibrated()
        self._require_codes(self._on_codes(), tau, codes)

    def forward(self, x: Tensor) -> Tensor:
        """Fake-quantized ``x``; its shape and type."""
        if self.spec() is not None:
            return super().forward(x)
        zero, n = self.zero_point(), self.intervals
        # Not rounded, the level of code z would be alpha_l + z s instead of 0.
        level = zero * self.upper + (n - zero) * self.lower
        level = level * functional.input_step_gradient_scale(x.numel(), n)
        level = straight_through(torch.zeros_like(level), level)
        spec = self.affine(self.range)._replace(
            tau=-level.expand(self.channels), limits=(-zero[0], n - zero[0])
        )
        # The gradient of `level`: 1 from the sum, -1 from tau where the range does not clip.
        return (fake_quantize_activation(wide(x), spec) + level).to(x.dtype)
