"""Attention on maps by its definition, pixel by pixel and channel by channel, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.program import Operation

Map = NDArray[np.float64]

MASKED = -100.0


def rectangle_attention(model: PackedModel, op: Operation, q: Map, k: Map, v: Map) -> Map:
    """(C, H, W) three times to (C, H, W): every pixel attends to those of its window, where zeros
    lie beyond the map, or numbers of the file."""
    heads, multiple = op.attributes["heads"], op.attributes["multiple"]
    (rows, columns), (down, right) = op.attributes["window"], op.attributes["shift"]
    channels, height, width = q.shape
    pairs = "pairs" in op.attributes
    name = "pair_bias_table" if pairs else "relative_position_bias_table"
    table = model.floats[f"{op.name}.{name}"].values.astype(np.float64)
    temperature = None
    if op.attributes.get("cosine"):
        temperature = model.floats[f"{op.name}.temperature"].values.astype(np.float64)
    beyond = [-side % multiple for side in (height, width)]
    q, k, v = (np.pad(x, [(0, 0), (0, beyond[0]), (0, beyond[1])]) for x in (q, k, v))
    if "beyond" in op.attributes:
        for part, x in (("k", k), ("v", v)):
            numbers = model.floats[f"{op.name}.beyond_{part}"].values[:, None, None]
            x[:, height:], x[:, :, width:] = numbers, numbers
    whole = q.shape[1:]
    out = np.zeros((channels, height, width))
    for y, x in np.ndindex(height, width):
        # where the pixel is after the shift, and what its window holds there
        ys, xs = (y - down) % whole[0], (x - right) % whole[1]
        top, left = ys // rows * rows, xs // columns * columns
        inside = [(top + i, left + j) for i in range(rows) for j in range(columns)]
        for head in range(heads):
            part = slice(head * channels // heads, (head + 1) * channels // heads)
            scores, values = [], []
            for a, b in inside:
                at = (a + down) % whole[0], (b + right) % whole[1]
                place = (ys - a + rows - 1) * (2 * columns - 1) + xs - b + columns - 1
                if pairs:
                    place = ((ys - top) * columns + xs - left) * rows * columns
                    place += (a - top) * columns + b - left
                far = (a + down >= whole[0]) != (ys + down >= whole[0])
                far |= (b + right >= whole[1]) != (xs + right >= whole[1])
                query, key = q[part, y, x], k[part, at[0], at[1]]
                product = query @ key
                if temperature is not None:
                    lengths = [max(np.sqrt((vector**2).sum()), 1e-12) for vector in (query, key)]
                    product = temperature[head] * product / lengths[0] / lengths[1]
                scores.append(product + table[place, head] + (MASKED if far else 0))
                values.append(v[part, at[0], at[1]])
            weights = np.exp(np.array(scores) - max(scores))
            out[part, y, x] = weights @ np.array(values) / weights.sum()
    return out


def channel_attention(model: PackedModel, op: Operation, q: Map, k: Map, v: Map) -> Map:
    """(C, H, W) three times to (C, H, W): every channel attends to those of its head."""
    heads, channels = op.attributes["heads"], len(q)
    temperature = model.floats[f"{op.name}.temperature"].values.astype(np.float64)
    size, out = channels // heads, np.zeros(q.shape)
    for channel in range(channels):
        head = channel // size
        scores = []
        for other in range(head * size, (head + 1) * size):
            lengths = [max(np.sqrt((x**2).sum()), 1e-12) for x in (q[channel], k[other])]
            scores.append(temperature[head] * (q[channel] * k[other]).sum() / lengths[0] / lengths[1])
        weights = np.exp(np.array(scores) - max(scores))
        out[channel] = np.tensordot(weights / weights.sum(), v[head * size : (head + 1) * size], 1)
    return out


def global_attention(op: Operation, q: Map, k: Map, v: Map) -> Map:
    """(C, H, W), (C, h, w) and (D, h, w) to (D, H, W): every pixel attends to all of a map."""
    heads, out = op.attributes["heads"], np.zeros((len(v), *q.shape[1:]))
    for head in range(heads):
        keys, values = (np.split(x, heads)[head].reshape(len(x) // heads, -1) for x in (k, v))
        queries, result = np.split(q, heads)[head], np.split(out, heads)[head]
        for y, x in np.ndindex(q.shape[1:]):
            scores = queries[:, y, x] @ keys
            weights = np.exp(scores - scores.max())
            result[:, y, x] = values @ weights / weights.sum()
    return out
