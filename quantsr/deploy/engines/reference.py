"""The integer reference: a folded program in plain integer arithmetic on PyTorch. Every engine is
compared with it.

Why float32 matrix products are exact integer sums here: codes and weights are integers of at most 9
bits, so every product is an integer, and as long as no partial sum can exceed 2**24
(`FoldedConv.sum_bound`) every one of them is a float32 without rounding, in whatever order and with
or without fused multiply-add. Otherwise float64 is used, exact to 2**53. The conv is written as
unfold and matrix product because a conv kernel may transform its operands (Winograd), which would
round. TF32 keeps 11 significant bits, so it would be exact as well.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from quantsr.deploy import windows
from quantsr.deploy.engines.reference_map_attention import MapAttention
from quantsr.deploy.folded import (
    Activation,
    Affine,
    Attention,
    Binary,
    ChannelAttention,
    Concat,
    FirstConv,
    FoldedConv,
    FoldedLinear,
    FoldedProgram,
    GlobalAttention,
    GroupNorm,
    MaxPool,
    Mean,
    Norm,
    Normalize,
    Offset,
    Op,
    Pixels,
    PixelShuffle,
    PixelUnshuffle,
    Quantize,
    RectangleAttention,
    Reorder,
    Requantize,
    ResizeNearest,
    Scale,
    Slice,
    Step,
    ToMap,
    ToTokens,
    UpsampleBilinear,
    UpsampleNearest,
    side,
)
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.passes.fold import fold
from quantsr.deploy.passes.layout import lay_out

Image = np.ndarray
Observer = Callable[[Step, Tensor], None]

EXACT_FLOAT32 = 2**24
_STRIP_VALUES = 2**25  # unfolded values held at once, 128 MB of float32


def run(model: PackedModel, image: Image, depth: int | None = None) -> Image:
    """Upscale a uint8 RGB picture (H, W, 3) to uint8 (H*s, W*s, 3). Raises InputError for an
    unknown depth."""
    return reference(model, depth)(image)


def reference(model: PackedModel, depth: int | None = None) -> Callable[[Image], Image]:
    """`run` for many pictures, the network folded once."""
    program = lay_out(fold(model, depth))
    return lambda image: run_folded(program, image)


@torch.inference_mode()
def run_folded(program: FoldedProgram, image: Image, observe: Observer | None = None) -> Image:
    """Upscale a uint8 RGB picture (H, W, 3) to uint8 (H*s, W*s, 3); `observe` is called with every
    step and its result."""
    rows, columns = (windows.reflected(size, program.multiple) for size in image.shape[:2])
    padded = np.ascontiguousarray(image[rows][:, columns])
    pixels = torch.from_numpy(padded).permute(2, 0, 1)[None].to(torch.float32)  # (1, 3, H, W)
    result = run_steps(program, pixels, ReferenceOps((len(rows), len(columns))), observe)
    height, width = (size * program.scale for size in image.shape[:2])
    return result[0, :, :height, :width].permute(1, 2, 0).to(torch.uint8).numpy()  # (h*s, w*s, 3)


def run_steps(
    program: FoldedProgram, pixels: Tensor, ops: ReferenceOps, observe: Observer | None = None
) -> Tensor:
    """All steps on pixels (B, 3, H, W) in 0..255, padded as the program wants: (B, 3, H*s, W*s)."""
    values: dict[int, Tensor] = {0: pixels}
    last = {value: step for step in program.steps for value in step.inputs}
    for step in program.steps:
        values[step.output] = ops(step.op, *(values[value] for value in step.inputs))
        if observe is not None:
            observe(step, values[step.output])
        for value in set(step.inputs):
            if last[value] is step:
                del values[value]
    return values[program.steps[-1].output]


class ReferenceOps(MapAttention):
    """The operations on tensors: maps (B, C, H, W), tokens (B, L, C), codes as integers in
    float32."""

    def __init__(self, grid: tuple[int, int]) -> None:
        """`grid` is the padded picture's (height, width)."""
        self.grid = grid

    def constant(self, values: np.ndarray) -> Tensor:
        """The values as a tensor; float32 unless they are an index."""
        return torch.from_numpy(values if values.dtype == np.int64 else np.asarray(values, np.float32))

    def sums(self, x: Tensor, conv: FoldedConv) -> Tensor:
        """The convolution without multiplier and bias."""
        return sums(x, conv)

    def product(self, a: Tensor, b: Tensor, bound: int | None) -> Tensor:
        """a @ b, of integers whose partial sums stay below `bound`, or of floats."""
        return product(a, b, bound)

    def _channels(self, values: np.ndarray) -> Tensor:
        """(C,) as (1, C, 1, 1)."""
        return self.constant(values).view(1, -1, 1, 1)

    def _along(self, values: np.ndarray, x: Tensor) -> Tensor:
        """(C,) or one number, to go with a map or with tokens."""
        return self._channels(values) if x.dim() == 4 else self.constant(values)

    def __call__(self, op: Op, *inputs: Tensor) -> Tensor:
        """The result of one operation."""
        run: Callable[..., Tensor] = getattr(self, _METHODS[type(op)])
        return run(op, *inputs)

    def first_conv(self, op: FirstConv, pixels: Tensor) -> Tensor:
        """The first convolution, of the pixels 0..255."""
        if op.pixels_are_codes:
            return self.conv(op.head, pixels)
        x = (pixels / 255 - self._channels(op.mean)) * float(op.img_range)
        return self.conv(op.head, x if op.quantize is None else self.quantize(op.quantize, x))

    def normalize(self, op: Normalize, pixels: Tensor) -> Tensor:
        """The pixels 0..255 as floats."""
        return (pixels / 255 - self._channels(op.mean)) * float(op.img_range)

    def quantize(self, op: Quantize, x: Tensor) -> Tensor:
        """Codes of floats."""
        tau, step = (self._along(values, x) for values in (op.tau, op.step))
        return ((x + tau) / step).clamp(*op.limits).round()

    def requantize(self, op: Requantize, x: Tensor) -> Tensor:
        """Codes of floats."""
        y = x * self._along(op.multiplier, x) + self._along(op.shift, x)
        return y.round().clamp(*op.limits)

    def conv(self, op: FoldedConv, x: Tensor) -> Tensor:
        """A convolution of codes or floats."""
        if op.codes_in is not None:
            x = x.clamp(*op.codes_in)
        if op.zero_point is not None:
            x = x - self._channels(op.zero_point)
        y = self.sums(x, op) * self._channels(op.multiplier) + self._channels(op.bias)
        return self._finished(op, y)

    def linear(self, op: FoldedLinear, x: Tensor) -> Tensor:
        """A linear layer on tokens, or on every pixel of a map."""
        if x.dim() == 4:
            return self.linear(op, x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, x.shape[2:])
        y = self.product(x, self.constant(op.weight).T, op.sum_bound if op.integer else None)
        return self._finished(op, y * self.constant(op.multiplier) + self.constant(op.bias))

    def norm(self, op: Norm, x: Tensor) -> Tensor:
        """LayerNorm of tokens."""
        y = F.layer_norm(x, x.shape[-1:], eps=op.eps) * self.constant(op.weight) + self.constant(op.bias)
        return y if op.limits is None else y.round().clamp(*op.limits)

    def group_norm(self, op: GroupNorm, x: Tensor) -> Tensor:
        """Over the channels and pixels of each group."""
        y = F.group_norm(x.double(), op.groups, eps=op.eps).float()
        return y * self._channels(op.weight) + self._channels(op.bias)

    def attention(self, op: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Window attention of tokens in the order of its windows."""
        batch = len(q)
        if op.overlap:
            k, v = (self.overlapping(op, t) for t in (k, v))
        q, k, v = (
            t.view(-1, tokens, op.heads, t.shape[-1] // op.heads).transpose(1, 2)
            for t, tokens in ((q, op.window**2), (k, op.bias.shape[2]), (v, op.bias.shape[2]))
        )  # (G, h, N, d), (G, h, M, d) twice
        # Sums of scores are over d, those of the mixture over N; products of codes are below 2**16.
        of_scores, of_mixture = (2**16 * n if op.quantized else None for n in (q.shape[-1], q.shape[-2]))
        # (G, h, N, N)
        scores = self.product(q, k.transpose(-2, -1), of_scores) * float(op.score_multiplier)
        scores = scores + self.constant(op.bias)  # (h, N, N) to every window
        if op.shift:
            scores = scores + self.mask(op, len(scores))
        weights = scores.softmax(-1)
        if op.probabilities is not None:
            weights = self.requantize_last(op.probabilities, weights)
        mixed = self.product(weights, v, of_mixture).transpose(1, 2)  # (G, N, h, d)
        mixed = mixed.reshape(batch, -1, op.heads * v.shape[-1])  # (B, L, C)
        if isinstance(op.mix, Requantize):
            return self.requantize(op.mix, mixed)
        return mixed * float(op.mix)

    def overlapping(self, op: Attention, x: Tensor) -> Tensor:
        """Tokens in the order of windows as those of the larger windows around these."""
        index = windows.overlapping_tokens(self.grid, op.window, op.overlap).reshape(-1)
        return F.pad(x, (0, 0, 0, 1))[:, self.constant(index)]

    def mask(self, op: Attention, count: int) -> Tensor:
        """(count, 1, N, N) to add to the scores of all windows."""
        mask = self.constant(windows.mask(self.grid, op.window, op.shift))
        return mask.repeat(count // len(mask), 1, 1, 1)

    def requantize_last(self, op: Requantize, x: Tensor) -> Tensor:
        """Codes of floats, constants along the last dimension."""
        return (x * self.constant(op.multiplier) + self.constant(op.shift)).round().clamp(*op.limits)

    def activation(self, op: Activation, x: Tensor) -> Tensor:
        """Element by element."""
        if op.slope is not None:
            return torch.where(x >= 0, x, x * self._along(op.slope, x))
        return _ACTIVATIONS[op.kind](x)

    def scale(self, op: Scale, x: Tensor) -> Tensor:
        """Times a constant."""
        return x * float(op.factor)

    def offset(self, op: Offset, x: Tensor) -> Tensor:
        """Plus a constant for each channel."""
        return x + self._along(op.values, x)

    def affine(self, op: Affine, x: Tensor) -> Tensor:
        """Times a constant for each channel, plus another."""
        return x * self._along(op.weight, x) + self._along(op.bias, x)

    def binary(self, op: Binary, a: Tensor, b: Tensor) -> Tensor:
        """Sum, difference or product."""
        return a + b if op.kind == "add" else a - b if op.kind == "subtract" else a * b

    def concat(self, op: Concat, *inputs: Tensor) -> Tensor:
        """Along channels."""
        return torch.cat(inputs, _channel_dim(inputs[0]))

    def slice(self, op: Slice, x: Tensor) -> Tensor:
        """Some of the channels."""
        return x.narrow(_channel_dim(x), op.start, op.stop - op.start)

    def pixel_shuffle(self, op: PixelShuffle, x: Tensor) -> Tensor:
        """Channels to pixels."""
        return F.pixel_shuffle(x, op.factor)

    def pixel_unshuffle(self, op: PixelUnshuffle, x: Tensor) -> Tensor:
        """Pixels to channels."""
        return F.pixel_unshuffle(x, op.factor)

    def upsample_nearest(self, op: UpsampleNearest, x: Tensor) -> Tensor:
        """Every pixel several times."""
        return x.repeat_interleave(op.factor, 2).repeat_interleave(op.factor, 3)

    def upsample_bilinear(self, op: UpsampleBilinear, x: Tensor) -> Tensor:
        """Interpolated between pixels."""
        return F.interpolate(x, scale_factor=op.factor, mode="bilinear", align_corners=False)

    def max_pool(self, op: MaxPool, x: Tensor) -> Tensor:
        """The largest of several pixels."""
        height, width = (side(n, Fraction(1, op.factor)) for n in x.shape[2:])
        return F.adaptive_max_pool2d(x, (height, width))

    def resize_nearest(self, op: ResizeNearest, x: Tensor) -> Tensor:
        """In integers: PyTorch's own rounds the places of pixels in float32."""
        for axis, size in enumerate(self.grid, 2):
            rows = np.arange(size * op.factor) * x.shape[axis] // (size * op.factor)
            x = x.index_select(axis, self.constant(rows))
        return x

    def mean(self, op: Mean, x: Tensor) -> Tensor:
        """Over all pixels."""
        return x.double().mean((2, 3), keepdim=True).float()

    def pixels(self, op: Pixels, x: Tensor) -> Tensor:
        """Rounded and limited to 0..255."""
        return x.round().clamp(0, 255)

    def to_tokens(self, op: ToTokens, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, L, C)."""
        return x.flatten(2).transpose(1, 2)

    def to_map(self, op: ToMap, x: Tensor) -> Tensor:
        """(B, L, C) to (B, C, h, w)."""
        return x.transpose(1, 2).unflatten(2, [side(n, op.growth) for n in self.grid])

    def reorder(self, op: Reorder, x: Tensor) -> Tensor:
        """Tokens in another order."""
        return x[:, self.constant(windows.order_index(self.grid, op.window, op.old, op.new))]

    def _finished(self, op: FoldedConv, y: Tensor) -> Tensor:
        """`y` as the codes that the layer gives, or as it is."""
        if op.codes_out is None:
            return y
        if op.low is not None:
            y = torch.maximum(y, self._along(op.low, y))
        return y.round().clamp(*op.codes_out)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "mish": F.mish,
    "tanh": torch.tanh,
}

_METHODS: dict[type, str] = {
    FirstConv: "first_conv",
    Normalize: "normalize",
    Quantize: "quantize",
    Requantize: "requantize",
    FoldedConv: "conv",
    FoldedLinear: "linear",
    Norm: "norm",
    GroupNorm: "group_norm",
    Attention: "attention",
    RectangleAttention: "rectangle_attention",
    ChannelAttention: "channel_attention",
    GlobalAttention: "global_attention",
    Activation: "activation",
    Scale: "scale",
    Offset: "offset",
    Affine: "affine",
    Binary: "binary",
    Concat: "concat",
    Slice: "slice",
    PixelShuffle: "pixel_shuffle",
    PixelUnshuffle: "pixel_unshuffle",
    UpsampleNearest: "upsample_nearest",
    UpsampleBilinear: "upsample_bilinear",
    MaxPool: "max_pool",
    ResizeNearest: "resize_nearest",
    Mean: "mean",
    Pixels: "pixels",
    ToTokens: "to_tokens",
    ToMap: "to_map",
    Reorder: "reorder",
}


def sums(x: Tensor, conv: FoldedConv) -> Tensor:
    """The conv of (1, I, H, W) codes or float values, without multiplier and bias: as float32,
    exact or rounded to it once.

    Integer sums are exact. Those of a layer that is not fully integer are taken in float64, so that
    no order of summation shows.
    """
    exact = torch.float32 if conv.integer and conv.sum_bound < EXACT_FLOAT32 else torch.float64
    weight = torch.tensor(conv.weight).to(exact).flatten(1)  # (O, I/G*k*k)
    weight = weight.unflatten(0, (conv.groups, -1))  # (G, O/G, I/G*k*k)
    size = conv.weight.shape[-1]
    height, width = x.shape[-2:]
    padded = F.pad(x, [size // 2] * 4)  # codes are padded with 0, after quantization
    rows = max(1, _STRIP_VALUES // (conv.groups * weight.shape[2] * width))
    strips = []
    for top in range(0, height, rows):
        strip = padded[:, :, top : top + rows + size - 1]
        columns = F.unfold(strip, size)[0].to(exact)  # (I*k*k, rows*W)
        columns = columns.unflatten(0, (conv.groups, -1))  # (G, I/G*k*k, rows*W)
        strips.append((weight @ columns).view(1, len(conv.weight), -1, width))  # (1, O, rows, W)
    return torch.cat(strips, 2).to(torch.float32)


def product(a: Tensor, b: Tensor, bound: int | None) -> Tensor:
    """a @ b in float32; exact for integers, whose partial sums stay below `bound`."""
    exact = torch.float32 if bound is None or bound < EXACT_FLOAT32 else torch.float64
    return (a.to(exact) @ b.to(exact)).float()


def _channel_dim(x: Tensor) -> int:
    return 1 if x.dim() == 4 else 2
