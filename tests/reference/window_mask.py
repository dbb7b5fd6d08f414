"""Reference mask of shifted windows, pixel by pixel and window by window."""

from __future__ import annotations

import torch
from torch import Tensor


def shifted_window_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """(windows, N, N): 0 for tokens that were neighbours before the cyclic shift, else -100."""
    masks = []
    for top in range(0, height, window):
        for left in range(0, width, window):
            places = [(top + y, left + x) for y in range(window) for x in range(window)]
            # Whether each token wraps around when the picture is rolled by `shift` up and left.
            wrapped = [(y + shift >= height, x + shift >= width) for y, x in places]
            masks.append([[0.0 if a == b else -100.0 for b in wrapped] for a in wrapped])
    return torch.tensor(masks)


def windows_of(picture: list[list[int]], window: int, shift: int) -> list[list[int]]:
    """Rows of a picture rolled by ``shift`` up and left, as windows of values row by row."""
    height, width = len(picture), len(picture[0])
    return [
        [
            picture[(top + y + shift) % height][(left + x + shift) % width]
            for y in range(window)
            for x in range(window)
        ]
        for top in range(0, height, window)
        for left in range(0, width, window)
    ]
