"""Window attention by its definition: window by window, head by head, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.program import Operation

Map = NDArray[np.float64]

MASKED = -100.0


def window_attention(model: PackedModel, op: Operation, x: Map) -> Map:
    """(3 * C, H, W) of q, k and v to (C, H, W)."""
    if op.attributes.get("overlap"):
        return overlapping_attention(model, op, x)
    heads, window, shift = (op.attributes[key] for key in ("heads", "window", "shift"))
    channels, (height, width) = len(x) // 3, x.shape[1:]
    size = channels // heads
    table = model.floats[f"{op.name}.relative_position_bias_table"].values.astype(np.float64)
    inside = [(i, j) for i in range(window) for j in range(window)]
    out = np.empty((channels, height, width))
    for top in range(0, height, window):
        for left in range(0, width, window):
            # The map is shifted up and to the left; what leaves it there comes back at the other
            # end, and was no neighbour before.
            at = [(top + i + shift, left + j + shift) for i, j in inside]
            rows, columns = [y % height for y, _ in at], [x % width for _, x in at]
            for head in range(heads):
                parts = [
                    x[part * channels + head * size : part * channels + (head + 1) * size, rows, columns].T
                    for part in range(3)
                ]  # q, k, v: (N, d)
                taus = slice(head * size, (head + 1) * size)
                q = _quantized(model, f"{op.name}.scores.left", parts[0], taus)
                k = _quantized(model, f"{op.name}.scores.right", parts[1], taus)
                v = _quantized(model, f"{op.name}.mixture.right", parts[2], taus)
                scores = q @ k.T / np.sqrt(size)
                for a, (ya, xa) in enumerate(inside):
                    for b, (yb, xb) in enumerate(inside):
                        place = (ya - yb + window - 1) * (2 * window - 1) + xa - xb + window - 1
                        scores[a, b] += table[place, head]
                        wraps = [(y >= height, x >= width) for y, x in (at[a], at[b])]
                        scores[a, b] += MASKED if wraps[0] != wraps[1] else 0
                weights = np.exp(scores - scores.max(1, keepdims=True))
                weights /= weights.sum(1, keepdims=True)
                weights = _quantized(model, f"{op.name}.mixture.left", weights, slice(None))
                out[head * size : (head + 1) * size, rows, columns] = (weights @ v).T
    return out


def overlapping_attention(model: PackedModel, op: Operation, x: Map) -> Map:
    """The same of windows to those around them, which are 0 beyond the map."""
    heads, window, overlap = (op.attributes[key] for key in ("heads", "window", "overlap"))
    channels, (height, width) = len(x) // 3, x.shape[1:]
    size, span = channels // heads, 2 * (window + overlap) - 1
    table = model.floats[f"{op.name}.relative_position_bias_table"].values.astype(np.float64)
    padded = np.pad(x, [(0, 0), (overlap, overlap), (overlap, overlap)])
    out = np.empty((channels, height, width))
    for y, x_ in np.ndindex(height, width):
        top, left = y // window * window, x_ // window * window
        keys = [(top + i, left + j) for i, j in np.ndindex(window + 2 * overlap, window + 2 * overlap)]
        for head in range(heads):
            q, k, v = (
                slice(part * channels + head * size, part * channels + (head + 1) * size) for part in range(3)
            )
            scores = []
            for yk, xk in keys:
                down, right = yk - overlap - y, xk - overlap - x_
                place = ((down - overlap + 1) * span + right - overlap + 1) % span**2
                product = x[q, y, x_] @ padded[k, yk, xk] / np.sqrt(size)
                scores.append(product + table[place, head])
            weights = np.exp(np.array(scores) - max(scores))
            weights /= weights.sum()
            out[head * size : (head + 1) * size, y, x_] = sum(
                weight * padded[v, yk, xk] for weight, (yk, xk) in zip(weights, keys, strict=True)
            )
    return out


def _quantized(model: PackedModel, name: str, x: Map, channels: slice) -> Map:
    """An operand (N, channels) as the product reads it: its codes times their step."""
    operand = model.operands.get(name)
    if operand is None:
        return x
    step = float(operand.step[0])
    tau = np.zeros(operand.channels) if operand.tau is None else operand.tau.astype(np.float64)
    return np.clip(np.rint((x + tau[channels]) / step), *operand.range) * step
