"""SwinIR's blocks with quantizable layers: window attention, Swin layer, RSTB.

Shapes: B pictures, L = H * W tokens on the padded grid (H, W), C ``embed_dim``, G windows of N
tokens each in a picture, h heads of d channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantsr.archs.dqa import Stream, Unit, advance, as_unit
from quantsr.archs.windows import from_windows, relative_positions, shifted_window_mask, to_windows
from quantsr.quant.attention import attention_products
from quantsr.quant.autograd import QuantizedWeight, shortcut_add
from quantsr.quant.layers import QuantizedLayer, compute_dtype

Grid = tuple[int, int]
Weights = Mapping[str, QuantizedWeight | None]
"""Weights quantized once for several streams, by the name of the layer."""


class SwinShape(NamedTuple):
    """What all layers of a network have in common."""

    dim: int
    num_heads: int
    window_size: int
    mlp_ratio: float
    nbits_attention: int
    quantizer: str


def quantized_weights(module: nn.Module, dtype: torch.dtype) -> Weights:
    """The weights of all layers in ``module``, quantized."""
    layers = {name: m for name, m in module.named_modules() if isinstance(m, QuantizedLayer)}
    return {name: layer.quantized_weight(dtype) for name, layer in layers.items()}


class WindowAttention(nn.Module):
    """Multi-head self attention inside windows, with a learned bias for relative positions."""

    def __init__(self, shape: SwinShape) -> None:
        super().__init__()
        self.num_heads = shape.num_heads
        self.head_dim = shape.dim // shape.num_heads
        tokens = shape.window_size**2
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * shape.window_size - 1) ** 2, shape.num_heads)
        )
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer(
            "relative_position_index", relative_positions(shape.window_size), persistent=False
        )
        self.relative_position_index: Tensor
        self.qkv = nn.Linear(shape.dim, 3 * shape.dim)
        self.scores, self.mixture = attention_products(
            channels=shape.dim,
            heads=shape.num_heads,
            tokens=tokens,
            nbits=shape.nbits_attention,
            quantizer=shape.quantizer,
        )
        self.proj = nn.Linear(shape.dim, shape.dim)

    def forward(self, x: Tensor, mask: Tensor | None, weights: Weights) -> Tensor:
        """(B * G, N, C) to the same.

        Args:
            mask: (G, N, N) to add to the scores, or None.
            weights: of ``attn.qkv`` and ``attn.proj``.
        """
        q, k, v = self.qkv(x, weights["attn.qkv"]).chunk(3, -1)  # (B * G, N, C) each
        bias = self.relative_position_bias_table[self.relative_position_index]  # (N, N, h)
        bias = bias.permute(2, 0, 1)  # (h, N, N)
        if mask is not None:
            bias = bias + mask.unsqueeze(1)  # (G, h, N, N)
        if self.scores.is_quantized:
            mixed = self._attend_quantized(q, k, v, bias)
        elif x.is_cuda:
            mixed = self._attend_fused(q, k, v, bias)
        else:
            mixed = self._attend(q, k, v, bias)
        return self.proj(mixed, weights["attn.proj"])

    def _attend_quantized(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        scores = self.scores(q, k).float() * self.head_dim**-0.5  # (B * G, h, N, N)
        mixed = self.mixture(_add_bias(scores, bias).softmax(-1), v)  # (B * G, h, N, d)
        return mixed.transpose(1, 2).flatten(2)  # (B * G, N, C)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Float operands; in bfloat16 on a CPU twice as fast as the fused function."""
        q, k, v = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, k, v)
        )  # (B * G, h, N, d)
        with torch.autocast(q.device.type, enabled=False):
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)  # (B * G, h, N, N)
            mixed = _add_bias(scores, bias.to(q.dtype)).softmax(-1) @ v
        return mixed.transpose(1, 2).flatten(2)  # (B * G, N, C)

    def _attend_fused(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """The fused function, with windows as heads so that no bias is copied per picture."""
        groups = bias.shape[0] if bias.dim() == 4 else 1
        shape = (-1, groups, q.shape[1], self.num_heads, self.head_dim)
        heads = [t.reshape(shape).transpose(2, 3).flatten(1, 2) for t in (q, k, v)]  # (B, G * h, N, d)
        mask = bias.reshape(1, -1, *bias.shape[-2:]).to(q.dtype)  # (1, G * h, N, N)
        out = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=mask)
        return out.unflatten(1, (groups, -1)).transpose(2, 3).reshape(q.shape)  # (B * G, N, C)


