"""A small denoiser with weight norm, batch norm and depthwise convolutions, of any channels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import parametrizations

from quantsr.basicsr_compat import ARCH_REGISTRY


class Unit(nn.Module):
    """A residual unit of a depthwise and a 1x1 convolution, each with a norm of its own."""

    def __init__(self, num_feat: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(num_feat, num_feat, 3, padding=1, groups=num_feat)
        self.norm = nn.BatchNorm2d(num_feat)
        self.mix = parametrizations.weight_norm(nn.Conv2d(num_feat, num_feat, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        return x + self.mix(self.norm(self.depthwise(x)).relu())


@ARCH_REGISTRY.register()
class SmallDenoiser(nn.Module):
    """What it gives is taken from the picture, so its scale is 1."""

    def __init__(
        self, num_in_ch: int = 1, num_out_ch: int = 1, num_feat: int = 8, num_block: int = 2, scale: int = 1
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        self.body = nn.Sequential(*(Unit(num_feat) for _ in range(num_block)))
        self.last = nn.Conv2d(num_feat, num_out_ch, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same."""
        return x - 0.2 * self.last(self.body(self.first(x)))
