"""Cutting a network down to one of its depths: the file then holds only the blocks that run.
Imports no torch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from quantsr.deploy import architectures
from quantsr.deploy.model import Header, PackedModel
from quantsr.errors import InputError


def restrict(model: PackedModel, depth: int) -> PackedModel:
    """The network of `depth` blocks as one of its own, with the depths below it.

    Blocks that never run are dropped, the others renumbered. What a dropped block did, multiply by
    its shortcut, is folded into those that stay, which is exact but for the rounding of their
    constants.

    Raises InputError for an unknown depth, shortcuts whose product is not positive, or units that
    cannot be taken out.
    """
    header = model.header
    kept = header.blocks_kept(depth)
    if len(kept) == header.num_block:
        return model
    shortcuts = np.asarray(header.shortcuts, np.float64)
    gaps = [
        float(np.prod(shortcuts[a + 1 : b])) for a, b in itertools.pairwise((-1, *kept, header.num_block))
    ]
    if min(gaps) <= 0:
        raise InputError(
            f"depth: the shortcuts dropped at depth {depth} are not positive; export the full depth instead"
        )
    cut = architectures.of(header).cut(model, kept, np.asarray(gaps))
    return PackedModel(
        _restricted_header(header, kept, depth, cut.shortcuts), cut.layers, cut.operands, cut.floats
    )


def _restricted_header(
    header: Header, kept: tuple[int, ...], depth: int, shortcuts: tuple[float, ...]
) -> Header:
    number = {old: new for new, old in enumerate(kept)}
    assert header.ranking is not None  # else only the full depth exists
    # Under the released rule a depth of d keeps d + 1 blocks; the cut network counts what it has.
    depths = tuple(len(header.blocks_kept(d)) for d in header.depths if d <= depth)
    arch: Mapping[str, Any] = {
        **header.arch,
        "num_block": len(kept),
        "depths": list(depths),
        **({"depth_rule": "exact"} if "depth_rule" in header.arch else {}),
    }
    return replace(
        header,
        arch=arch,
        depths=depths,
        num_block=len(kept),
        shortcuts=shortcuts,
        ranking=tuple(number[i] for i in header.ranking if i in number),
    )