def _add_bias(scores: Tensor, bias: Tensor) -> Tensor:
    """Scores (B * G, h, N, N) plus a bias (h, N, N), or (G, h, N, N) if it includes a mask."""
    if bias.dim() == 3:
        return scores + bias
    return (scores.unflatten(0, (-1, bias.shape[0])) + bias).flatten(0, 1)


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, shape: SwinShape) -> None:
        super().__init__()
        hidden = int(shape.dim * shape.mlp_ratio)
        self.fc1 = nn.Linear(shape.dim, hidden)
        self.fc2 = nn.Linear(hidden, shape.dim)

    def forward(self, x: Tensor, weights: Weights) -> Tensor:
        """(B, L, C) to the same."""
        return self.fc2(F.gelu(self.fc1(x, weights["mlp.fc1"])), weights["mlp.fc2"])


class SwinLayer(Unit):
    """Window attention and MLP, each behind a LayerNorm and added to its input.

    As a unit of depth (``is_unit``) it computes ``s * x`` plus both branches.
    """

    def __init__(self, shape: SwinShape, *, shift: int, is_unit: bool) -> None:
        super().__init__()
        self.window_size = shape.window_size
        self.shift = shift
        self.is_unit = is_unit
        self.norm1 = nn.LayerNorm(shape.dim)
        self.attn = WindowAttention(shape)
        self.norm2 = nn.LayerNorm(shape.dim)
        self.mlp = Mlp(shape)
        if is_unit:
            self.add_shortcut()

    def forward(self, features: Sequence[Tensor], grid: Grid) -> list[Tensor]:
        """The layer on several tensors (B, L, C), its weights quantized once."""
        weights = quantized_weights(self, compute_dtype(features[0]))
        mask = None
        if self.shift:
            mask = shifted_window_mask(grid, self.window_size, self.shift, features[0].device)
        out = []
        for x in features:
            windows = to_windows(self.norm1(x), grid, self.window_size, self.shift)
            attended = from_windows(self.attn(windows, mask, weights), grid, self.window_size, self.shift)
            middle = x + attended
            changed = self.mlp(self.norm2(middle), weights)
            if self.is_unit:
                out.append(shortcut_add(x, attended + changed, self.shortcut, 1.0))
            else:
                out.append(middle + changed)
        return out


class RSTB(Unit):
    """Residual Swin transformer block: Swin layers, a convolution, and a shortcut around both.

    Args:
        layers: how many Swin layers.
        conv: the convolution at the end, (B, C, H, W) to the same.
        layers_are_units: whether depth counts Swin layers instead of RSTBs.
    """

    def __init__(self, shape: SwinShape, *, layers: int, conv: nn.Module, layers_are_units: bool) -> None:
        super().__init__()
        half = shape.window_size // 2
        self.blocks = nn.ModuleList(
            SwinLayer(shape, shift=half * (i % 2), is_unit=layers_are_units) for i in range(layers)
        )
        self.conv = conv
        self.is_unit = not layers_are_units
        if self.is_unit:
            self.add_shortcut()

    def layers(self) -> Sequence[Unit]:
        """The Swin layers."""
        return [as_unit(block) for block in self.blocks]

    def forward(
        self, streams: Sequence[Stream], grid: Grid, keeps: Sequence[Sequence[bool]] | None = None
    ) -> list[Stream]:
        """The block on several streams of features (B, L, C).

        Args:
            grid: H and W.
            keeps: for each Swin layer, whether each sub-network keeps it; None: all do.
        """
        inner = list(streams)
        for index, layer in enumerate(self.layers()):
            if keeps is not None:
                inner = advance(layer, inner, keeps[index], grid)
            else:
                results = layer([stream.features for stream in inner], grid)
                inner = [Stream(f, s.members) for f, s in zip(results, inner, strict=True)]
        weights = quantized_weights(self.conv, compute_dtype(inner[0].features))
        out = []
        for features, members in inner:
            x = next(s.features for s in streams if members[0] in s.members)
            residual = self._convolve(features, grid, weights)
            total = shortcut_add(x, residual, self.shortcut, 1.0) if self.is_unit else x + residual
            out.append(Stream(total, members))
        return out

    def _convolve(self, features: Tensor, grid: Grid, weights: Weights) -> Tensor:
        x = to_map(features, grid)
        if isinstance(self.conv, nn.Sequential):
            for name, layer in self.conv.named_children():
                x = layer(x, weights[name]) if isinstance(layer, QuantizedLayer) else layer(x)
        else:
            x = self.conv(x, weights[""]) if isinstance(self.conv, QuantizedLayer) else self.conv(x)
        return to_tokens(x)


def to_map(tokens: Tensor, grid: Grid) -> Tensor:
    """(B, L, C) as (B, C, H, W), channels last in memory, without a copy."""
    return tokens.unflatten(1, grid).permute(0, 3, 1, 2)


def to_tokens(features: Tensor) -> Tensor:
    """(B, C, H, W) as (B, L, C), without a copy where channels are last in memory."""
    return features.permute(0, 2, 3, 1).flatten(1, 2)
