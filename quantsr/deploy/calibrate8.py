"""Steps for the layers that training left in float: 8-bit weights and, after equalization, inputs
of 16 bits.

Weights take a step for every output channel, from its largest weight. In a network of 16 residual
blocks at x4 (the shipped `quantsr_c_x4_w4a4`) that costs 79 kB of 885 against one step for a layer,
and puts 99.96 % of the output values within 1 of the training network's, not 99.64; steps of least
squared error, which clip, leave fewer of them equal (84, not 89 %).

Input channels differ in range, so channel c is divided by `equal[c] = sqrt(peak[c] / max(peak))`,
which its weights are multiplied by: folding makes that free, and half of the difference (on a log
scale) goes to either operand. With 16-bit inputs no rounding shows, where 8-bit ones put 0.1 to 0.6
% of the output values off by more than 1 of 255; so half of their range is left for values larger
than any seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantsr.archs.dqa import DepthDynamic
from quantsr.deploy.packed.model import Codes, Float
from quantsr.deploy.passes.rounding import rounded_with_sums
from quantsr.ranges import IntRange

_QMIN, _QMAX = IntRange.of(8, signed=True).bounds
_SAMPLES_PER_CALL = 20_000
_HEADROOM = 2.0
_LEAST_EQUAL = 0.01


@dataclass(frozen=True, eq=False)
class InputChoice:
    """What calibration chose for one layer's input."""

    name: str
    step: float
    equal: Float
    """(C,) what each channel's step is multiplied by."""
    peak: float
    """Largest magnitude seen."""
    error: float
    """Root mean square of the rounding error over that of the values."""

    def __str__(self) -> str:
        return (
            f"{self.name}: steps {self.step * self.equal.min():.3g} to {self.step * self.equal.max():.3g}, largest value seen {self.peak:.4g}, "
            f"relative error {100 * self.error:.4f} %"
        )


@dataclass
class _Samples:
    values: list[Float] = field(default_factory=list)
    peaks: Float | None = None


def choose_weight_steps(weight: Float) -> Float:
    """(O,) steps of signed 8-bit codes, one for each output channel, that clip nothing."""
    largest = np.abs(weight).reshape(len(weight), -1).max(1)
    steps: Float = np.maximum(largest, np.float32(1e-12)) / np.float32(_QMAX)
    return steps


def quantize_weight(weight: Float, step: Float) -> Codes:
    """Signed 8-bit codes of (O, I, kh, kw) with (O,) steps: rounded so that the sum of every kernel
    is kept to half a step.

    See :func:`~quantsr.deploy.passes.rounding.rounded_with_sums`.
    """
    codes = rounded_with_sums(weight / step.reshape(-1, *[1] * (weight.ndim - 1)))
    return np.clip(codes, _QMIN, _QMAX).astype(np.int8)


def choose_input(name: str, values: Float, peaks: Float) -> InputChoice:
    """Steps of signed 16-bit codes for an input that clip no value of up to twice the largest seen.

    Args:
        values: (C, n) sample of each channel.
        peaks: (C,) largest magnitude seen in each.
    """
    peak = float(peaks.max())
    if not peak > 0:
        return InputChoice(name, 1.0, np.ones_like(peaks), 0.0, 0.0)
    equal = np.maximum(np.sqrt(peaks / peak), _LEAST_EQUAL).astype(np.float32)
    level = values / equal[:, None]
    largest = float((peaks / equal).max())
    qmin, qmax = IntRange.of(16, signed=True, wide=True).bounds
    step = _HEADROOM * largest / qmax
    error = (np.clip(np.rint(level / step), qmin, qmax) * step - level) * equal[:, None]
    relative = float(np.sqrt((error**2).mean() / max(float((values**2).mean()), 1e-30)))
    return InputChoice(name, step, equal, peak, relative)


@torch.no_grad()
def observe_inputs(
    net: nn.Module, names: Sequence[str], pictures: Sequence[NDArray[np.uint8]], depths: Sequence[int]
) -> dict[str, tuple[Float, Float]]:
    """Inputs of the named convs over uint8 (H, W, 3) `pictures`, at every depth: (C, n) sample of
    the values, (C,) largest magnitudes."""
    seen = {name: _Samples() for name in names}

    def hook(name: str) -> Callable[..., None]:
        def observe(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            rows = inputs[0].detach().float().transpose(0, 1).flatten(1)  # (C, B*H*W)
            peaks = rows.abs().amax(1).cpu().numpy()
            samples = seen[name]
            samples.peaks = peaks if samples.peaks is None else np.maximum(samples.peaks, peaks)
            stride = (
                max(1, rows.numel() // _SAMPLES_PER_CALL) | 1
            )  # odd, to fall out of step with the phases of a pixel shuffle
            samples.values.append(rows[:, ::stride].cpu().numpy())

        return observe

    handles = [net.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    device = next(net.parameters()).device
    was_training = net.training
    net.eval()
    try:
        for picture in pictures:
            # (1, 3, H, W)
            x = torch.tensor(picture, device=device).permute(2, 0, 1)[None].float() / 255
            for depth in depths:
                net(x, depth=depth) if isinstance(net, DepthDynamic) else net(x)
    finally:
        net.train(was_training)
        for handle in handles:
            handle.remove()
    found = {}
    for name, samples in seen.items():
        assert samples.peaks is not None
        found[name] = (np.concatenate(samples.values, 1), samples.peaks)
    return found
