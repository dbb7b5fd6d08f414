"""QuantSR-T: SwinIR-S with quantized linear layers and a depth chosen at inference.

Shapes: B batch, C ``embed_dim``, h and w of the low-resolution picture, H and W the same padded to
whole windows, L = H * W tokens, r ``upscale``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from quantsr.archs.dqa import DepthDynamic, Stream, Unit, as_unit, split, start
from quantsr.archs.load_float import FloatStart, LoadReport, copy_float
from quantsr.archs.swin import RSTB, SwinShape, to_map, to_tokens
from quantsr.archs.swinir import convert_swinir, is_swinir
from quantsr.archs.windows import reflect_pad
from quantsr.basicsr_compat import ARCH_REGISTRY, Upsample
from quantsr.quant.layer_rules import Rule, quantize_layers
from quantsr.quant.layers import FirstConv2d
from quantsr.quant.quantizers import Granularity
from quantsr.ranges import FLOAT_BITS, check_bits

DqaUnit = Literal["rstb", "layer"]
"""Units that depth counts: residual Swin transformer blocks, or single Swin layers."""

PROTOCOLS: Mapping[tuple[bool, bool], str] = {
    (False, False): "QuantSR",
    (True, True): "QuantSR+",
    (True, False): "2DQuant",
    (False, True): "linear and convolution",
}
"""``(quantize_attention, quantize_conv)`` to the method that quantizes the same layers."""


@ARCH_REGISTRY.register()
class QuantSR_T(DepthDynamic):
    """QuantSR's transformer (NeurIPS 2023, section 3), in the shape of SwinIR.

    Quantized are the linear layers of the Swin layers (qkv, proj, fc1, fc2) and, as options, both
    operands of both products of attention and the convolution that ends each RSTB. LayerNorm,
    softmax, GELU and the layers before and after the RSTBs are float. Pictures of any size are
    padded by reflection to whole windows, and the result is cropped.

    Args:
        num_in_ch, num_out_ch: channels of the pictures, equal numbers.
        embed_dim: channels C of the features.
        num_block: RSTBs, ``2N`` of the paper (SwinIR-S has 4).
        layers_per_block: Swin layers in each RSTB; every other one shifts its windows.
        num_heads: heads of attention; a divisor of ``embed_dim``.
        window_size: side of a window in pixels.
        mlp_ratio: size of the MLP's hidden layer over C.
        upscale: 2, 3, 4 or 8.
        img_range: the network works on ``(x - rgb_mean) * img_range``.
        rgb_mean: mean of the pictures in [0, 1], one number for each channel.
        upsampler: ``pixelshuffledirect`` (SwinIR-S: one convolution) or ``pixelshuffle`` (SwinIR's
            classical tail).
        resi_connection: ``1conv`` or ``3conv`` at the end of the RSTBs and of the body.
        nbits_w, nbits_a: bits of weights and activations, 2..8, or 32 for float.
        quantizer: a name in ``QUANTIZER_REGISTRY``.
        weight_granularity: one weight step per ``tensor`` (the paper) or output ``channel``.
        quantize_attention: quantize the operands of ``q @ k^T`` and ``softmax @ v`` to ``nbits_a``
            too.
        quantize_conv: quantize the convolution that ends each RSTB too.
        depths: the sub-networks that are trained and evaluated; ``(2N, N, N/2)`` units by default.
        dqa_unit: what ``depths`` counts, see :data:`DqaUnit`.

    Raises:
        ValueError: for bits, depths, a scale or a number of heads outside these ranges.
    """

    def __init__(
        self,
        *,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        embed_dim: int = 60,
        num_block: int = 8,
        layers_per_block: int = 6,
        num_heads: int = 6,
        window_size: int = 8,
        mlp_ratio: float = 2.0,
        upscale: int = 4,
        img_range: float = 1.0,
        rgb_mean: Sequence[float] = (0.4488, 0.4371, 0.4040),
        upsampler: Literal["pixelshuffledirect", "pixelshuffle"] = "pixelshuffledirect",
        resi_connection: Literal["1conv", "3conv"] = "1conv",
        nbits_w: int = 4,
        nbits_a: int = 4,
        quantizer: str = "RLQ",
        weight_granularity: Granularity = "tensor",
        quantize_attention: bool = False,
        quantize_conv: bool = False,
        depths: Sequence[int] | None = None,
        dqa_unit: DqaUnit = "rstb",
    ) -> None:
        super().__init__()
        self._options = {
            "type": "QuantSR_T",
            "num_in_ch": num_in_ch,
            "num_out_ch": num_out_ch,
            "embed_dim": embed_dim,
            "num_block": num_block,
            "layers_per_block": layers_per_block,
            "num_heads": num_heads,
            "window_size": window_size,
            "mlp_ratio": mlp_ratio,
            "upscale": upscale,
            "img_range": img_range,
            "rgb_mean": list(rgb_mean),
            "upsampler": upsampler,
            "resi_connection": resi_connection,
            "nbits_w": nbits_w,
            "nbits_a": nbits_a,
            "quantizer": quantizer,
            "weight_granularity": weight_granularity,
            "quantize_attention": quantize_attention,
            "quantize_conv": quantize_conv,
            "dqa_unit": dqa_unit,
        }
        self._check()
        self.upscale = upscale
        self.img_range = img_range
        self.window_size = window_size
        self.dqa_unit = dqa_unit
        self._set_depths(depths, count_units(self._options))
        self.register_buffer("mean", torch.tensor(list(rgb_mean)).view(1, -1, 1, 1), persistent=False)
        self.mean: Tensor

        self.conv_first = FirstConv2d(num_in_ch, embed_dim, 3, padding=1)
        self.norm_first = nn.LayerNorm(embed_dim)
        nbits_attention = nbits_a if quantize_attention else FLOAT_BITS
        shape = SwinShape(embed_dim, num_heads, window_size, mlp_ratio, nbits_attention, quantizer)
        self.layers = nn.ModuleList(
            RSTB(
                shape,
                layers=layers_per_block,
                conv=_closing_conv(embed_dim, resi_connection),
                layers_are_units=dqa_unit == "layer",
            )
            for _ in range(num_block)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = _closing_conv(embed_dim, resi_connection)
        self.conv_before_upsample: nn.Module
        self.conv_last: nn.Module
        self.upsample: nn.Module
        if upsampler == "pixelshuffle":
            self.conv_before_upsample = nn.Sequential(
                nn.Conv2d(embed_dim, _TAIL_FEATURES, 3, padding=1), nn.LeakyReLU()
            )
            self.upsample = Upsample(upscale, _TAIL_FEATURES)
            self.conv_last = nn.Conv2d(_TAIL_FEATURES, num_out_ch, 3, padding=1)
        else:
            self.conv_before_upsample = nn.Identity()
            self.upsample = nn.Sequential(
                nn.Conv2d(embed_dim, upscale**2 * num_out_ch, 3, padding=1), nn.PixelShuffle(upscale)
            )
            self.conv_last = nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        names = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]
        patterns = [f"layers.*.blocks.*.{name}" for name in names]
        if quantize_conv:
            patterns.append("layers.*.conv" if resi_connection == "1conv" else "layers.*.conv.*")
        quantize_layers(self, [Rule(p, nbits_w, nbits_a, quantizer, weight_granularity) for p in patterns])

    def _check(self) -> None:
        o = self._options
        check_bits(o["nbits_w"], "nbits_w")
        check_bits(o["nbits_a"], "nbits_a")
        if o["upscale"] not in (2, 3, 4, 8):
            raise ValueError(f"upscale must be 2, 3, 4 or 8, got {o['upscale']}")
        if o["num_heads"] < 1 or o["embed_dim"] % o["num_heads"]:
            raise ValueError(f"num_heads must divide embed_dim {o['embed_dim']}, got {o['num_heads']}")
        if o["window_size"] < 2 or o["layers_per_block"] < 1:
            raise ValueError("window_size must be at least 2 and layers_per_block at least 1")
        if not o["num_in_ch"] == o["num_out_ch"] or len(o["rgb_mean"]) not in (1, o["num_in_ch"]):
            raise ValueError(
                "num_in_ch and num_out_ch must be equal, and rgb_mean must have one number for each channel, got "
                f"{o['num_in_ch']}, {o['num_out_ch']} and {o['rgb_mean']}"
            )
        for key, known in (
            ("dqa_unit", ("rstb", "layer")),
            ("upsampler", ("pixelshuffledirect", "pixelshuffle")),
            ("resi_connection", ("1conv", "3conv")),
        ):
            if o[key] not in known:
                raise ValueError(f"{key} must be {' or '.join(known)}, got {o[key]!r}")

    @property
    def protocol(self) -> str | None:
        """The published quantization protocol, see :data:`PROTOCOLS`; None for a float network."""
        o = self._options
        if o["nbits_w"] == o["nbits_a"] == FLOAT_BITS:
            return None
        return PROTOCOLS[o["quantize_attention"] and o["nbits_a"] != FLOAT_BITS, o["quantize_conv"]]

    def units(self) -> Sequence[Unit]:
        """The RSTBs, or all Swin layers."""
        blocks = [as_unit(block) for block in self.layers]
        return (
            blocks if self.dqa_unit == "rstb" else [unit for rstb in self._rstbs() for unit in rstb.layers()]
        )

    def _rstbs(self) -> Sequence[RSTB]:
        return list(self.layers)  # type: ignore[arg-type]

    def run_units(self, x: Tensor, kept: Sequence[frozenset[int]]) -> list[Tensor]:
        """See :meth:`DepthDynamic.run_units`; pictures are reflection-padded to whole windows."""
        height, width = x.shape[-2] * self.upscale, x.shape[-1] * self.upscale
        outputs = super().run_units(reflect_pad(x, self.window_size), kept)
        return [out[..., :height, :width] for out in outputs]

    def _shallow(self, x: Tensor) -> Tensor:
        return self.conv_first((x - self.mean) * self.img_range)  # (B, C, H, W)

    def _body(self, shallow: Tensor, kept: Sequence[frozenset[int]]) -> list[Stream]:
        grid = (shallow.shape[-2], shallow.shape[-1])
        streams = start(self.norm_first(to_tokens(shallow)), len(kept))  # (B, L, C)
        first = 0
        for index, rstb in enumerate(self._rstbs()):
            if self.dqa_unit == "rstb":
                running, skipping = split(streams, [index in units for units in kept])
                streams = rstb(running, grid) if running else []
                streams += [Stream(rstb.skip(features), members) for features, members in skipping]
            else:
                inside = range(first, first + len(rstb.layers()))
                streams = rstb(streams, grid, [[i in units for units in kept] for i in inside])
                first = inside.stop
        return [Stream(to_map(self.norm(features), grid), members) for features, members in streams]

    def _reconstruct(self, features: Sequence[Tensor], shallow: Tensor) -> list[Tensor]:
        return [self._picture(self.conv_after_body(x) + shallow) for x in features]

    def _picture(self, features: Tensor) -> Tensor:
        out: Tensor = self.conv_last(self.upsample(self.conv_before_upsample(features)))  # (B, 3, r*H, r*W)
        return out / self.img_range + self.mean

    def convert_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """SwinIR's state dict under this network's names with shortcuts 1; others unchanged."""
        converted = convert_swinir(state_dict)
        if is_swinir(state_dict):
            shortcuts = {n: p for n, p in self.named_parameters() if n.endswith(".shortcut")}
            converted.update({name: torch.ones_like(p, device="cpu") for name, p in shortcuts.items()})
        return converted

    def load_float(self, state_dict: Mapping[str, Tensor], which: FloatStart = "all") -> LoadReport:
        """Copy tensors of the same name and shape from a float SwinIR (BasicSR's or official).

        Where it has fewer RSTBs than this network, the others keep their random start.

        Args:
            state_dict: of ``SwinIR``, or of a float network of this class.
            which: ``all`` matching tensors, or only those of the layers after the RSTBs.

        Raises:
            ValueError: if nothing matches, or for ``deepen``, which only QuantSR-C has.
        """
        if which == "deepen":
            raise ValueError("fp_init: deepen is for QuantSR_C; use all")
        tail = ("conv_after_body.", "conv_before_upsample.", "upsample.", "conv_last.")
        return copy_float(self, convert_swinir(state_dict), tail if which == "head_tail" else ("",))


_TAIL_FEATURES = 64
"""Channels of SwinIR's classical tail."""


def count_units(options: Mapping[str, Any]) -> int:
    """How many units of depth a network of these constructor arguments has."""
    per_block = options["layers_per_block"] if options["dqa_unit"] == "layer" else 1
    return int(options["num_block"] * per_block)


def _closing_conv(dim: int, kind: str) -> nn.Module:
    """One 3x3 convolution, or three through a quarter of the channels."""
    if kind == "1conv":
        return nn.Conv2d(dim, dim, 3, padding=1)
    narrow = dim // 4
    return nn.Sequential(
        nn.Conv2d(dim, narrow, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(narrow, narrow, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(narrow, dim, 3, padding=1),
    )
