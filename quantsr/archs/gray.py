"""Networks of gray pictures as networks of colour pictures: they read the luma, and give three
equal channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from quantsr.errors import InputError

LUMA = (0.299, 0.587, 0.114)
"""Of red, green and blue (ITU-R BT.601); gray pictures stay what they are."""

_NAME = "to_gray"


def read_colours(net: nn.Module) -> nn.Module:
    """A network that reads pictures (B, 3, h, w), changed in place: one of a single channel gets a
    convolution `to_gray` in front, and its result is repeated. The names of its layers stay.

    Raises:
        InputError: it reads another number of channels than 1 or 3.
    """
    channels = _channels(net)
    if channels is None or channels == 3 or is_gray(net):
        return net
    if channels != 1:
        _require_colours(net, channels)
        return net
    to_gray = nn.Conv2d(3, 1, 1, bias=False).to(next(net.parameters()))
    with torch.no_grad():
        to_gray.weight.copy_(torch.tensor(LUMA).view(1, 3, 1, 1))
    setattr(net, _NAME, to_gray.requires_grad_(False))
    net.register_forward_pre_hook(_read)
    net.register_forward_hook(_repeat)
    return net


def reads_gray(net: nn.Module) -> bool:
    """Whether a network's first convolution reads one channel, which nothing in front of it
    gives."""
    return _channels(net) == 1 and not is_gray(net)


def is_gray(net: nn.Module) -> bool:
    """Whether `read_colours` put a convolution in front of the network."""
    return isinstance(getattr(net, _NAME, None), nn.Conv2d)


def _channels(net: nn.Module) -> int | None:
    """What the first convolution reads; None without one."""
    return next((module.in_channels for module in net.modules() if isinstance(module, nn.Conv2d)), None)


def _read(net: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (net.to_gray(inputs[0]), *inputs[1:])


def _repeat(net: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.expand(-1, 3, -1, -1) if output.shape[1] == 1 else output


@torch.no_grad()
def _require_colours(net: nn.Module, channels: int) -> None:
    """Raises InputError where the network does not run on three channels, some of which its first
    convolution may read several times, as behind a pixel unshuffle."""
    try:
        net(torch.zeros(1, 3, 16, 16).to(next(net.parameters())))
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"network: reads {channels} channels; only networks of gray (1) or RGB (3) pictures are quantized"
        ) from error
