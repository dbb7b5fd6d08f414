"""The integer reference of QuantSR-T: products of codes as exact integers, LayerNorm, softmax and
GELU in float32.

Why float32 matrix products of codes are exact is said in `quantsr.deploy.integer`, whose convs
these are.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from quantsr.deploy import integer
from quantsr.deploy.fold import FoldedConv
from quantsr.deploy.quantsr_t import layout, program
from quantsr.deploy.quantsr_t.folded import NORM_EPS, Attention, FoldedLinear, FoldedSwin, Norm, Quantize


@torch.inference_mode()
def run_folded(net: FoldedSwin, image: np.ndarray) -> np.ndarray:
    """Upscale a uint8 RGB picture (H, W, 3) to uint8 (H*s, W*s, 3)."""
    out: Tensor = program.upscale(net, TorchOps(net, image))
    return out[0].to(torch.uint8).numpy()


class TorchOps:
    """`program.Ops` on PyTorch for one uint8 picture (h, w, 3)."""

    def __init__(self, net: FoldedSwin, image: np.ndarray) -> None:
        self.image, self.window, self.scale = image, net.window, net.scale
        rows, columns = (layout.reflected(size, net.window) for size in image.shape[:2])
        self.padded = image[rows][:, columns]
        self.grid = (len(rows), len(columns))

    def head(self, net: FoldedSwin) -> Tensor:
        return integer.head(net, self.padded)

    def conv(self, conv: FoldedConv, x: Tensor) -> Tensor:
        return integer.conv(conv, x)

    def linear(self, linear: FoldedLinear, x: Tensor) -> Tensor:
        y = _product(x, torch.tensor(linear.weight).T, linear.sum_bound if linear.integer else None)
        y = y * _vector(linear.multiplier) + _vector(linear.bias)
        return y if linear.codes_out is None else y.round().clamp(*linear.codes_out)

    def norm(self, norm: Norm, x: Tensor) -> Tensor:
        y = F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * _vector(norm.weight) + _vector(norm.bias)
        return y if norm.limits is None else y.round().clamp(*norm.limits)

    def quantize(self, quantize: Quantize, x: Tensor, *, channels_last: bool) -> Tensor:
        shape = (-1,) if channels_last else (-1, 1, 1)  # (C,), or () as (1,); on maps (C, 1, 1)
        y = x * _vector(quantize.multiplier).view(shape) + _vector(quantize.shift).view(shape)
        return y.round().clamp(*quantize.limits)

    def attend(self, attention: Attention, q: Tensor, k: Tensor, v: Tensor, shift: int) -> Tensor:
        q, k, v = (
            t.view(-1, self.window**2, attention.heads, t.shape[-1] // attention.heads).transpose(1, 2)
            for t in (q, k, v)
        )  # (G, h, N, d)
        bound = 2**16 * self.window**2 if attention.quantized else None
        # (G, h, N, N)
        scores = _product(q, k.transpose(-2, -1), bound) * float(attention.score_multiplier)
        scores = scores + _vector(attention.bias)  # (h, N, N) to every window
        if shift:
            scores = scores + torch.from_numpy(layout.mask(self.grid, self.window, shift))
        weights = scores.softmax(-1)
        if attention.probabilities is not None:
            weights = self.quantize(attention.probabilities, weights, channels_last=True)
        mixed = _product(weights, v, bound).transpose(1, 2)  # (G, N, h, d)
        mixed = mixed.reshape(1, -1, attention.heads * v.shape[-1])  # (1, L, C)
        if isinstance(attention.mix, Quantize):
            return self.quantize(attention.mix, mixed, channels_last=True)
        return mixed * float(attention.mix)

    def reorder(self, x: Tensor, old: program.Order, new: program.Order) -> Tensor:
        if old == new:
            return x
        return x[:, torch.from_numpy(layout.order_index(self.grid, self.window, old, new))]

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x)

    def leaky_relu(self, x: Tensor, slope: float) -> Tensor:
        return F.leaky_relu(x, slope)

    def shuffle(self, x: Tensor, factor: int) -> Tensor:
        return F.pixel_shuffle(x, factor)

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def multiply(self, x: Tensor, factor: np.float32) -> Tensor:
        return x * float(factor)

    def tokens(self, x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)  # (1, L, C)

    def map(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).unflatten(2, self.grid)  # (1, C, H, W)

    def finish(self, x: Tensor, shuffle: int) -> Tensor:
        height, width = (size * self.scale for size in self.image.shape[:2])
        x = F.pixel_shuffle(x.round().clamp(0, 255), shuffle)
        return x[..., :height, :width].permute(0, 2, 3, 1)  # (1, h*s, w*s, 3)


def _product(a: Tensor, b: Tensor, bound: int | None) -> Tensor:
    """a @ b in float32; exact for integers, whose partial sums stay below `bound`."""
    exact = torch.float32 if bound is None or bound < integer.EXACT_FLOAT32 else torch.float64
    return (a.to(exact) @ b.to(exact)).float()


def _vector(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))
