"""A small network in the manner of RFDN and IMDN: channels are split off and concatenated again,
and a gate for each channel and one for each pixel follow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantsr.basicsr_compat import ARCH_REGISTRY
from quantsr.quant import Rule, quantize_layers


class Block(nn.Module):
    """Three convolutions, of each of which a quarter of the channels is kept, and two gates."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.kept = num_feat // 4
        self.passed = num_feat - self.kept
        self.conv1 = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.conv2 = nn.Conv2d(self.passed, num_feat, 3, padding=1)
        self.conv3 = nn.Conv2d(self.passed, self.kept, 3, padding=1, bias=False)
        self.act = nn.LeakyReLU(0.05, inplace=True)
        self.fuse = nn.Conv2d(3 * self.kept, num_feat, 1)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(num_feat, num_feat, 1), nn.Sigmoid())
        self.pixels = nn.Conv2d(num_feat, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        first, rest = torch.split(self.act(self.conv1(x)), [self.kept, self.passed], 1)
        second, rest = torch.split(self.act(self.conv2(rest)), [self.kept, self.passed], 1)
        out = self.fuse(torch.cat([first, second, self.act(self.conv3(rest))], 1))
        out = out * self.gate(out)
        return x + out * self.pixels(out).sigmoid()


@ARCH_REGISTRY.register()
class SmallDistillation(nn.Module):
    """Blocks, their outputs concatenated, one convolution and a pixel shuffle."""

    def __init__(
        self, *, num_feat: int = 16, num_block: int = 2, upscale: int = 2, nbits_w: int = 4, nbits_a: int = 4
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, num_feat, 3, padding=1)
        self.body = nn.ModuleList(Block(num_feat) for _ in range(num_block))
        self.join = nn.Sequential(nn.Conv2d(num_block * num_feat, num_feat, 1), nn.PReLU())
        self.last = nn.Sequential(nn.Conv2d(num_feat, 3 * upscale**2, 3, padding=1), nn.PixelShuffle(upscale))
        rules = [Rule(pattern, nbits_w, nbits_a) for pattern in ("body.*.conv?", "body.*.fuse", "join.0")]
        quantize_layers(self, rules)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) in [0, 1] to (B, 3, upscale * h, upscale * w)."""
        features = start = self.first(x - 0.5)
        kept = []
        for block in self.body:
            features = block(features)
            kept.append(features)
        return self.last(self.join(torch.cat(kept, 1)) + start) + 0.5
