"""Dynamic depth: sub-networks that skip units, run in one pass (QuantSR, section 3.3).

A *unit* is a block that a sub-network keeps or skips: a residual block, an RSTB or a Swin layer.
It is a module with

- ``shortcut``: the learned factor ``s`` (1,), by which units are ranked,
- ``unit.skip(x)``: ``s * x``, the output of the unit in a sub-network that skips it,
- ``unit(features: list[Tensor], ...) -> list[Tensor]``: ``s * x + F(x)`` for several tensors,
  weights quantized once, in networks that are written for it, as QuantSR-C and -T are. Any other
  network with a trunk of residual units gets depths by `quantsr.archs.dqa_trunk`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast, get_args, overload

import torch
from torch import Tensor, nn

from quantsr import depth as rules
from quantsr.archs.load_float import FloatStart, LoadReport
from quantsr.depth import DepthRule

Depth = int | Sequence[int] | None


class Stream(NamedTuple):
    """Features, and the sub-networks that share them."""

    features: Tensor
    members: tuple[int, ...]
    """Positions in the list of requested depths: sub-networks with the same units so far."""


class Unit(nn.Module):
    """Base of units: the learned shortcut, 1 at first."""

    shortcut: nn.Parameter

    def add_shortcut(self) -> None:
        """Make this module a unit."""
        self.shortcut = nn.Parameter(torch.ones(1))

    def skip(self, x: Tensor) -> Tensor:
        """``s * x``, the output of the unit in a sub-network that skips it."""
        return x * self.shortcut.to(x.dtype)


def split(streams: Sequence[Stream], keeps: Sequence[bool]) -> tuple[list[Stream], list[Stream]]:
    """Streams of the sub-networks that keep a unit, and of those that skip it.

    Args:
        keeps: for each sub-network, whether it keeps the unit.
    """
    running, skipping = [], []
    for features, members in streams:
        inside = tuple(i for i in members if keeps[i])
        outside = tuple(i for i in members if not keeps[i])
        if inside:
            running.append(Stream(features, inside))
        if outside:
            skipping.append(Stream(features, outside))
    return running, skipping


def advance(unit: Unit, streams: Sequence[Stream], keeps: Sequence[bool], *context: Any) -> list[Stream]:
    """Apply one unit: one call for all streams that keep it, ``skip`` for the others.

    The stream of the full network stays the first, which feature distillation relies on.

    Args:
        context: further arguments of the unit.
    """
    running, skipping = split(streams, keeps)
    results = unit([stream.features for stream in running], *context) if running else []
    return [
        *(Stream(out, stream.members) for out, stream in zip(results, running, strict=True)),
        *(Stream(unit.skip(stream.features), stream.members) for stream in skipping),
    ]


class DepthDynamic(nn.Module):
    """Base of networks whose depth is an argument of each call.

    ``net(x, depth=16)`` runs one sub-network, ``net(x, depth=(32, 16, 8))`` several.

    A subclass builds its layers, calls :meth:`_set_depths`, and defines :meth:`units`,
    :meth:`_shallow`, :meth:`_body` and :meth:`_reconstruct`, or :meth:`run_units` instead of these
    three.
    """

    depths: tuple[int, ...]
    """The sub-networks that are trained and evaluated, deepest first."""
    ranking: tuple[int, ...] | None
    """Indices of units, kept first; None until :meth:`rank_blocks` or :meth:`set_ranking`."""
    depth_rule: DepthRule
    head_tail_converted: bool = False
    """Whether conversion brought the layers outside the units to 8 bits, which it does once."""
    _options: dict[str, Any]

    def _set_depths(
        self, depths: Sequence[int] | None, num_unit: int, depth_rule: DepthRule = "exact"
    ) -> None:
        if depth_rule not in get_args(DepthRule):
            raise ValueError(f"depth_rule must be one of {list(get_args(DepthRule))}, got {depth_rule!r}")
        self.depths = rules.check_depths(depths or rules.default_depths(num_unit), num_unit)
        self.ranking = None
        self.depth_rule = depth_rule

    # --- for the subclass to define ---------------------------------------------------------------

    def units(self) -> Sequence[Unit]:
        """The units in the order of the network."""
        raise TypeError(f"{type(self).__name__} must define units")

    def _shallow(self, x: Tensor) -> Tensor:
        """The float head: pictures (B, 3, h, w) to features (B, C, h, w)."""
        raise TypeError(f"{type(self).__name__} must define _shallow")

    def _body(self, shallow: Tensor, kept: Sequence[frozenset[int]]) -> list[Stream]:
        """The units, for sub-networks that keep the units ``kept``; see :meth:`_start`."""
        raise TypeError(f"{type(self).__name__} must define _body")

    def _reconstruct(self, features: Sequence[Tensor], shallow: Tensor) -> list[Tensor]:
        """The float tail, on the features (B, C, h, w) of several sub-networks: pictures."""
        raise TypeError(f"{type(self).__name__} must define _reconstruct")

    def load_float(self, state_dict: Mapping[str, Tensor], which: FloatStart = "all") -> LoadReport:
        """Copy parameters of a float network of the same shape; ``which`` selects them."""
        raise TypeError(f"{type(self).__name__} must define load_float")

    @property
    def protocol(self) -> str | None:
        """The published protocol of what is quantized, where there are several; else None."""
        return None

    def convert_state_dict(self, state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A state dict under this network's names, where it has other networks' names."""
        return state_dict

    # --- running ----------------------------------------------------------------------------------

    @overload
    def forward(self, x: Tensor, depth: int | None = None) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, depth: Sequence[int]) -> tuple[Tensor, ...]: ...
    def forward(self, x: Tensor, depth: Depth = None) -> Tensor | tuple[Tensor, ...]:
        """Upscale pictures.

        Args:
            x: (B, 3, h, w) in [0, 1], any h, w >= 1.
            depth: units of the sub-network to run, 1..number of units; all by default. Several
                depths run in one pass with shared weights, and share units up to where they differ.

        Returns:
            (B, 3, r*h, r*w), about [0, 1], not clipped; a tuple of them if ``depth`` is a sequence.

        Raises:
            ValueError: if a depth is out of range, or below full depth before the units were
                ranked.
        """
        several = isinstance(depth, Sequence)
        wanted: Sequence[int | None] = depth if isinstance(depth, Sequence) else [depth]
        outputs = self.run_units(x, [frozenset(self.blocks_kept(d)) for d in wanted])
        return tuple(outputs) if several else outputs[0]

    def run_units(self, x: Tensor, kept: Sequence[frozenset[int]]) -> list[Tensor]:
        """The pictures of the sub-networks that keep the units ``kept``.

        They share quantized weights and the units up to where they differ.

        Args:
            x: as for :meth:`forward`.
            kept: indices of units, one set for each sub-network.
        """
        shallow = self._shallow(x)
        outputs: list[Tensor] = [shallow] * len(kept)
        streams = self._body(shallow, kept)
        pictures = self._reconstruct([stream.features for stream in streams], shallow)
        for out, stream in zip(pictures, streams, strict=True):
            for i in stream.members:
                outputs[i] = out
        return outputs

    # --- depth ------------------------------------------------------------------------------------

    def rank_blocks(self) -> tuple[int, ...]:
        """Rank the units by their learned shortcuts, smallest kept first, and keep that ranking."""
        return self.set_ranking(
            rules.rank_by_shortcut([float(unit.shortcut.detach()) for unit in self.units()])
        )

    def set_ranking(self, ranking: Sequence[int]) -> tuple[int, ...]:
        """Set the order in which sub-networks keep units.

        Raises:
            ValueError: unless ``ranking`` is a permutation of the indices of units.
        """
        self.ranking = rules.check_ranking(ranking, len(self.units()))
        return self.ranking

    def blocks_kept(self, depth: int | None) -> tuple[int, ...]:
        """Indices of the units that ``net(x, depth)`` runs.

        Raises:
            ValueError: if the depth is out of range, or below full depth before the units were
                ranked.
        """
        count = len(self.units())
        if depth is None or depth == count:
            return tuple(range(count))
        if self.ranking is None and 1 <= depth < count:
            raise ValueError(
                "the blocks are not ranked yet; call rank_blocks() after stage 1, or set_ranking(order)"
            )
        return rules.blocks_kept(self.ranking or range(count), depth, self.depth_rule)

    # --- state ------------------------------------------------------------------------------------

    def arch_options(self) -> dict[str, Any]:
        """The options that build this network again, as ``network_g`` in an option file."""
        return {**self._options, "depths": list(self.depths)}


def start(shallow: Tensor, count: int) -> list[Stream]:
    """All ``count`` sub-networks together, before the first unit."""
    return [Stream(shallow, tuple(range(count)))]


def as_unit(module: nn.Module) -> Unit:
    """``module``, which the caller built as a unit, under its type."""
    return cast(Unit, module)
