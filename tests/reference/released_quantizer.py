"""Reference of the released QuantSR-C: its operations, parameter names and depth rule.

Written after https://github.com/htqin/QuantSR (``ours_operator.py``, ``arch_util.py``,
``q_edsr_arch.py`` and ``test_slimmable_4bit_x4.py``), without its lines for one device. It is the
reference of values, and a contender in the benchmarks.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.reference.rlq import clip


def _scaled_gradient(v: Tensor, g: float) -> Tensor:
    part = v * g
    return v.detach() - part.detach() + part


def _round_with_tanh_gradient(u: Tensor) -> Tensor:
    low = u.floor().detach()
    soft = (
        torch.tanh(1 * ((u - low) - 0.5)) / torch.tanh(torch.ones(1, device=u.device) * 0.5) / 2 + 0.5 + low
    )
    return u.round().detach() - soft.detach() + soft


class ActOurs(nn.Module):
    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits
        self.alpha = nn.Parameter(torch.zeros(1))
        self.register_buffer("init_state", torch.zeros(1))
        self.register_buffer("signed", torch.zeros(1))

    def bounds(self) -> tuple[int, int]:
        if self.signed == 1:
            return -(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1
        return 0, 2**self.bits - 1

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.init_state == 0:
            if x.min() < -1e-5:
                self.signed.fill_(1)
            self.alpha.data.copy_(2 * x.abs().mean() / math.sqrt(self.bounds()[1]))
            self.init_state.fill_(1)
        low, high = self.bounds()
        alpha = _scaled_gradient(self.alpha, 1.0 / math.sqrt(x.numel() * high))
        return _round_with_tanh_gradient(clip(x / alpha, low, high)) * alpha


def _quantized_weight(layer: Conv2dOurs | LinearOurs) -> Tensor:
    low, high = -(2 ** (layer.bits - 1)), 2 ** (layer.bits - 1) - 1
    if layer.training and layer.init_state == 0:
        layer.alpha.data.copy_(2 * layer.weight.abs().mean() / math.sqrt(high))
        layer.init_state.fill_(1)
    alpha = _scaled_gradient(layer.alpha, 1.0 / math.sqrt(layer.weight.numel() * high))
    return _round_with_tanh_gradient(clip(layer.weight / alpha, low, high)) * alpha


class Conv2dOurs(nn.Conv2d):
    def __init__(self, channels: int, *, bits_w: int, bits_a: int) -> None:
        super().__init__(channels, channels, 3, 1, 1)
        self.bits = bits_w
        self.alpha = nn.Parameter(torch.zeros(1))
        self.register_buffer("init_state", torch.zeros(1))
        self.ActOurs = ActOurs(bits_a)
        self.channel_threshold = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.ActOurs(x + self.channel_threshold)
        return F.conv2d(x, _quantized_weight(self), self.bias, 1, 1)


class LinearOurs(nn.Linear):
    """`Conv2dOurs` for a linear layer, which no released network has.

    ``channel_threshold`` is (1, C).
    """

    def __init__(self, linear: nn.Linear, *, bits_w: int, bits_a: int) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.bits = bits_w
        self.alpha = nn.Parameter(torch.zeros(1))
        self.register_buffer("init_state", torch.zeros(1))
        self.ActOurs = ActOurs(bits_a)
        self.channel_threshold = nn.Parameter(torch.zeros(1, linear.in_features))

    def forward(self, x: Tensor) -> Tensor:
        x = self.ActOurs(x + self.channel_threshold)
        return F.linear(x, _quantized_weight(self), self.bias)


def quantize_linears(net: nn.Module, *, bits_w: int, bits_a: int) -> nn.Module:
    """Puts the released quantization into every qkv, proj, fc1 and fc2 of a float SwinIR."""
    for module in list(net.modules()):
        for name, layer in list(module.named_children()):
            if name in ("qkv", "proj", "fc1", "fc2") and isinstance(layer, nn.Linear):
                setattr(module, name, LinearOurs(layer, bits_w=bits_w, bits_a=bits_a))
    return net


class Block(nn.Module):
    def __init__(self, channels: int, *, bits_w: int, bits_a: int, res_scale: float) -> None:
        super().__init__()
        self.conv1 = Conv2dOurs(channels, bits_w=bits_w, bits_a=bits_a)
        self.conv2 = Conv2dOurs(channels, bits_w=bits_w, bits_a=bits_a)
        self.learnable_shortcut = nn.Parameter(torch.ones(1))
        self.res_scale = res_scale

    def forward(self, x: Tensor, skip: bool) -> Tensor:
        if skip:
            return x * self.learnable_shortcut
        return x * self.learnable_shortcut + self.conv2(F.relu(self.conv1(x))) * self.res_scale


class ReleasedQuantSRC(nn.Module):
    """The released network.

    ``version`` is None or 0 (full), 1 (half), 2 (quarter); ``order`` is as in the test script.
    """

    def __init__(
        self, *, num_feat: int, num_block: int, upscale: int, bits_w: int, bits_a: int, res_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.img_range = 255.0
        self.mean = torch.tensor((0.4488, 0.4371, 0.4040)).view(1, 3, 1, 1)
        self.conv_first = nn.Conv2d(3, num_feat, 3, 1, 1)
        self.body = nn.ModuleList(
            Block(num_feat, bits_w=bits_w, bits_a=bits_a, res_scale=res_scale) for _ in range(num_block)
        )
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, 1, 1)
        stages: list[nn.Module] = []
        for factor in [3] if upscale == 3 else [2] * int(math.log2(upscale)):
            stages += [nn.Conv2d(num_feat, factor * factor * num_feat, 3, 1, 1), nn.PixelShuffle(factor)]
        self.upsample = nn.Sequential(*stages)
        self.conv_last = nn.Conv2d(num_feat, 3, 3, 1, 1)

    def forward(self, x: Tensor, version: int | None = None, order: list[int] | None = None) -> Tensor:
        mean = self.mean.type_as(x)
        n = len(self.body)
        kept = set(range(n))
        if version in (1, 2):
            assert order is not None
            kept = {block for place, block in enumerate(order) if place <= n // (2 * version)}
        x = self.conv_first((x - mean) * self.img_range)
        y = x
        for index, block in enumerate(self.body):
            y = block(y, index not in kept)
        y = self.conv_after_body(y) + x
        return self.conv_last(self.upsample(y)) / self.img_range + mean
