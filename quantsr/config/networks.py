"""Checks of network sections before anything is built: arguments, bits and depths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from quantsr.config import registries
from quantsr.config.binding import bind
from quantsr.config.problems import Problems, did_you_mean, show
from quantsr.depth import default_depths

_BITS = (*range(2, 9), 32)
_COUNTS = ("num_in_ch", "num_out_ch", "num_feat", "num_block", "embed_dim", "layers_per_block", "window_size")

_MAX_COUNT = 4096
_MAX_WEIGHTS = 2**30
"""Limit for one layer of all blocks together: a larger network is a typing error, and would exhaust
the machine's memory."""

CHANNELS = 3
"""Channels of every picture that is read."""

_CHANNELS = ("num_in_ch", "num_out_ch", "in_chans")


def check_network(
    key: str, section: Any, scale: Any, problems: Problems, *, channels: Sequence[int] = (CHANNELS,)
) -> dict[str, Any] | None:
    """Check ``type`` and keyword arguments of a network section against its constructor.

    Args:
        key: ``"network_g"`` or ``"network_teacher"``.
        section: the section as read, ``type`` and arguments side by side.
        scale: the upscaling factor of the run, where it is known.
        problems: receives unknown, missing and mistyped arguments, unsupported bits, and depths
            that are too large.
        channels: of the picture that it may have.

    Returns:
        All arguments of the constructor, defaults included; None where the network is unknown.
    """
    if not isinstance(section, dict) or not isinstance(section.get("type"), str):
        return None  # a problem that the schema reports
    known = registries.networks()
    name = section["type"]
    if name not in known:
        problems.add((key, "type"), f"no network {name!r} is registered; {did_you_mean(name, known)}")
        return None
    given = {word: value for word, value in section.items() if word != "type"}
    bound = bind((key,), name, known[name], given, problems)
    _check_values(key, bound, problems, channels)
    _check_size(key, bound, problems)
    _check_depths(key, bound, problems)
    if isinstance(scale, int) and isinstance(bound.get("upscale"), int) and bound["upscale"] != scale:
        written = "is" if "upscale" in given else "is by default"
        problems.add((key, "upscale"), f"{written} {bound['upscale']} but scale is {scale}; make them equal")
    return bound


def network_depths(bound: dict[str, Any]) -> list[int] | None:
    """The depths (number of blocks) that a network is made for, deepest first; None where it has
    one depth only."""
    blocks = depth_units(bound)
    if "depths" not in bound or blocks is None:
        return None
    depths = bound["depths"]
    if depths is None:
        return list(default_depths(blocks))
    return [depths] if isinstance(depths, int) else list(depths)


def depth_units(bound: dict[str, Any]) -> int | None:
    """How many units (blocks, or with ``dqa_unit: layer`` their layers) depths count; None where
    that is unknown. Of a ``trunk`` the largest depth, which must be that of all units."""
    if "trunk" in bound:
        depths = bound["depths"]
        whole = isinstance(depths, list) and depths and all(isinstance(depth, int) for depth in depths)
        return max(depths) if whole else None
    counts = [bound.get("num_block"), bound.get("layers_per_block", 1)]
    if not all(isinstance(count, int) for count in counts):
        return None
    return counts[0] * (counts[1] if bound.get("dqa_unit") == "layer" else 1)


def _check_values(key: str, given: dict[str, Any], problems: Problems, channels: Sequence[int]) -> None:
    for word, value in given.items():
        if word.startswith("nbits") and value not in _BITS:
            problems.add((key, word), f"bits must be 2..8, or 32 for float, got {show(value)}")
        elif word in _COUNTS and not (isinstance(value, int) and value > 0):
            problems.add((key, word), f"must be a whole number > 0, got {show(value)}")
        elif word in _COUNTS and value > _MAX_COUNT:
            problems.add((key, word), f"must be at most {_MAX_COUNT}, got {show(value)}")
        elif word in _CHANNELS and value not in channels:
            possible = " or ".join(map(str, channels))
            problems.add(
                (key, word),
                f"must be {possible}, got {show(value)}: pictures are red, green and blue here, gray ones too; "
                f"set {CHANNELS}",
            )
        elif word == "quantizer" and isinstance(value, str):
            known = registries.quantizers()
            if value not in known:
                problems.add(
                    (key, word), f"no quantizer {value!r} is registered; {did_you_mean(value, known)}"
                )


def _check_size(key: str, bound: dict[str, Any], problems: Problems) -> None:
    channels = bound.get("num_feat", bound.get("embed_dim"))
    sizes = [channels, channels, bound.get("num_block", 1), bound.get("layers_per_block", 1)]
    if not all(isinstance(size, int) and 0 < size <= _MAX_COUNT for size in sizes):
        return
    if math.prod(sizes) > _MAX_WEIGHTS:
        what = f"{sizes[2] * sizes[3]} layers of {channels} channels"
        problems.add((key,), f"is too large to be built: {what}; take fewer")


def _check_depths(key: str, bound: dict[str, Any], problems: Problems) -> None:
    depths, blocks = network_depths(bound), depth_units(bound)
    if depths is None or blocks is None or bound["depths"] is None:
        return
    check_depth_list((key, "depths"), depths, blocks, problems)
    if blocks not in depths:
        problems.add((key, "depths"), f"{show(depths)} lacks the full depth {blocks}; add it")


def check_depth_list(key: Sequence[str], depths: Sequence[Any], blocks: int, problems: Problems) -> None:
    """Note depths that are not within 1..``blocks``, or given twice."""
    for depth in depths:
        if not isinstance(depth, int) or not 1 <= depth <= blocks:
            problems.add(
                key, f"depth {show(depth)} is not within 1..{blocks}, the blocks of the network; correct it"
            )
    if any(depths.count(depth) > 1 for depth in depths):
        problems.add(key, f"the same depth twice in {show(depths)}; remove one")
