"""Convolutions of the integer reference: plain integer arithmetic on PyTorch, exact.

Why float32 matrix products are exact integer sums here: codes and weights are integers of at most 9
bits, so every product is an integer, and as long as no partial sum can exceed 2**24
(`FoldedConv.sum_bound`) every one of them is a float32 without rounding, in whatever order and with
or without fused multiply-add. Otherwise float64 is used, exact to 2**53. The conv is written as
unfold and matrix product because a conv kernel may transform its operands (Winograd), which would
round. TF32 keeps 11 significant bits, so it would be exact as well.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from quantsr.deploy.fold import FoldedConv, FoldedNet, FromPixels

Image = np.ndarray

EXACT_FLOAT32 = 2**24
_STRIP_VALUES = 2**25  # unfolded values held at once, 128 MB of float32


@torch.inference_mode()
def run_folded(net: FoldedNet, image: Image) -> Image:
    """Upscale a uint8 RGB picture (H, W, 3) to uint8 (H*s, W*s, 3) by a folded QuantSR-C."""
    start = head(net, image)
    stream = _times(start, net.gap)
    for block in net.blocks:
        branch = conv(block.conv2, conv(block.conv1, stream))
        stream = _times(stream * float(block.shortcut) + branch, block.gap)
    x = conv(net.conv_after_body, stream) + start
    for layer in net.tail:
        x = conv(layer, x)
    return x[0].permute(1, 2, 0).to(torch.uint8).numpy()  # (H*s, W*s, 3)


def head(net: FromPixels, image: Image) -> Tensor:
    """The first conv on a uint8 picture (H, W, 3): (1, C, H, W)."""
    # (1, 3, H, W)
    x = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].to(torch.float32)
    if not net.pixels_are_codes:
        x = (x / 255 - _channels(net.mean)) * float(net.img_range)
    return conv(net.head, x)


def _times(x: Tensor, factors: Iterable[np.float32]) -> Tensor:
    for factor in factors:
        x = x * float(factor)
    return x


def conv(layer: FoldedConv, x: Tensor) -> Tensor:
    """One folded conv on (1, I, H, W), float values or integer-valued codes; returns (1, O,
    H*shuffle, W*shuffle) float32."""
    if layer.codes_in is not None:
        x = codes(layer, x)
        if layer.zero_point is not None:
            x = x - _channels(layer.zero_point)
    y = sums(x, layer) * _channels(layer.multiplier) + _channels(layer.bias)
    if layer.codes_out is not None:
        if layer.low is not None:
            y = torch.maximum(y, _channels(layer.low))
        y = y.round().clamp(*layer.codes_out)
    elif layer.relu:
        y = y.relu()
    return F.pixel_shuffle(y, layer.shuffle) if layer.shuffle > 1 else y


def codes(layer: FoldedConv, x: Tensor) -> Tensor:
    """The integer codes that `layer` reads of `x`, as float32; codes stay as they are."""
    assert layer.codes_in is not None
    if layer.step is not None and layer.tau is not None:
        x = (x + _channels(layer.tau)) / _channels(layer.step)
    return x.clamp(*layer.codes_in).round()


def sums(x: Tensor, layer: FoldedConv) -> Tensor:
    """The conv of (1, I, H, W) codes or float values, without multiplier and bias: as float32,
    exact or rounded to it once.

    Integer sums are exact. Those of a layer that is not fully integer are taken in float64, so that
    no order of summation shows.
    """
    exact = torch.float32 if layer.integer and layer.sum_bound < EXACT_FLOAT32 else torch.float64
    weight = torch.tensor(layer.weight).to(exact).flatten(1)  # (O, I*k*k)
    size = layer.weight.shape[-1]
    height, width = x.shape[-2:]
    padded = F.pad(x, [size // 2] * 4)  # codes are padded with 0, after quantization
    rows = max(1, _STRIP_VALUES // (weight.shape[1] * width))
    strips = []
    for top in range(0, height, rows):
        strip = padded[:, :, top : top + rows + size - 1]
        columns = F.unfold(strip, size)[0].to(exact)  # (I*k*k, rows*W)
        strips.append((weight @ columns).view(1, len(weight), -1, width))  # (1, O, rows, W)
    return torch.cat(strips, 2).to(torch.float32)


def _channels(values: np.ndarray) -> Tensor:
    """(C,) as (1, C, 1, 1) float32."""
    return torch.from_numpy(np.asarray(values, np.float32)).view(1, -1, 1, 1)
