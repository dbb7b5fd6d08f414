"""Reference of folding and of every engine: a packed network's program operation by operation,
nothing folded, in float64 with loops over taps. Attention stands in `reference.window_attention`
and `reference.map_attention`."""

from __future__ import annotations

from collections.abc import Callable
from math import erf

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.packed.model import PackedLayer, PackedModel
from quantsr.deploy.program import PICTURE, Operation
from tests.reference.map_attention import channel_attention, global_attention, rectangle_attention
from tests.reference.window_attention import window_attention

Map = NDArray[np.float64]


def run(model: PackedModel, image: NDArray[np.uint8], depth: int) -> NDArray[np.uint8]:
    """uint8 (H, W, 3) to uint8 (H*s, W*s, 3)."""
    padded = image[continued(len(image), model.program.multiple)]
    padded = padded[:, continued(image.shape[1], model.program.multiple)]
    last = values(model, padded, depth)[model.program.operations[-1].inputs[0]]
    attributes = model.program.operations[-1].attributes
    # Of the pixel range 0..255 rather than 0..1, so that integers stay integers.
    mean = 255.0 * np.asarray(attributes["mean"], np.float64)[:, None, None]
    x = last * (255.0 / attributes["range"]) + mean
    height, width = (size * model.header.scale for size in image.shape[:2])
    return np.clip(np.rint(x), 0, 255).astype(np.uint8).transpose(1, 2, 0)[:height, :width]


def continued(size: int, multiple: int) -> list[int]:
    """The rows of a picture that goes on by reflection: down, up without the last row again, down
    ... to a multiple of rows."""
    row, step, rows = 0, 1, []
    while len(rows) < size or len(rows) % multiple:
        rows.append(row)
        if not 0 <= row + step < size:
            step = -step
        row = row + step if size > 1 else 0
    return rows


def values(model: PackedModel, image: NDArray[np.uint8], depth: int) -> dict[int, Map]:
    """(C, H, W) of every value but the last, by its number in the program; the picture's sides are
    multiples of the program's."""
    kept = model.header.blocks_kept(depth)
    found: dict[int, Map] = {PICTURE: image.transpose(2, 0, 1).astype(np.float64)}
    for op in model.program.operations[:-1]:
        inputs = [found[value] for value in op.inputs]
        if op.kind in ("shortcut", "around"):
            unit = op.attributes["unit"]
            s, (stream, other) = model.header.shortcuts[unit], inputs
            if unit not in kept:
                found[op.output] = s * stream
            else:
                found[op.output] = s * stream + (other if op.kind == "shortcut" else other - stream)
        elif op.kind in ("conv", "linear"):
            found[op.output] = conv(model.layers[op.name], inputs[0])
        elif op.kind == "prelu":
            slope = model.floats[f"{op.name}.weight"].values.astype(np.float64)[:, None, None]
            found[op.output] = np.where(inputs[0] >= 0, inputs[0], slope * inputs[0])
        elif op.kind == "window_attention":
            found[op.output] = window_attention(model, op, inputs[0])
        elif op.kind == "rectangle_attention":
            found[op.output] = rectangle_attention(model, op, *inputs)
        elif op.kind == "channel_attention":
            found[op.output] = channel_attention(model, op, *inputs)
        elif op.kind == "global_attention":
            found[op.output] = global_attention(op, *inputs)
        elif op.kind == "affine":
            weight, bias = (model.floats[f"{op.name}.{part}"].values for part in ("weight", "bias"))
            found[op.output] = np.stack([w * x + b for w, x, b in zip(weight, inputs[0], bias, strict=True)])
        elif op.kind == "layer_norm":
            weight, bias = (model.floats[f"{op.name}.{part}"].values for part in ("weight", "bias"))
            x = inputs[0]
            normal = (x - x.mean(0)) / np.sqrt(x.var(0) + op.attributes.get("eps", 1e-5))
            found[op.output] = normal * weight[:, None, None] + bias[:, None, None]
        elif op.kind == "group_norm":
            weight, bias = (model.floats[f"{op.name}.{part}"].values for part in ("weight", "bias"))
            parts = []
            for x in np.split(inputs[0], op.attributes["groups"]):
                parts.append((x - x.mean()) / np.sqrt(x.var() + op.attributes.get("eps", 1e-5)))
            found[op.output] = np.concatenate(parts) * weight[:, None, None] + bias[:, None, None]
        elif op.kind == "resize_nearest":
            sides = [side * op.attributes["factor"] for side in image.shape[:2]]
            found[op.output] = nearest(inputs[0], *sides)
        else:
            found[op.output] = SIMPLE[op.kind](op, *inputs)
    return found


