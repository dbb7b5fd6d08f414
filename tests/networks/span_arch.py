"""A small network in the manner of SPAN: attention by a sigmoid that has no parameters of its own,
and features of several depths concatenated."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Three convolutions, whose result is weighted by its own sigmoid, less one half: a tanh."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(num_feat, num_feat, 3, padding=1) for _ in range(3))
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) to the same, and the features of the first convolution."""
        first = self.conv1(x)
        out = self.conv3(self.act(self.conv2(self.act(first))))
        return (out + x) * (0.5 * torch.tanh(0.5 * out)), first


class SmallSpan(nn.Module):
    """Blocks, of which the first and the last features are concatenated, and a pixel shuffle."""

    def __init__(self, *, num_feat: int = 16, num_block: int = 3, upscale: int = 4) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, num_feat, 3, padding=1)
        self.blocks = nn.ModuleList(Block(num_feat) for _ in range(num_block))
        self.after = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.join = nn.Conv2d(4 * num_feat, num_feat, 1)
        self.last = nn.Sequential(nn.Conv2d(num_feat, 3 * upscale**2, 3, padding=1), nn.PixelShuffle(upscale))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) in [0, 1] to (B, 3, upscale * h, upscale * w)."""
        start = self.first(x - 0.5)
        features, kept = start, []
        for block in self.blocks:
            features, inner = block(features)
            kept += [features, inner]
        return self.last(self.join(torch.cat([start, self.after(features), kept[0], kept[-1]], 1))) + 0.5
