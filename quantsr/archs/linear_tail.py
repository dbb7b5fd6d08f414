"""The linear tail of EDSR-shaped networks as one convolution at low resolution, for training.

Behind the body nothing is non-linear: upsampler, pixel shuffles and `conv_last` compose to one 5x5
convolution from the features to the ``r * r`` pixels of every low-resolution position. At x4 with
64 channels that is 77k instead of 766k multiplications per position, and no tensor with many
channels exists at high resolution. Gradients reach the layers' own weights through the composition.
(`quantsr.deploy.passes.collapse` does the same to folded networks, without torch.)

Shapes: B batch, C channels of the features, O of the picture, h and w of the low-resolution
picture, r the upscaling factor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RADIUS = 2
"""Positions that the composition sees on each side, at any r above 1."""
SIDE = 2 * RADIUS + 1


class Stage(NamedTuple):
    """A 3x3 convolution with one zero on each side, and the pixel shuffle behind it (1: none)."""

    conv: nn.Conv2d
    shuffle: int


def stages(layers: Iterable[nn.Module]) -> list[Stage]:
    """The stages of a tail, e.g. of BasicSR's ``Upsample`` and the convolution behind it."""
    found: list[Stage] = []
    for layer in layers:
        if isinstance(layer, nn.PixelShuffle):
            found[-1] = found[-1]._replace(shuffle=layer.upscale_factor)
        elif not isinstance(layer, nn.Identity):
            assert isinstance(layer, nn.Conv2d)
            found.append(Stage(layer, 1))
    return found


def pays(tail: Sequence[Stage], features: Tensor) -> bool:
    """Whether `run` is cheaper than the layers: composing costs about 64 positions per channel."""
    batch, channels, height, width = features.shape
    return len(tail) > 1 and min(height, width) > SIDE and batch * height * width > 64 * channels


class Composed(NamedTuple):
    """The tail away from the borders, to be used for several features."""

    weight: Tensor
    """(O * r * r, C, 5, 5)"""
    bias: Tensor
    """(O * r * r,)"""
    factor: int


def compose(tail: Sequence[Stage]) -> Composed:
    """The kernel of the whole tail: its answer to an impulse in each channel, and to zeros."""
    channels = tail[0].conv.in_channels
    factor = 1
    for stage in tail:
        factor *= stage.shuffle
    weight = tail[0].conv.weight  # (M, C, 3, 3), M channels behind the first convolution
    # The first convolution's response to centred impulses in 5x5 zeros is its flipped kernel.
    response = F.pad(weight.transpose(0, 1).flip(2, 3), (1, 1, 1, 1))  # (C, M, 5, 5): impulses are the batch
    response = F.pixel_shuffle(response, tail[0].shuffle)  # (C, M / s^2, 5 * s, 5 * s), s the first factor
    rest = torch.zeros(1, channels, SIDE, SIDE, device=weight.device, dtype=weight.dtype)
    rest = F.pixel_shuffle(F.conv2d(rest, weight, tail[0].conv.bias, padding=1), tail[0].shuffle)
    for conv, shuffle in tail[1:]:
        response = F.pixel_shuffle(F.conv2d(response, conv.weight, padding=1), shuffle)
        rest = F.pixel_shuffle(F.conv2d(rest, conv.weight, conv.bias, padding=1), shuffle)
    colours = response.shape[1]  # response is (C, O, 5 * r, 5 * r), rest (1, O, 5 * r, 5 * r)
    kernel = response.reshape(channels, colours, SIDE, factor, SIDE, factor)  # (C, O, 5, r, 5, r)
    # (O, r, r, C, 5, 5) to (O * r * r, C, 5, 5)
    kernel = kernel.permute(1, 3, 5, 0, 2, 4).flip(4, 5).reshape(-1, channels, SIDE, SIDE)
    middle = slice(RADIUS * factor, (RADIUS + 1) * factor)
    return Composed(kernel, rest[0, :, middle, middle].reshape(-1), factor)  # bias: (O, r, r) to (O * r * r,)


def run(tail: Sequence[Stage], composed: Composed, features: Tensor) -> Tensor:
    """The tail on features (B, C, h, w), h and w at least 3: (B, O, r*h, r*w).

    Equal to the output of the layers up to rounding.

    The outermost ring of positions is computed layer by layer: there the zeros around every layer's
    input make a difference.
    """
    r = composed.factor
    whole = F.conv2d(
        features, composed.weight.to(features.dtype), composed.bias.to(features.dtype), padding=RADIUS
    )
    inner = F.pixel_shuffle(whole, r)[:, :, r:-r, r:-r]
    edge = RADIUS + 1
    left = _edge(tail, features[..., :edge], (1, 0, 1, 1))[..., :r]
    right = _edge(tail, features[..., -edge:], (0, 1, 1, 1))[..., -r:]
    top = _edge(tail, features[:, :, :edge], (1, 1, 1, 0))[:, :, :r]
    bottom = _edge(tail, features[:, :, -edge:], (1, 1, 0, 1))[:, :, -r:]
    middle = torch.cat([left[:, :, r:-r], inner, right[:, :, r:-r]], 3)
    return torch.cat([top, middle, bottom], 2)


def _edge(tail: Sequence[Stage], x: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    """The layers on three rows or columns at a border, cropped by one towards the inside."""
    for conv, shuffle in tail:
        x = F.conv2d(F.pad(x, padding), conv.weight, conv.bias)
        x = F.pixel_shuffle(x, shuffle) if shuffle > 1 else x
    return x
