"""Windows of a Swin transformer: padding, partition, and the mask of shifted windows.

Shapes: B pictures, H and W multiples of the window size w, C channels, G = (H / w) * (W / w)
windows, N = w * w tokens in one, L = H * W.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

MASKED = -100.0
"""Added to the score of two tokens that must not see each other, as in SwinIR."""


def reflect_pad(x: Tensor, multiple: int) -> Tensor:
    """(B, C, h, w) reflected at its lower and right edge to the next multiple of ``multiple``.

    The edge itself is not repeated, as in ``torch.nn.functional.pad(mode="reflect")``; unlike there
    a picture smaller than the padding is reflected several times.
    """
    for dim in (-2, -1):
        size = x.shape[dim]
        missing = -size % multiple
        if missing:
            x = x.index_select(dim, _reflected(size, size + missing, x.device))
    return x


def _reflected(size: int, padded: int, device: torch.device) -> Tensor:
    """``0, 1, ..., size - 1, size - 2, ..., 1, 0, 1, ...``, ``padded`` indices."""
    period = max(2 * (size - 1), 1)
    position = torch.arange(padded, device=device) % period
    return torch.minimum(position, period - position) if size > 1 else torch.zeros_like(position)


def to_windows(x: Tensor, grid: tuple[int, int], window: int, shift: int) -> Tensor:
    """(B, L, C) as (B * G, N, C), after a cyclic shift by ``shift`` up and to the left.

    Args:
        grid: H and W.
    """
    (height, width), channels = grid, x.shape[-1]
    x = x.unflatten(1, grid)  # (B, H, W, C)
    if shift:
        x = x.roll((-shift, -shift), (1, 2))
    x = x.view(-1, height // window, window, width // window, window, channels)  # (B, H/w, w, W/w, w, C)
    return x.transpose(2, 3).reshape(-1, window * window, channels)  # (B, H/w, W/w, w, w, C) to (B * G, N, C)


def from_windows(x: Tensor, grid: tuple[int, int], window: int, shift: int) -> Tensor:
    """The inverse of :func:`to_windows`: (B * G, N, C) as (B, L, C)."""
    (height, width), channels = grid, x.shape[-1]
    x = x.view(-1, height // window, width // window, window, window, channels)  # (B, H/w, W/w, w, w, C)
    x = x.transpose(2, 3).reshape(-1, height, width, channels)  # (B, H/w, w, W/w, w, C) to (B, H, W, C)
    if shift:
        x = x.roll((shift, shift), (1, 2))
    return x.flatten(1, 2)  # (B, L, C)


@functools.lru_cache(maxsize=4)
def shifted_window_mask(grid: tuple[int, int], window: int, shift: int, device: torch.device) -> Tensor:
    """Attention mask of shifted windows, (G, N, N).

    0 where both tokens are from the same region before the cyclic shift, ``MASKED`` elsewhere.

    All shifted layers of a forward pass share it, so the last few sizes are kept.

    Args:
        grid: H and W.
        shift: 1..window - 1.
    """
    # Outside any inference mode: a cached inference tensor could not be saved for backward later.
    with torch.inference_mode(False), torch.no_grad():
        regions = [_regions(size, window, shift, device) for size in grid]
        labels = 3 * regions[0].unsqueeze(1) + regions[1].unsqueeze(0)  # (H, W)
        tokens = to_windows(labels.reshape(1, -1, 1), grid, window, 0).squeeze(-1)  # (G, N)
        apart = tokens.unsqueeze(1) != tokens.unsqueeze(2)  # (G, N, N)
        return apart * MASKED


def _regions(size: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Region along one axis: 0 whole windows, 1 last window before the seam, 2 after the seam."""
    position = torch.arange(size, device=device)
    return (position >= size - window).long() + (position >= size - shift).long()


def relative_positions(window: int) -> Tensor:
    """Rows of the relative position table, (N, N), in 0..(2w - 1)^2 - 1, for pairs of tokens."""
    axis = torch.arange(window)
    y, x = (t.flatten() for t in torch.meshgrid(axis, axis, indexing="ij"))  # (N,)
    rows = y.unsqueeze(1) - y.unsqueeze(0) + window - 1
    columns = x.unsqueeze(1) - x.unsqueeze(0) + window - 1
    return rows * (2 * window - 1) + columns
