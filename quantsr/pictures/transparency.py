"""Colours of fully transparent pixels, and upscaling of alpha, by interpolation instead of a
network."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]


def fill_hidden(rgb: Pixels, alpha: Pixels | None) -> Pixels:
    """`rgb` with fully transparent pixels (alpha 0) replaced by the colour of the nearest visible
    pixel.

    Editors store an arbitrary colour there (mostly black), which the network would mix into the
    edge. An alpha that rounds to 0 of 255 counts as 0. A picture with only visible, or only
    transparent, pixels is returned unchanged.

    Args:
        rgb: (H, W, 3), uint8 or uint16.
        alpha: (H, W), same type, or None.
    """
    if alpha is None:
        return rgb
    hidden = alpha <= np.iinfo(alpha.dtype).max // 510
    if hidden.all() or not hidden.any():
        return rgb
    import cv2  # on demand: it loads slowly, and most pictures do not need it

    _, labels = cv2.distanceTransformWithLabels(
        hidden.astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    visible = np.flatnonzero(~hidden)
    places = np.zeros(int(labels.max()) + 1, np.int64)
    places[labels.ravel()[visible]] = visible  # label -> pixel
    filled = rgb.copy()
    filled[hidden] = rgb.reshape(-1, 3)[places[labels[hidden]]]
    return filled


def scale_alpha(alpha: Pixels, scale: int, first: int = 0, stop: int | None = None) -> Pixels:
    """Rows `first` to `stop` (of the upscaled plane) of `alpha` enlarged by bicubic interpolation.

    Transparency is a mask, not a photograph: the network is not run on it.
    """
    import cv2

    height, width = alpha.shape
    stop = height * scale if stop is None else stop
    # with the rows that four taps reach
    top, bottom = max(0, first // scale - 2), min(height, -(-stop // scale) + 2)
    part = alpha[top:bottom]
    large = cv2.resize(part, (width * scale, len(part) * scale), interpolation=cv2.INTER_CUBIC)
    return large[first - top * scale : stop - top * scale]


def on_white(rgb: Pixels, alpha: Pixels) -> Pixels:
    """`rgb` (H, W, 3) over white, for files without transparency."""
    top = np.float32(np.iinfo(rgb.dtype).max)
    share = alpha[..., None].astype(np.float32) / top
    return np.rint(rgb * share + top * (1 - share)).astype(rgb.dtype)
