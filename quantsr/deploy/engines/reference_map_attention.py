"""Attention on maps in the integer reference: in rectangles, between channels, and to all
pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from torch import Tensor

from quantsr.deploy import rectangles
from quantsr.deploy.folded import (
    LEAST_LENGTH,
    ChannelAttention,
    GlobalAttention,
    RectangleAttention,
    side,
)

_MOST_SCORES = 1 << 25  # held at once, 128 MB of float32


class MapAttention(ABC):
    """The operations on tokens (B, L, C) row by row, of floats."""

    grid: tuple[int, int]
    """Height and width of the map."""

    @abstractmethod
    def constant(self, values: np.ndarray) -> Tensor:
        """The values as a tensor."""

    @abstractmethod
    def product(self, a: Tensor, b: Tensor, bound: int | None) -> Tensor:
        """a @ b"""

    def rectangle_attention(self, op: RectangleAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """In windows of a map that zeros continue."""
        height, width = (side(n, op.growth) for n in self.grid)
        where = ((height, width), op.window, op.shift, op.multiple)
        places = self.constant(rectangles.places(*where))  # (G, N)
        split = (-1, places.shape[1], op.heads, q.shape[2] // op.heads)
        q, k, v = (
            torch.cat([x, self.constant(op.beyond_of(i, x.shape[2])).expand(len(x), 1, -1)], 1)[
                :, places.flatten()
            ]
            .view(split)
            .transpose(1, 2)
            for i, x in enumerate((q, k, v))
        )  # (B * G, h, N, d)
        if op.temperature is not None:
            q, k = _of_length_1(q) * self.constant(op.temperature).view(-1, 1, 1), _of_length_1(k)
        scores = self.product(q, k.transpose(2, 3), None) + self.constant(op.bias)  # (B * G, h, N, N)
        if any(op.shift):
            mask = self.constant(rectangles.mask(*where))
            scores = scores + mask.repeat(len(scores) // len(mask), 1, 1, 1)
        mixed = self.product(scores.softmax(-1), v, None).transpose(1, 2)  # (B * G, N, h, d)
        mixed = mixed.reshape(-1, places.numel(), op.heads * split[3])  # (B, G * N, C)
        return mixed[:, self.constant(rectangles.tokens(*where))]

    def channel_attention(self, op: ChannelAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Between the channels of each head, over all pixels."""
        q, k, v = (x.transpose(1, 2).unflatten(1, (op.heads, -1)) for x in (q, k, v))  # (B, h, d, L)
        scores = self.product(_of_length_1(q), _of_length_1(k).transpose(2, 3), None)  # (B, h, d, d)
        scores = scores * self.constant(op.temperature).view(-1, 1, 1)
        return self.product(scores.softmax(-1), v, None).flatten(1, 2).transpose(1, 2)

    def global_attention(self, op: GlobalAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """To all pixels, of a part of the queries at once."""
        q, k, v = (x.unflatten(2, (op.heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, h, L, d)
        some = max(1, _MOST_SCORES // (len(k) * op.heads * k.shape[2]))
        mixed = [
            self.product(self.product(part, k.transpose(2, 3), None).softmax(-1), v, None)
            for part in q.split(some, 2)
        ]
        return torch.cat(mixed, 2).transpose(1, 2).flatten(2)


def _of_length_1(x: Tensor) -> Tensor:
    """Divided by its length along the last dimension."""
    return x / x.double().norm(dim=-1, keepdim=True).clamp_min(LEAST_LENGTH).float()
