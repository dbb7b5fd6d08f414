"""Metrics of one picture: BasicSR's functions, and the smallest pictures that they work on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantsr.basicsr_compat import METRIC_REGISTRY
from quantsr.errors import InputError

Picture = NDArray[np.uint8]
"""uint8 ``(H, W, 3)``, RGB."""

METRIC_SIDES = {"calculate_psnr": 1, "calculate_ssim": 11}
"""The least side in pixels, without borders, of pictures for which BasicSR's metrics are
defined."""


def least_side(metrics: Mapping[str, Mapping[str, Any]]) -> int:
    """The least side of a ground-truth picture for which all of ``metrics`` are defined; other than
    BasicSR's metrics count as 1."""
    sides = [
        METRIC_SIDES.get(str(options["type"]), 1) + 2 * int(options.get("crop_border", 0))
        for options in metrics.values()
    ]
    return max(sides, default=1)


def measure(sr: Picture, gt: Picture, metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Each metric of one picture pair, by BasicSR's function on uint8 BGR.

    Args:
        metrics: name -> ``{"type": registered name, **arguments}``; ``better`` is not an argument.

    Raises:
        InputError: the pictures differ in size, or a metric is not a number for them.
    """
    if sr.shape != gt.shape:
        raise InputError(
            f"upscaled picture is {sr.shape[1]}x{sr.shape[0]}, ground truth {gt.shape[1]}x{gt.shape[0]}; "
            "check scale and the LR folder"
        )
    pair = {"img": np.ascontiguousarray(sr[..., ::-1]), "img2": np.ascontiguousarray(gt[..., ::-1])}
    found = {}
    for name, options in metrics.items():
        arguments = {key: value for key, value in options.items() if key not in ("type", "better")}
        found[name] = float(METRIC_REGISTRY.get(options["type"])(**pair, **arguments))
        if math.isnan(found[name]):
            raise InputError(
                f"{name} is not a number for its {gt.shape[1]}x{gt.shape[0]} pixels; remove the picture or the metric"
            )
    return found
