"""A folded QuantSR-T, the constants that all engines run (`fold` computes them). Imports no torch.

Letters: C channels, O outputs and I inputs of a layer, h heads, N tokens in a window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantsr.deploy.fold import FoldedConv, FromPixels
from quantsr.deploy.model import Float

NORM_EPS = 1e-5
"""Added to the variance in LayerNorm."""
MASKED = -100.0
"""Added to the score of two tokens that were no neighbours before the cyclic shift, as in
SwinIR."""


@dataclass(frozen=True, eq=False)
class Quantize:
    """`clip(rint(x * multiplier + shift), *limits)`; product rounded before the sum."""

    name: str
    multiplier: Float
    """() or, for each channel, (C,)."""
    shift: Float
    """(C,)"""
    limits: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Norm:
    """LayerNorm over channels; with `limits`, weight and bias give units of codes, and the result
    is rounded and clipped to them."""

    name: str
    weight: Float
    bias: Float
    limits: tuple[int, int] | None = None


class FoldedLinear(FoldedConv):
    """`FoldedConv` for tokens: weight (O, I), no padding, no shuffle."""


@dataclass(frozen=True, eq=False)
class ConvStage:
    """A conv on a map: its input quantized first, LeakyReLU and a pixel shuffle behind it, each
    where there is one."""

    quantize: Quantize | None
    conv: FoldedConv
    slope: float | None = None
    shuffle: int = 1


@dataclass(frozen=True, eq=False)
class Attention:
    """`proj(softmax(q k^T * score_multiplier + bias) v * mix)`, the operands codes (of `codes_out`
    of q, k, v) or floats."""

    name: str
    heads: int
    q: FoldedLinear
    k: FoldedLinear
    v: FoldedLinear
    score_multiplier: np.float32
    bias: Float
    """(h, N, N)"""
    probabilities: Quantize | None
    """Its shift is one per position in the window, (N,)."""
    mix: Quantize | np.float32
    """From the sums of the mixture to the input of proj: its codes, or a factor where proj reads
    floats."""
    proj: FoldedLinear

    @property
    def quantized(self) -> bool:
        """Whether the operands of both products are codes."""
        return self.probabilities is not None


@dataclass(frozen=True, eq=False)
class FoldedSwinLayer:
    """`m = x + attention(norm1(x)); out = middle_multiplier * m + input_multiplier * x +
    fc2(gelu(fc1(norm2(m))))`.

    As a unit of depth with shortcut s, followed by skipped units of product p, middle_multiplier is
    p and input_multiplier p * (s - 1).
    """

    norm1: Norm
    attention: Attention
    norm2: Norm
    fc1: FoldedLinear
    gelu: Quantize | None
    """Quantizes what GELU gives."""
    fc2: FoldedLinear
    shift: int
    """Of its windows, in pixels."""
    middle_multiplier: np.float32
    input_multiplier: np.float32


@dataclass(frozen=True, eq=False)
class Rstb:
    """`stream_multiplier * x + closing(layers(start_multiplier * x))`."""

    start_multiplier: np.float32
    layers: tuple[FoldedSwinLayer, ...]
    closing: tuple[ConvStage, ...]
    stream_multiplier: np.float32


@dataclass(frozen=True, eq=False)
class FoldedSwin(FromPixels):
    """The network at one depth, from pixels (0..255) to pixels.

    shallow = head(input); blocks on norm_first(shallow); tail(closing(norm(.)) + shallow), in pixel
    values.
    """

    window: int
    norm_first: Norm
    blocks: tuple[Rstb, ...]
    norm: Norm
    closing: tuple[ConvStage, ...]
    tail: tuple[ConvStage, ...]
    scale: int
    """The upscaling factor."""
