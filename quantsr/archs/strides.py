"""Convolutions with a stride, transposed, dilated or oblong ones, as those that programs have: of
stride 1, behind PixelUnshuffle or before PixelShuffle, with square kernels."""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGEST_KERNEL = 31


class OfBlocks(nn.Sequential):
    """A convolution of blocks of pixels: PixelUnshuffle, and the convolution of stride 1."""

    def __init__(self, stride: int, conv: nn.Conv2d, more: int) -> None:
        """`more` is how many pixels beyond the map the last block may have and still count."""
        super().__init__(nn.PixelUnshuffle(stride), conv)
        self.stride, self.more = stride, more

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, O, (h + more) // s, (w + more) // s)."""
        height, width = x.shape[-2:]
        below, right = (-side % self.stride for side in (height, width))
        if not below and not right:
            return super().forward(x)
        found: Tensor = super().forward(F.pad(x, (0, right, 0, below)))
        return found[..., : (height + self.more) // self.stride, : (width + self.more) // self.stride]


def has_other_form(conv: nn.Module) -> bool:
    """Whether `of_stride_1` changes a module."""
    if isinstance(conv, nn.ConvTranspose2d):
        return _is_transposed(conv)
    return isinstance(conv, nn.Conv2d) and (_is_strided(conv) or _is_dilated(conv) or _is_oblong(conv))


@torch.no_grad()
def of_stride_1(conv: nn.Conv2d | nn.ConvTranspose2d) -> nn.Module:
    """What computes the same with a convolution of stride 1: behind PixelUnshuffle, before
    PixelShuffle, or alone in place of a dilated or oblong one."""
    stride = conv.stride[0]
    if isinstance(conv, nn.ConvTranspose2d):
        return nn.Sequential(_transposed(conv), nn.PixelShuffle(stride))
    if stride == 1:
        return _squared(conv) if _is_oblong(conv) else _dilated(conv)
    return OfBlocks(stride, _strided(conv), 2 * _pad(conv) - conv.kernel_size[0] + stride)


def _is_plain(conv: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    pairs = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    return conv.padding_mode == "zeros" and all(isinstance(x, tuple) and x[0] == x[1] for x in pairs)


def _pad(conv: nn.Conv2d | nn.ConvTranspose2d) -> int:
    """On each side; `_is_plain` refuses words."""
    return int(conv.padding[0])


def _is_strided(conv: nn.Conv2d) -> bool:
    """Whether it gives a pixel for every stride x stride pixels."""
    if not _is_plain(conv) or conv.dilation[0] > 1 or conv.stride[0] < 2:
        return False
    size, stride, pad = conv.kernel_size[0], conv.stride[0], _pad(conv)
    return size - stride <= 2 * pad < size


def _is_transposed(conv: nn.ConvTranspose2d) -> bool:
    """Whether it gives stride x stride pixels for each."""
    if not _is_plain(conv) or conv.dilation[0] > 1 or conv.groups > 1 or conv.stride[0] < 2:
        return False
    size, stride, (more, other) = conv.kernel_size[0], conv.stride[0], conv.output_padding
    return size + more - 2 * _pad(conv) == stride and more == other


def _is_dilated(conv: nn.Conv2d) -> bool:
    """Whether it gives a pixel for each, and its kernel with zeros between is none too large."""
    if not _is_plain(conv) or conv.dilation[0] == 1 or conv.stride[0] > 1:
        return False
    reach = (conv.kernel_size[0] - 1) * conv.dilation[0]
    return conv.kernel_size[0] % 2 == 1 and 2 * _pad(conv) == reach < LARGEST_KERNEL


def _is_oblong(conv: nn.Conv2d) -> bool:
    """Whether it gives a pixel for each, with a kernel of two different odd sides."""
    sides, pads = conv.kernel_size, conv.padding
    same = pads == "same" or pads == tuple(side // 2 for side in sides)
    plain = conv.padding_mode == "zeros" and conv.stride == conv.dilation == (1, 1)
    return plain and same and sides[0] != sides[1] and all(n % 2 and n <= LARGEST_KERNEL for n in sides)


def _squared(conv: nn.Conv2d) -> nn.Conv2d:
    """With zeros around its kernel."""
    rows, columns = conv.kernel_size
    side = max(rows, columns)
    above, left = (side - rows) // 2, (side - columns) // 2
    weight = conv.weight.new_zeros(*conv.weight.shape[:2], side, side)
    weight[:, :, above : above + rows, left : left + columns] = conv.weight
    return _filled(weight, conv.bias, conv.groups)


def _strided(conv: nn.Conv2d) -> nn.Conv2d:
    """On (C * s * s, h / s, w / s): a tap is one of the s x s pixels of a block."""
    stride, (reach, taps) = conv.stride[0], _taps(conv)
    outputs, inputs = conv.weight.shape[:2]
    weight = conv.weight.new_zeros(outputs, inputs, stride, stride, 2 * reach + 1, 2 * reach + 1)
    for (y, row, i), (x, column, j) in product(taps, repeat=2):
        weight[:, :, i, j, row, column] = conv.weight[:, :, y, x]
    return _filled(weight.flatten(1, 3), conv.bias, conv.groups)


def _taps(conv: nn.Conv2d | nn.ConvTranspose2d) -> tuple[int, list[tuple[int, int, int]]]:
    """How many blocks a kernel reaches beyond its own, and of each of its rows the row among these
    blocks, and the row in the block."""
    size, stride, pad = conv.kernel_size[0], conv.stride[0], _pad(conv)
    reach = max(-(-pad // stride), (size - 1 - pad) // stride)
    places = (divmod(tap - pad, stride) for tap in range(size))
    return reach, [(tap, block + reach, inside) for tap, (block, inside) in enumerate(places)]


def _transposed(conv: nn.ConvTranspose2d) -> nn.Conv2d:
    """(O * s * s, h, w): pixel (i, j) of a block has the taps that reach it."""
    stride, (reach, taps) = conv.stride[0], _taps(conv)
    inputs, outputs = conv.weight.shape[:2]
    weight = conv.weight.new_zeros(outputs, stride, stride, inputs, 2 * reach + 1, 2 * reach + 1)
    for (y, row, i), (x, column, j) in product(taps, repeat=2):
        # a block reads the blocks above by the taps below its own
        weight[:, i, j, :, 2 * reach - row, 2 * reach - column] = conv.weight[:, :, y, x].T
    bias = None if conv.bias is None else conv.bias.repeat_interleave(stride**2)
    return _filled(weight.flatten(0, 2), bias, 1)


def _dilated(conv: nn.Conv2d) -> nn.Conv2d:
    """With the zeros between its taps."""
    step = conv.dilation[0]
    side = (conv.kernel_size[0] - 1) * step + 1
    weight = conv.weight.new_zeros(*conv.weight.shape[:2], side, side)
    weight[:, :, ::step, ::step] = conv.weight
    return _filled(weight, conv.bias, conv.groups)


def _filled(weight: Tensor, bias: Tensor | None, groups: int) -> nn.Conv2d:
    """A convolution of stride 1 with this weight (O, I / groups, k, k)."""
    outputs, inputs, side, _ = weight.shape
    conv = nn.Conv2d(inputs * groups, outputs, side, padding=side // 2, groups=groups, bias=bias is not None)
    conv.weight.copy_(weight)
    if bias is not None:
        assert conv.bias is not None
        conv.bias.copy_(bias)
    return conv.to(weight).eval()
