"""Networks that take only pictures whose sides are multiples of a number, for any picture."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantsr.quant.mixins import with_mixin


class _Continued(nn.Module):
    """Continues a picture (B, C, h, w) by reflection, at the right and below, to multiples of
    `side_multiple`, and crops the result."""

    side_multiple: int
    scale_of_picture: int

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        height, width = x.shape[-2:]
        below, right = (-side % self.side_multiple for side in (height, width))
        found: Tensor = super().forward(F.pad(x, (0, right, 0, below), "reflect"), *args, **kwargs)
        return found[..., : self.scale_of_picture * height, : self.scale_of_picture * width]


@torch.inference_mode()
def take_any_size(net: nn.Module, *, multiple: int, scale: int, channels: int) -> nn.Module:
    """``net``, whose class is replaced where it fails at, or gives another size than `scale` times
    that of, a picture whose sides are no multiples.

    Args:
        net: from (B, channels, h, w) to (B, channels, scale * h, scale * w), in eval mode.
        multiple: of the sides that it takes.
    """
    if multiple == 1:
        return net
    height, width = 2 * multiple + 1, 3 * multiple - 1
    device = next((parameter.device for parameter in net.parameters()), None)
    try:
        found = net(torch.zeros(1, channels, height, width, device=device))
        if found.shape[-2:] == (scale * height, scale * width):
            return net
    except RuntimeError:  # torch's, of shapes that do not fit
        pass
    net.__class__ = with_mixin(_Continued, type(net))
    net.side_multiple, net.scale_of_picture = multiple, scale  # type: ignore[assignment]
    return net
