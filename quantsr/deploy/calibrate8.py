"""Eight-bit steps for the layers that training left in float: weights per output channel, inputs per tensor after equalization.

Weights take the step of least squared error. Input channels differ in range, so channel c is divided by `equal[c] = sqrt(peak[c] / max(peak))`,
which its weights are multiplied by: folding makes that free, and half of the difference (on a log scale) goes to either operand. Then `max` takes the
step that clips nothing that was seen, `mse` that of least squared error. On the float EDSR of 16 blocks at x4 `max` after equalization leaves the squared error
of `mse` without it (0.2 of 255^2), but 0.06 % instead of 0.18 % of the output values off by more than 1: what is clipped shows. So it is the default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quantsr.deploy.model import Codes, Float, code_range

Method = Literal["max", "mse"]

_QMIN, _QMAX = code_range(8, signed=True)
_SAMPLES_PER_CALL = 20_000
_LEAST_EQUAL = 0.01
_HISTOGRAM_BINS = 4096
_ACT_CANDIDATES = np.linspace(0.2, 1.0, 161)
_WEIGHT_CANDIDATES = np.linspace(0.6, 1.0, 41)


@dataclass(frozen=True, eq=False)
class InputChoice:
    """What calibration chose for one layer's input."""

    name: str
    step: float
    equal: Float
    """(C,) what each channel's step is multiplied by."""
    peak: float
    """Largest magnitude seen."""
    clipped: float
    """Share of the values that the steps clip."""
    error: float
    """Root mean square of the rounding and clipping error over that of the values."""

    def __str__(self) -> str:
        return (
            f"{self.name}: steps {self.step * self.equal.min():.3g} to {self.step * self.equal.max():.3g}, largest value seen {self.peak:.4g}, "
            f"{100 * self.clipped:.3f} % clipped, relative error {100 * self.error:.2f} %"
        )


@dataclass
class _Samples:
    values: list[Float] = field(default_factory=list)
    peaks: Float | None = None


def choose_weight_steps(weight: Float) -> Float:
    """(O,) steps of signed 8-bit codes, each the least squared error over a grid of limits up to the channel's largest weight."""
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    full = np.maximum(np.abs(rows).max(1), 1e-12) / _QMAX
    best, least = full.copy(), np.full(len(rows), np.inf)
    for share in _WEIGHT_CANDIDATES[::-1]:
        step = (full * share)[:, None]
        error = ((np.clip(np.rint(rows / step), _QMIN, _QMAX) * step - rows) ** 2).sum(1)
        better = error < least
        best[better], least[better] = step[better, 0], error[better]
    return best.astype(np.float32)


def quantize_weight(weight: Float, step: Float) -> Codes:
    """Signed 8-bit codes of (O, ...) with (O,) steps."""
    scaled = weight / step.reshape(-1, *[1] * (weight.ndim - 1))
    return np.clip(np.rint(scaled), _QMIN, _QMAX).astype(np.int8)


def choose_input(name: str, values: Float, peaks: Float, method: Method = "max") -> InputChoice:
    """Steps of signed 8-bit codes for an input.

    Args:
        values: (C, n) sample of each channel.
        peaks: (C,) largest magnitude seen in each.
    """
    peak = float(peaks.max())
    if not peak > 0:
        return InputChoice(name, 1.0, np.ones_like(peaks), 0.0, 0.0, 0.0)
    equal = np.maximum(np.sqrt(peaks / peak), _LEAST_EQUAL).astype(np.float32)
    level = values / equal[:, None]
    largest = float((peaks / equal).max())
    step = largest / _QMAX if method == "max" else _least_squares_step(level, largest)
    error = (np.clip(np.rint(level / step), _QMIN, _QMAX) * step - level) * equal[:, None]
    relative = float(np.sqrt((error**2).mean() / max(float((values**2).mean()), 1e-30)))
    return InputChoice(
        name, step, equal, peak, float((np.abs(level) > step * (_QMAX + 0.5)).mean()), relative
    )


def _least_squares_step(values: Float, largest: float) -> float:
    """The best of a grid of limits up to `largest`, on a histogram, so that the cost does not depend on how many values there are."""
    counts, edges = np.histogram(np.abs(values), bins=_HISTOGRAM_BINS, range=(0, largest))
    centres = (edges[:-1] + edges[1:]) / 2
    steps = _ACT_CANDIDATES[:, None] * largest / _QMAX
    errors = ((np.minimum(np.rint(centres / steps), _QMAX) * steps - centres) ** 2) @ counts
    return float(steps[errors.argmin(), 0])


@torch.no_grad()
def observe_inputs(
    net: nn.Module, names: Sequence[str], pictures: Sequence[NDArray[np.uint8]], depths: Sequence[int]
) -> dict[str, tuple[Float, Float]]:
    """Inputs of the named convs over uint8 (H, W, 3) `pictures`, at every depth: (C, n) sample of the values, (C,) largest magnitudes."""
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
            x = torch.tensor(picture, device=device).permute(2, 0, 1)[None].float() / 255  # (1, 3, H, W)
            for depth in depths:
                net(x, depth=depth)
    finally:
        net.train(was_training)
        for handle in handles:
            handle.remove()
    found = {}
    for name, samples in seen.items():
        assert samples.peaks is not None
        found[name] = (np.concatenate(samples.values, 1), samples.peaks)
    return found
