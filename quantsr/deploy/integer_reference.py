"""The integer reference of a packed network: what every engine is compared with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from quantsr.deploy import architectures, fold, integer
from quantsr.deploy.model import PackedModel
from quantsr.deploy.quantsr_t import fold as fold_t
from quantsr.deploy.quantsr_t import integer as integer_t

Image = np.ndarray


def run(model: PackedModel, image: Image, depth: int | None = None) -> Image:
    """Upscale a uint8 RGB picture (H, W, 3) to uint8 (H*s, W*s, 3). Raises InputError for an
    unknown depth."""
    return reference(model, depth)(image)


def reference(model: PackedModel, depth: int | None = None) -> Callable[[Image], Image]:
    """`run` for many pictures, the network folded once."""
    chosen = model.depth_or_default(depth)
    if architectures.of(model.header).name == "QuantSR_T":
        swin = fold_t.fold(model, chosen)
        return lambda image: integer_t.run_folded(swin, image)
    net = fold.fold(model, chosen)
    return lambda image: integer.run_folded(net, image)
