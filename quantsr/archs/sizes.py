"""Networks that take only pictures whose sides are multiples of a number, for any picture."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from quantsr.archs.trial import trial_side
from quantsr.quant.mixins import with_mixin


class _Continued(nn.Module):
    """Continues a picture (B, C, h, w) by reflection, at the right and below, to multiples of
    `side_multiple`, and crops the result."""

    side_multiple: int
    scale_of_picture: int

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        height, width = x.shape[-2:]
        found: Tensor = super().forward(_continued(x, self.side_multiple), *args, **kwargs)
        return found[..., : self.scale_of_picture * height, : self.scale_of_picture * width]


def _continued(x: Tensor, multiple: int) -> Tensor:
    """A picture reflected at the right and below, again where it is small."""
    below, right = (-side % multiple for side in x.shape[-2:])
    while below or right:
        height, width = x.shape[-2:]
        pad = (0, min(right, width - 1), 0, min(below, height - 1))
        # a single row or column has nothing to reflect
        x = F.pad(x, pad, "reflect") if any(pad) else F.pad(x, (0, right, 0, below), "replicate")
        below, right = (-side % multiple for side in x.shape[-2:])
    return x


@torch.inference_mode()
def take_any_size(net: nn.Module, *, multiple: int, scale: int, channels: int, least: int = 1) -> nn.Module:
    """``net``, whose class is replaced where it fails at, or gives another size than `scale` times
    that of, a picture whose sides are no multiples; and where it continues pictures to multiples by
    itself, but not by reflection to its `window_size`, or not small ones; and where it fails at
    pictures of one pixel.

    Args:
        net: from (B, channels, h, w) to (B, channels, scale * h, scale * w), in eval mode.
        multiple: of the sides that it takes.
        least: of the sides that it takes, the shortest.
    """
    own = _own_continuation(net, channels)
    if own.multiple > 1:
        side = trial_side(own.multiple)
        known = own.mode == "reflect" and own.multiple == getattr(net, "window_size", None)
        if known and _gives(net, (side, side), scale, channels):
            return net
        multiple = math.lcm(multiple, own.multiple)
    elif (multiple == 1 or _gives(net, (2 * multiple + 1, 3 * multiple - 1), scale, channels)) and (
        least <= multiple or _gives(net, (1, 1), scale, channels)
    ):
        return net
    if least > multiple and not _gives(net, (multiple, multiple), scale, channels):
        multiple *= -(-least // multiple)
    net.__class__ = with_mixin(_Continued, type(net))
    net.side_multiple, net.scale_of_picture = multiple, scale  # type: ignore[assignment]
    return net


def _gives(net: nn.Module, size: tuple[int, int], scale: int, channels: int) -> bool:
    """Whether it gives a picture `scale` times as large as one of that size."""
    try:
        found = net(_black(net, size, channels))
    except (RuntimeError, ValueError):  # of shapes that do not fit, and of the logarithm of 0
        return False
    return isinstance(found, Tensor) and found.shape[-2:] == tuple(scale * side for side in size)


def _black(net: nn.Module, size: tuple[int, int], channels: int) -> Tensor:
    device = next((parameter.device for parameter in net.parameters()), None)
    return torch.zeros(1, channels, *size, device=device)


class _Found(Exception):
    """How a picture is continued; ends the run that shows it."""


class _OwnContinuation(TorchFunctionMode):
    """Watches how a network continues a picture of one pixel, at the right and below."""

    def __init__(self, picture: Tensor) -> None:
        super().__init__()
        self.picture = picture
        self.multiple, self.mode = 1, ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = dict(zip(("input", "pad", "mode"), args, strict=False)) | (kwargs or {})
        if getattr(func, "__name__", "") == "pad" and named.get("input") is self.picture:
            left, right, above, below = (*named["pad"], 0, 0, 0, 0)[:4]
            if left == above == 0 and right == below:
                self.multiple, self.mode = 1 + int(right), named.get("mode", "constant")
            raise _Found
        return func(*args, **(kwargs or {}))


def _own_continuation(net: nn.Module, channels: int) -> _OwnContinuation:
    found = _OwnContinuation(_black(net, (1, 1), channels))
    try:
        with found:
            net(found.picture)
    except (_Found, ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError):
        pass
    return found
