"""Reference of the Swin layers of folded programs, nothing folded.

One layer of a converted QuantSR-T (docs/reference/formats.md, docs/explanation/derivations.md),
by window and token, with codes as int64 and all other values as float64.

Letters: H and W of the map, C channels, G windows, N tokens in a window, h heads, d channels of
one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from quantsr.deploy.packed.model import Operand, PackedLayer, PackedModel

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

NORM_EPS = 1e-5
MASKED = -100.0


@dataclass
class Quantized:
    """Codes by the name of the layer or operand that reads them, by window, then by token."""

    codes: dict[str, list[Integers]] = field(default_factory=dict)
    room: float = math.inf
    """Distance of the value that lies nearest to a tie between two codes, in units of codes."""

    def quantize(self, reader: PackedLayer | Operand, x: Floats) -> Integers:
        """`clip(round_half_even((x + tau) / step), qmin, qmax)` of one token (I,)."""
        if isinstance(reader, Operand):
            step, tau, (low, high) = reader.step, reader.tau, reader.range
        else:
            assert reader.act_step is not None
            step, tau, (low, high) = reader.act_step, reader.act_tau, reader.act_range
        codes = []
        for c, value in enumerate(x):
            shift = 0.0 if tau is None else float(tau[c])
            unit = min(max((float(value) + shift) / float(step[0]), low), high)
            self.room = min(self.room, abs(unit - math.floor(unit) - 0.5))
            codes.append(round(unit))  # half to even
        found = np.array(codes, np.int64)
        self.codes.setdefault(reader.name, []).append(found)
        return found


def swin_layer(
    model: PackedModel, name: str, x: Floats, *, shift: int, shortcut: float | None = None
) -> tuple[Floats, Quantized]:
    """The layer `name` ("layers.0.blocks.1") on (H, W, C): the output map and the codes inside.

    H and W are multiples of the window.

    Args:
        shift: of its windows, 0 or half a window.
        shortcut: s, where the layer is a unit of depth: then `s x + F(x)`, F being both of its
            branches together.
    """
    height, width, _ = x.shape
    window = int(model.header.arch["window_size"])
    quantized = Quantized()
    out = np.empty_like(x)
    for top in range(0, height, window):
        for left in range(0, width, window):
            places, regions = [], []
            for row in range(top, top + window):
                for column in range(left, left + window):
                    # The map is shifted up and to the left by `shift`; what leaves it there comes
                    # back at the other end.
                    places.append(((row + shift) % height, (column + shift) % width))
                    regions.append((row + shift >= height, column + shift >= width))
            tokens = [x[place] for place in places]
            middle = _attention_branch(model, name, tokens, regions, quantized)
            for token, place, m in zip(tokens, places, middle, strict=True):
                y = m + _mlp(model, name, m, quantized)
                out[place] = y if shortcut is None else shortcut * token + (y - token)
    return out, quantized


def _attention_branch(
    model: PackedModel,
    name: str,
    tokens: list[Floats],
    regions: list[tuple[bool, bool]],
    quantized: Quantized,
) -> list[Floats]:
    """`x + proj(attention(norm1(x)))` of the N tokens of one window."""
    qkv, proj = model.layers[f"{name}.attn.qkv"], model.layers[f"{name}.attn.proj"]
    heads, dim = int(model.header.arch["num_heads"]), len(tokens[0])
    q, k, v = [], [], []
    for token in tokens:
        y = _linear(qkv, _norm(model, f"{name}.norm1", token), quantized)
        q.append(y[:dim])
        k.append(y[dim : 2 * dim])
        v.append(y[2 * dim :])
    mixed = [np.empty(dim) for _ in tokens]
    left, right, weights_of, values_of = (
        model.operands.get(f"{name}.attn.{role}")
        for role in ("scores.left", "scores.right", "mixture.left", "mixture.right")
    )
    q, k, v = (_operand(role, part, quantized) for role, part in ((left, q), (right, k), (values_of, v)))
    size = dim // heads
    for head in range(heads):
        channels = slice(head * size, (head + 1) * size)
        for i in range(len(tokens)):
            scores = np.empty(len(tokens))
            for j in range(len(tokens)):
                product = (
                    float(q[i][channels] @ k[j][channels]) * _step(left) * _step(right) / math.sqrt(size)
                )
                scores[j] = product + _position_bias(model, name, i, j, head)
                if regions[i] != regions[j]:
                    scores[j] += MASKED
            (weights,) = _operand(weights_of, [_softmax(scores)], quantized)
            total = sum(weights[j] * v[j][channels] for j in range(len(tokens)))
            mixed[i][channels] = total * _step(weights_of) * _step(values_of)
    return [token + _linear(proj, y, quantized) for token, y in zip(tokens, mixed, strict=True)]


def _mlp(model: PackedModel, name: str, token: Floats, quantized: Quantized) -> Floats:
    """`fc2(gelu(fc1(norm2(x))))`."""
    hidden = _linear(model.layers[f"{name}.mlp.fc1"], _norm(model, f"{name}.norm2", token), quantized)
    hidden = np.array([0.5 * value * (1 + math.erf(value / math.sqrt(2))) for value in hidden])
    return _linear(model.layers[f"{name}.mlp.fc2"], hidden, quantized)


def _norm(model: PackedModel, name: str, token: Floats) -> Floats:
    """LayerNorm of one token."""
    weight, bias = (model.floats[f"{name}.{part}"].values.astype(np.float64) for part in ("weight", "bias"))
    mean = sum(token) / len(token)
    variance = sum((value - mean) ** 2 for value in token) / len(token)
    return (token - mean) / math.sqrt(variance + NORM_EPS) * weight + bias


def _linear(layer: PackedLayer, token: Floats, quantized: Quantized) -> Floats:
    """`act_step * weight_step[o] * sum(codes * weight_codes[o]) + bias[o]`, the sum of integers."""
    assert layer.integer
    assert layer.weight_step is not None
    codes = quantized.quantize(layer, token)
    out = np.empty(layer.out_channels)
    for o in range(layer.out_channels):
        total = int(layer.weight[o].astype(np.int64) @ codes)
        step = layer.weight_step[o if layer.weight_step.size > 1 else 0]
        out[o] = float(layer.act_step[0]) * float(step) * total + float(layer.bias[o])
    return out


def _operand(
    operand: Operand | None, tokens: list[Floats], quantized: Quantized
) -> list[Floats] | list[Integers]:
    """Codes of an operand of a product; the values themselves where attention is float."""
    return tokens if operand is None else [quantized.quantize(operand, token) for token in tokens]


def _step(operand: Operand | None) -> float:
    return 1.0 if operand is None else float(operand.step[0])


def _position_bias(model: PackedModel, name: str, i: int, j: int, head: int) -> float:
    """Of token i of a window that looks at token j, by how far they are apart."""
    window = int(model.header.arch["window_size"])
    rows, columns = i // window - j // window, i % window - j % window
    table = model.floats[f"{name}.attn.relative_position_bias_table"].values
    return float(table[(rows + window - 1) * (2 * window - 1) + columns + window - 1, head])


def _softmax(scores: Floats) -> Floats:
    powers = np.array([math.exp(score - max(scores)) for score in scores])
    return powers / sum(powers)