def conv(layer: PackedLayer, x: Map) -> Map:
    """(I, H, W) to (O, H, W) float: quantize, pad codes with 0, sum, multiply, add bias."""
    weight = layer.weight.astype(np.float64)
    weight = weight[:, :, None, None] if weight.ndim == 2 else weight
    multiplier = np.ones(1)
    if layer.weight_step is not None:
        multiplier = multiplier * layer.weight_step.astype(np.float64)
    if layer.bits_a <= 16:
        step = layer.act_step.astype(np.float64)
        u = (x + layer.tau().astype(np.float64)[:, None, None]) / (step * layer.equal()[:, None, None])
        x = np.clip(np.rint(u), *layer.act_range) - layer.zero_point()[:, None, None]
        multiplier = multiplier * step
    size = weight.shape[-1]
    pad = size // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    height, width = x.shape[1:]
    total = np.zeros((len(weight), height, width))
    outputs, inputs = len(weight) // layer.groups, weight.shape[1]
    for group in range(layer.groups):
        of_group = padded[group * inputs : (group + 1) * inputs]
        rows = slice(group * outputs, (group + 1) * outputs)
        for dy in range(size):
            for dx in range(size):
                part = of_group[:, dy : dy + height, dx : dx + width]
                total[rows] += np.tensordot(weight[rows, :, dy, dx], part, 1)
    return (
        total * np.broadcast_to(multiplier, len(weight))[:, None, None]
        + layer.bias.astype(np.float64)[:, None, None]
    )


def pixel_shuffle(x: Map, factor: int) -> Map:
    """(C*r*r, H, W) to (C, H*r, W*r)."""
    channels, height, width = len(x) // factor**2, *x.shape[1:]
    x = x.reshape(channels, factor, factor, height, width).transpose(0, 3, 1, 4, 2)
    return x.reshape(channels, height * factor, width * factor)


def pixel_unshuffle(x: Map, factor: int) -> Map:
    """(C, H, W) to (C*r*r, H/r, W/r)."""
    return np.stack(
        [x[c, i::factor, j::factor] for c in range(len(x)) for i in range(factor) for j in range(factor)]
    )


def bilinear(x: Map, factor: int) -> Map:
    """(C, H, W) to (C, H*r, W*r), interpolated between the centres of pixels; beyond the outermost
    ones, these."""
    for axis in (1, 2):
        size = x.shape[axis]
        at = np.clip((np.arange(size * factor) + 0.5) / factor - 0.5, 0, size - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, size - 1)
        share = (at - low).reshape(-1, *[1] * (2 - axis))
        x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
    return x


def max_pool(x: Map, factor: int) -> Map:
    """(C, H, W) to (C, H / r, W / r), rounded down, at least 1: each pixel the largest of those
    that it lies over, in part or whole."""
    height, width = x.shape[1:]
    rows, columns = max(1, height // factor), max(1, width // factor)
    found = np.empty((len(x), rows, columns))
    for i in range(rows):
        for j in range(columns):
            over = [y for y in range(height) if (y + 1) * rows > i * height and y * rows < (i + 1) * height]
            beside = [
                z for z in range(width) if (z + 1) * columns > j * width and z * columns < (j + 1) * width
            ]
            found[:, i, j] = x[:, over][:, :, beside].max((1, 2))
    return found


def nearest(x: Map, height: int, width: int) -> Map:
    """(C, h, w) to (C, height, width): each pixel the one that its upper left corner lies in."""
    rows = [max(i for i in range(x.shape[1]) if i * height <= y * x.shape[1]) for y in range(height)]
    columns = [max(j for j in range(x.shape[2]) if j * width <= z * x.shape[2]) for z in range(width)]
    return x[:, rows][:, :, columns]


def _normalize(op: Operation, x: Map) -> Map:
    mean = 255.0 * np.asarray(op.attributes["mean"], np.float64)[:, None, None]
    return (x - mean) * (op.attributes["range"] / 255.0)


SIMPLE: dict[str, Callable[..., Map]] = {
    "normalize": _normalize,
    "relu": lambda op, x: np.maximum(x, 0),
    "leaky_relu": lambda op, x: np.where(x >= 0, x, np.float64(np.float32(op.attributes["slope"])) * x),
    "gelu": lambda op, x: 0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2))),
    "sigmoid": lambda op, x: 1 / (1 + np.exp(-x)),
    "silu": lambda op, x: x / (1 + np.exp(-x)),
    "mish": lambda op, x: x * np.tanh(np.logaddexp(0, x)),
    "tanh": lambda op, x: np.tanh(x),
    "add": lambda op, a, b: a + b,
    "subtract": lambda op, a, b: a - b,
    "multiply": lambda op, a, b: a * b,
    "scale": lambda op, x: op.attributes["factor"] * x,
    "concat": lambda op, *parts: np.concatenate(parts),
    "slice": lambda op, x: x[op.attributes["start"] : op.attributes["stop"]],
    "pixel_shuffle": lambda op, x: pixel_shuffle(x, op.attributes["factor"]),
    "pixel_unshuffle": lambda op, x: pixel_unshuffle(x, op.attributes["factor"]),
    "upsample_nearest": lambda op, x: np.kron(
        x, np.ones((1, op.attributes["factor"], op.attributes["factor"]))
    ),
    "upsample_bilinear": lambda op, x: bilinear(x, op.attributes["factor"]),
    "max_pool": lambda op, x: max_pool(x, op.attributes["factor"]),
    "mean": lambda op, x: x.mean((1, 2), keepdims=True),
}
