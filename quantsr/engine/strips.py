"""Large pictures in bounded memory: the network runs on overlapping strips of rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from quantsr.archs import contract

MAX_OUTPUT_PIXELS = 4_000_000
"""Largest number of upscaled pixels in one forward pass, for which a 64-channel x4 network needs
about 2.5 GB."""


def receptive_radius(net: nn.Module) -> int:
    """An upper bound of the radius of a convolutional network's receptive field, in LR pixels.

    The sum of all kernels' radii, which counts convolutions after an upsampling as if they were
    before it. For a transformer, whose attention has no such bound, it is an approximation: at
    least four windows.
    """
    radius = 0
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            radius += (max(module.kernel_size) // 2) * max(module.dilation)
    return max(radius, 8, 4 * contract.of(net).window)


def forward_in_strips(
    net: nn.Module,
    forward: Callable[[Tensor], tuple[Tensor, ...]],
    x: Tensor,
    scale: int,
    max_output_pixels: int = MAX_OUTPUT_PIXELS,
) -> tuple[Tensor, ...]:
    """``forward(x)``, in strips where the outputs have more than ``max_output_pixels`` pixels.

    Strips overlap by `receptive_radius` on each side, so that the values are those of the whole
    picture (up to the summation order of the convolution kernels). For a transformer strips begin
    at multiples of its window size, but values near the borders of strips depend on a smaller part
    of the picture than in a single pass.

    Args:
        x: ``(1, C, H, W)``.
        forward: to outputs ``(1, C, H * scale, W * scale)``.
    """
    height, width = x.shape[-2:]
    rows = max(max_output_pixels // (scale * scale * width), 1)
    if height <= rows:
        return forward(x)
    window = contract.of(net).window
    margin = -(-receptive_radius(net) // window) * window
    rows = max((rows - 2 * margin) // window * window, -(-32 // window) * window)
    pieces: list[tuple[Tensor, ...]] = []
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first, last = max(top - margin, 0), min(bottom + margin, height)
        outputs = forward(x[..., first:last, :])
        kept = slice((top - first) * scale, (bottom - first) * scale)
        pieces.append(tuple(output[..., kept, :].clone() for output in outputs))
    return tuple(torch.cat(parts, dim=-2) for parts in zip(*pieces, strict=True))
