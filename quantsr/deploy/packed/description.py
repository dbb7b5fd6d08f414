"""What a packed network is, beyond its parameters. Imports no torch."""

from __future__ import annotations

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
