"""QuantSR-C: an EDSR-shaped network with quantized residual blocks and a depth chosen at inference.

Shapes: B batch, C ``num_feat``, h and w of the low-resolution picture, r ``upscale``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from quantsr.archs import depth as dqa
from quantsr.archs.depth import DepthRule
from quantsr.archs.load_float import LoadReport, copy_float
from quantsr.basicsr_compat import ARCH_REGISTRY, Upsample
from quantsr.quant.autograd import shortcut_add
from quantsr.quant.layers import QuantConv2d, compute_dtype
from quantsr.quant.prepare import Rule, prepare
from quantsr.quant.quantizers import Granularity

Depth = int | Sequence[int] | None


class ResidualBlock(nn.Module):
    """``s * x + res_scale * conv2(relu(conv1(x)))``, ``s`` a learned scalar starting at 1 (section 3.3)."""

    def __init__(self, *, num_feat: int, res_scale: float) -> None:
        super().__init__()
        self.res_scale = res_scale
        self.conv1: nn.Module = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.conv2: nn.Module = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.shortcut = nn.Parameter(torch.ones(1))

    def forward(self, streams: Sequence[Tensor]) -> list[Tensor]:
        """The block on several tensors (B, C, h, w), its weights quantized once; the full network's comes first.

        Called as a module, so that forward hooks (feature distillation) see its outputs.
        """
        conv1, conv2 = self.conv1, self.conv2
        assert isinstance(conv1, QuantConv2d)
        assert isinstance(conv2, QuantConv2d)
        dtype = compute_dtype(streams[0])
        weight1, weight2 = conv1.quantized_weight(dtype), conv2.quantized_weight(dtype)
        out = []
        for x in streams:
            residual = conv2(conv1(x, weight1, relu=True), weight2)
            out.append(shortcut_add(x, residual, self.shortcut, self.res_scale))
        return out

    def skip(self, x: Tensor) -> Tensor:
        """What is left of the block in a sub-network without it: ``s * x``."""
        return x * self.shortcut.to(x.dtype)


@ARCH_REGISTRY.register()
class QuantSR_C(nn.Module):
    """QuantSR's convolutional network (NeurIPS 2023, section 3).

    The two convolutions of every residual block are quantized; all other layers are float.

    Args:
        num_in_ch, num_out_ch: channels of the pictures.
        num_feat: channels C of the features.
        num_block: residual blocks, ``2N`` of the paper.
        upscale: 1, 2, 3, 4 or 8.
        res_scale: factor of the residual branch.
        img_range: the network works on ``(x - rgb_mean) * img_range``.
        rgb_mean: mean of the pictures in [0, 1], one number for each input channel.
        nbits_w, nbits_a: bits of weights and activations in the blocks, 2..8, or 32 for float.
        quantizer: a name in ``QUANTIZER_REGISTRY``.
        weight_granularity: one weight step per ``tensor`` (the paper) or output ``channel``.
        depths: the sub-networks that are trained and evaluated; ``(2N, N, N/2)`` by default.
        depth_rule: see :data:`quantsr.archs.depth.DepthRule`.

    Raises:
        ValueError: for bits, depths or a scale outside these ranges.
    """

    ranking: tuple[int, ...] | None
    """Block indices, kept first; None until :meth:`rank_blocks` or :meth:`set_ranking`."""

    def __init__(
        self,
        *,
        num_in_ch: int = 3,
        num_out_ch: int = 3,
        num_feat: int = 64,
        num_block: int = 32,
        upscale: int = 4,
        res_scale: float = 1.0,
        img_range: float = 255.0,
        rgb_mean: Sequence[float] = (0.4488, 0.4371, 0.4040),
        nbits_w: int = 4,
        nbits_a: int = 4,
        quantizer: str = "RLQ",
        weight_granularity: Granularity = "tensor",
        depths: Sequence[int] | None = None,
        depth_rule: DepthRule = "exact",
    ) -> None:
        super().__init__()
        if upscale not in (1, 2, 3, 4, 8):
            raise ValueError(f"upscale must be 1, 2, 3, 4 or 8, got {upscale}")
        if len(rgb_mean) not in (1, num_in_ch) or len(rgb_mean) not in (1, num_out_ch):
            raise ValueError(f"rgb_mean must have one number for each channel, got {list(rgb_mean)}")
        self._options: dict[str, Any] = {
            "num_in_ch": num_in_ch,
            "num_out_ch": num_out_ch,
            "num_feat": num_feat,
            "num_block": num_block,
            "upscale": upscale,
            "res_scale": res_scale,
            "img_range": img_range,
            "rgb_mean": list(rgb_mean),
            "nbits_w": nbits_w,
            "nbits_a": nbits_a,
            "quantizer": quantizer,
            "weight_granularity": weight_granularity,
            "depth_rule": depth_rule,
        }
        self.upscale = upscale
        self.img_range = img_range
        self.depth_rule = depth_rule
        self.depths = dqa.check_depths(depths or dqa.default_depths(num_block), num_block)
        self.ranking = None
        self.register_buffer("mean", torch.tensor(list(rgb_mean)).view(1, -1, 1, 1), persistent=False)
        self.mean: Tensor

        self.conv_first = nn.Conv2d(num_in_ch, num_feat, 3, padding=1)
        self.body = nn.ModuleList(
            ResidualBlock(num_feat=num_feat, res_scale=res_scale) for _ in range(num_block)
        )
        self.conv_after_body = nn.Conv2d(num_feat, num_feat, 3, padding=1)
        self.upsample = Upsample(upscale, num_feat)
        self.conv_last = nn.Conv2d(num_feat, num_out_ch, 3, padding=1)
        prepare(self, [Rule("body.*.conv[12]", nbits_w, nbits_a, quantizer, weight_granularity)])

    @overload
    def forward(self, x: Tensor, depth: int | None = None) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, depth: Sequence[int]) -> tuple[Tensor, ...]: ...
    def forward(self, x: Tensor, depth: Depth = None) -> Tensor | tuple[Tensor, ...]:
        """Upscale pictures.

        Args:
            x: (B, 3, h, w) in [0, 1], any h, w >= 1.
            depth: blocks of the sub-network to run, 1..num_block; all by default. Several depths run in one pass
                that shares quantized weights and common beginnings.

        Returns:
            (B, 3, r*h, r*w), about [0, 1], not clipped; a tuple of them if ``depth`` is a sequence.

        Raises:
            ValueError: if a depth is out of range, or below full depth before the blocks were ranked.
        """
        several = isinstance(depth, Sequence)
        wanted: Sequence[int | None] = depth if isinstance(depth, Sequence) else [depth]
        kept = [frozenset(self.blocks_kept(d)) for d in wanted]
        shallow = self.conv_first((x - self.mean) * self.img_range)  # (B, C, h, w)
        outputs: list[Tensor] = [shallow] * len(kept)
        for features, members in self._run_body(shallow, kept):
            out = self._reconstruct(features, shallow)
            for i in members:
                outputs[i] = out
        return tuple(outputs) if several else outputs[0]

    def _run_body(self, x: Tensor, kept: Sequence[frozenset[int]]) -> list[tuple[Tensor, list[int]]]:
        """Run sub-networks together for as long as they keep the same blocks.

        Returns:
            features (B, C, h, w), each with the positions in ``kept`` of the sub-networks that end in them.
        """
        streams: list[tuple[Tensor, list[int]]] = [(x, list(range(len(kept))))]
        for index, block in enumerate(self.body):
            assert isinstance(block, ResidualBlock)
            running: list[tuple[Tensor, list[int]]] = []
            skipping: list[tuple[Tensor, list[int]]] = []
            for features, members in streams:
                inside = [i for i in members if index in kept[i]]
                outside = [i for i in members if index not in kept[i]]
                if inside:
                    running.append((features, inside))
                if outside:
                    skipping.append((features, outside))
            results = block([f for f, _ in running]) if running else []
            streams = [(f, m) for f, (_, m) in zip(results, running, strict=True)]
            streams += [(block.skip(f), m) for f, m in skipping]
        return streams

    def _reconstruct(self, features: Tensor, shallow: Tensor) -> Tensor:
        features = self.conv_after_body(features) + shallow
        out: Tensor = self.conv_last(self.upsample(features))  # (B, 3, r*h, r*w)
        return out / self.img_range + self.mean

    # --- depth ---------------------------------------------------------------------------------------------------

    @property
    def num_block(self) -> int:
        """Blocks of the full network."""
        return len(self.body)

    def rank_blocks(self) -> tuple[int, ...]:
        """Rank the blocks by their learned shortcuts, smallest kept first, and keep that ranking."""
        return self.set_ranking(dqa.rank_by_shortcut([b.shortcut for b in self.body]))  # type: ignore[misc]

    def set_ranking(self, ranking: Sequence[int]) -> tuple[int, ...]:
        """Set the order in which sub-networks keep blocks.

        Raises:
            ValueError: unless ``ranking`` is a permutation of the block indices.
        """
        self.ranking = dqa.check_ranking(ranking, self.num_block)
        return self.ranking

    def blocks_kept(self, depth: int | None) -> tuple[int, ...]:
        """Indices of the blocks that ``net(x, depth)`` runs.

        Raises:
            ValueError: if the depth is out of range, or below full depth before the blocks were ranked.
        """
        if depth is None or depth == self.num_block:
            return tuple(range(self.num_block))
        if self.ranking is None:
            raise ValueError(
                "the blocks are not ranked yet; call rank_blocks() after stage 1, or set_ranking(order)"
            )
        return dqa.blocks_kept(self.ranking, depth, self.depth_rule)

    # --- state ---------------------------------------------------------------------------------------------------

    def arch_options(self) -> dict[str, Any]:
        """The options that build this network again, as ``network_g`` in an option file."""
        return {"type": "QuantSR_C", **self._options, "depths": list(self.depths)}

    def load_float(
        self, state_dict: Mapping[str, Tensor], which: Literal["all", "head_tail"] = "all"
    ) -> LoadReport:
        """Start from a float network of EDSR's or MSRResNet's shape: copy the tensors of the same name and shape.

        Args:
            state_dict: of BasicSR's ``EDSR`` or ``MSRResNet``.
            which: ``all`` matching tensors, or, as the released code, only those of ``conv_last``,
                ``conv_after_body`` and ``upsample``.

        Raises:
            ValueError: if nothing matches.
        """
        prefixes = ("conv_last.", "conv_after_body.", "upsample.") if which == "head_tail" else ("",)
        return copy_float(self, state_dict, prefixes)
