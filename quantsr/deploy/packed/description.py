"""What a packed network is, beyond its parameters. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quantsr.errors import InputError
from quantsr.trained_files.packed_header import FORMAT_WITHOUT_RANGES


@dataclass(frozen=True)
class Header:
    """What the network is, beyond its layers."""

    arch: Mapping[str, Any]
    """The network's constructor arguments and its `type`, as `net.arch_options()` gives them."""
    scale: int
    depths: tuple[int, ...]
    """Depths that can be run, descending."""
    num_block: int
    """Units of depth of the full network: residual blocks, RSTBs or Swin layers."""
    shortcuts: tuple[float, ...]
    """One learned shortcut scalar s per unit of the full network."""
    ranking: tuple[int, ...] | None = None
    """Block indices, kept first; None where the blocks were never ranked (then only full depth
    runs)."""
    res_scale: float = 1.0
    img_range: float = 255.0
    rgb_mean: tuple[float, float, float] = (0.4488, 0.4371, 0.4040)
    head_tail_bits: int = 32
    provenance: Mapping[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_WITHOUT_RANGES

    def blocks_kept(self, depth: int) -> tuple[int, ...]:
        """Ascending indices of the blocks that run at `depth`.

        Raises InputError naming the depths there are.
        """
        if depth not in self.depths:
            raise InputError(f"depth: {depth} is not in this network; choose one of {list(self.depths)}")
        if depth == self.num_block:
            return tuple(range(self.num_block))
        if self.ranking is None:
            raise InputError(
                f"depth: the blocks of this network were never ranked; only depth {self.num_block} can run"
            )
        # The released code keeps one block more than the paper says (method: DQA).
        extra = 1 if self.arch.get("depth_rule", "exact") == "released" else 0
        return tuple(sorted(self.ranking[: depth + extra]))


def tail_stages(arch: Mapping[str, Any], scale: int) -> list[tuple[str, int]]:
    """The tail of QuantSR-C: (name of the conv, factor of the pixel shuffle behind it, 1 for none),
    in order.

    Raises InputError for another upsampler than these two, or a scale that has no stages.
    """
    upsampler = arch.get("upsampler", "pixelshuffle")
    if upsampler == "pixelshuffledirect":
        return [("upsample.0", scale)]
    if upsampler != "pixelshuffle":
        raise InputError(f"upsampler: {upsampler!r} is not known; use pixelshuffle or pixelshuffledirect")
    return [*upsample_stages(scale), ("conv_last", 1)]


def upsample_stages(scale: int) -> list[tuple[str, int]]:
    """EDSR's upsampler: (name of the conv, factor of the pixel shuffle behind it), in order.

    Powers of two take one x2 stage each, 3 takes one x3 stage, 1 none. Raises InputError for
    others.
    """
    if scale == 3:
        return [("upsample.0", 3)]
    if scale < 1 or scale & (scale - 1):
        raise InputError(f"scale: {scale} has no upsampler; use 3 or a power of two")
    return [(f"upsample.{2 * i}", 2) for i in range(int(math.log2(scale)))]
