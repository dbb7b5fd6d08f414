"""QuantSR-C: an EDSR-shaped network with quantized residual blocks and a depth chosen at inference.

Shapes: B batch, C ``num_feat``, h and w of the low-resolution picture, r ``upscale``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from quantsr.archs import linear_tail
from quantsr.archs.dqa import DepthDynamic, Stream, Unit, advance, as_unit, start
from quantsr.archs.load_float import FloatStart, LoadReport, copy_float, spread_blocks, take_quantizers
from quantsr.basicsr_compat import ARCH_REGISTRY, Upsample
from quantsr.depth import DepthRule
from quantsr.quant.autograd import shortcut_add
from quantsr.quant.layer_rules import Rule, quantize_layers
from quantsr.quant.layers import FirstConv2d, QuantConv2d, compute_dtype
from quantsr.quant.quantizers import Granularity

Upsampler = Literal["pixelshuffle", "pixelshuffledirect"]
Shortcuts = Literal["block", "conv"]


class ResidualBlock(Unit):
    """``s * x + res_scale * conv2(relu(conv1(x)))``, ``s`` learned from 1 (section 3.3).

    With a shortcut around every convolution ``s * x + res_scale * (conv2(x + r) + r)``, where ``r =
    relu(conv1(x))``: features reach the second quantizer and the output in float (the binary unit
    of Xia et al., "Basic Binary Convolution Unit for Binarized Image Restoration Network", ICLR
    2023).
    """

    def __init__(self, *, num_feat: int, res_scale: float, shortcuts: Shortcuts) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.shortcuts = shortcuts
        self.conv1: nn.Module = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.conv2: nn.Module = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.add_shortcut()

    def forward(self, streams: Sequence[Tensor]) -> list[Tensor]:
        """The block on several tensors (B, C, h, w), the full network's first.

        Weights are quantized once.

        Called as a module, so that forward hooks (feature distillation) see its outputs.
        """
        conv1, conv2 = self.conv1, self.conv2
        assert isinstance(conv1, QuantConv2d)
        assert isinstance(conv2, QuantConv2d)
        dtype = compute_dtype(streams[0])
        weight1, weight2 = conv1.quantized_weight(dtype), conv2.quantized_weight(dtype)
        out = []
        for x in streams:
            inner = conv1(x, weight1, relu=True)
            if self.shortcuts == "conv":
                residual = conv2(x + inner, weight2) + inner
            else:
                residual = conv2(inner, weight2)
            out.append(shortcut_add(x, residual, self.shortcut, self.res_scale))
        return out


@ARCH_REGISTRY.register()
class QuantSR_C(DepthDynamic):
    """QuantSR's convolutional network (NeurIPS 2023, section 3).

    The two convolutions of every residual block are quantized; all other layers are float.

    Args:
        num_in_ch, num_out_ch: channels of the pictures.
        num_feat: channels C of the features.
        num_block: residual blocks, ``2N`` of the paper.
        upscale: 1, 2, 3, 4 or 8.
        upsampler: ``pixelshuffle`` (EDSR's: a stage for each factor of 2 or 3, then ``conv_last``)
            or ``pixelshuffledirect`` (one convolution to the ``r * r`` pixels of every position,
            for small networks).
        res_scale: factor of the residual branch.
        img_range: the network works on ``(x - rgb_mean) * img_range``.
        rgb_mean: mean of the pictures in [0, 1], one number for each input channel.
        nbits_w, nbits_a: bits of weights and activations in the blocks, 2..8, or 32 for float.
        quantizer: a name in ``QUANTIZER_REGISTRY``.
        weight_granularity: one weight step per ``tensor`` (the paper) or output ``channel``.
        shortcuts: around every ``block`` (the paper), or every ``conv`` as well: two float
            additions more in a block; the float start must have the same.
        depths: the sub-networks that are trained and evaluated; ``(2N, N, N/2)`` by default.
        depth_rule: see :data:`quantsr.depth.DepthRule`.

    Raises:
        ValueError: for bits, depths, a scale or an upsampler outside these ranges.
    """

    def __init__(
        self,
        *,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 32,
        upscale: int = 4,
        upsampler: Upsampler = "pixelshuffle",
        res_scale: float = 1.0,
        img_range: float = 255.0,
        rgb_mean: Sequence[float] = (0.4488, 0.4371, 0.4040),
        nbits_w: int = 4,
        nbits_a: int = 4,
        quantizer: str = "RLQ",
        weight_granularity: Granularity = "tensor",
        shortcuts: Shortcuts = "block",
        depths: Sequence[int] | None = None,
        depth_rule: DepthRule = "exact",
    ) -> None:
        super().__init__()
        if upscale not in (1, 2, 3, 4, 8):
            raise ValueError(f"upscale must be 1, 2, 3, 4 or 8, got {upscale}")
        if upsampler not in get_args(Upsampler):
            raise ValueError(f"upsampler must be one of {list(get_args(Upsampler))}, got {upsampler!r}")
        if shortcuts not in get_args(Shortcuts):
            raise ValueError(f"shortcuts must be one of {list(get_args(Shortcuts))}, got {shortcuts!r}")
        if len(rgb_mean) not in (1, num_in_ch) or len(rgb_mean) not in (1, num_out_ch):
            raise ValueError(f"rgb_mean must have one number for each channel, got {list(rgb_mean)}")
        self._options = {
            "type": "QuantSR_C",
            "num_in_ch": num_in_ch,
            "num_out_ch": num_out_ch,
            "num_feat": num_feat,
            "num_block": num_block,
            "upscale": upscale,
            "upsampler": upsampler,
            "res_scale": res_scale,
            "img_range": img_range,
            "rgb_mean": list(rgb_mean),
            "nbits_w": nbits_w,
            "nbits_a": nbits_a,
            "quantizer": quantizer,
            "weight_granularity": weight_granularity,
            "depth_rule": depth_rule,
            **({} if shortcuts == "block" else {"shortcuts": shortcuts}),  # earlier files have no such key
        }
        self.upscale = upscale
        self.shortcuts = shortcuts
        self.img_range = img_range
        self._set_depths(depths, num_block, depth_rule)
        self.register_buffer("mean", torch.tensor(list(rgb_mean)).view(1, -1, 1, 1), persistent=False)
        self.mean: Tensor

        self.conv_first = FirstConv2d(num_in_ch, num_feat, 3, padding=1)
        self.body = nn.ModuleList(
            ResidualBlock(num_feat=num_feat, res_scale=res_scale, shortcuts=shortcuts)
            for _ in range(num_block)
        )
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.upsample: nn.Sequential
        self.conv_last: nn.Module
        if upsampler == "pixelshuffle":
            self.upsample = Upsample(upscale, num_feat)
            self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, padding=1)
        else:
            self.upsample = nn.Sequential(
                nn.Conv2d(num_feat, num_out_ch * upscale**2, 3, padding=1), nn.PixelShuffle(upscale)
            )
            self.conv_last = nn.Identity()
        quantize_layers(self, [Rule("body.*.conv[12]", nbits_w, nbits_a, quantizer, weight_granularity)])

    @property
    def num_block(self) -> int:
        """Blocks of the full network."""
        return len(self.body)

    def units(self) -> Sequence[Unit]:
        """The residual blocks."""
        return [as_unit(block) for block in self.body]

    def _shallow(self, x: Tensor) -> Tensor:
        return self.conv_first((x - self.mean) * self.img_range)  # (B, C, h, w)

    def _body(self, shallow: Tensor, kept: Sequence[frozenset[int]]) -> list[Stream]:
        streams = start(shallow, len(kept))
        for index, block in enumerate(self.units()):
            streams = advance(block, streams, [index in blocks for blocks in kept])
        return streams

    def _reconstruct(self, features: Sequence[Tensor], shallow: Tensor) -> list[Tensor]:
        inputs = [self.conv_after_body(x) + shallow for x in features]
        outputs = self._composed_tail(inputs) if self.training else None  # (B, 3, r*h, r*w) each
        if outputs is None:
            outputs = [self.conv_last(self.upsample(x)) for x in inputs]
        return [out / self.img_range + self.mean for out in outputs]

    def _composed_tail(self, inputs: Sequence[Tensor]) -> list[Tensor] | None:
        """The tail as one convolution where that is cheaper; composed once for all sub-networks."""
        tail = linear_tail.stages([*self.upsample, self.conv_last])
        if not linear_tail.pays(tail, inputs[0]):
            return None
        composed = linear_tail.compose(tail)
        return [linear_tail.run(tail, composed, x) for x in inputs]

    @torch.no_grad()
    def load_float(self, state_dict: Mapping[str, Tensor], which: FloatStart = "all") -> LoadReport:
        """Copy tensors of the same name and shape from a float EDSR or MSRResNet.

        Args:
            state_dict: of BasicSR's ``EDSR`` or ``MSRResNet``.
            which: ``all`` matching tensors, or, as the released code, only those of ``conv_last``,
                ``conv_after_body`` and ``upsample``; or, to ``deepen`` a network of fewer blocks,
                all of them with its blocks spread evenly, and the blocks between adding nothing at
                first, so that the output is the same; where this network is quantized, they add
                little, and the quantizers of a quantized one keep their steps.

        Raises:
            ValueError: if nothing matches; or, to deepen, it has no blocks or more than this
                network, its quantizers are others, or this network has shortcuts around
                convolutions.
        """
        if which == "deepen":
            if self.shortcuts != "block":
                raise ValueError("fp_init: deepen is for shortcuts: block; use all")
            state_dict, added = spread_blocks(state_dict, self.num_block)
            state_dict = take_quantizers(self, state_dict)
            for index in added:
                conv = self.body[index].get_submodule("conv2")
                nn.init.zeros_(conv.get_parameter("bias"))
                # There is no step for weights that are all 0.
                quantized = isinstance(conv, QuantConv2d) and conv.weight_quantizer is not None
                conv.get_parameter("weight").mul_(0.1 if quantized else 0.0)
        prefixes = ("conv_last.", "conv_after_body.", "upsample.") if which == "head_tail" else ("",)
        return copy_float(self, state_dict, prefixes)
