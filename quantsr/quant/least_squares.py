"""Weights of a layer by least squares: refitted to quantized inputs, and rounded column by column.

Symbols: W (O, K) the weight as a matrix, X (K, N) what it multiplies at N places, Z (O, N) the
wanted product, H = X X^T / N.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from quantsr.quant.layers import QuantConv2d, QuantizedLayer
from quantsr.ranges import IntRange

DAMPING = 0.01
"""Added to the diagonal of H, relative to its mean (GPTQ, section 3.3)."""

_BLOCK = 64  # columns whose errors later ones take in one product

_ROUNDING = 1e-5  # of averages of squares, which are summed in single precision


@dataclass(frozen=True)
class Moments:
    """Averages over all places, in double precision."""

    inputs: Tensor
    """(K,) of X."""
    outputs: Tensor
    """(O,) of Z."""
    second: Tensor
    """(K, K), H; about the means where ``centred``."""
    cross: Tensor
    """(O, K), Z X^T / N, likewise."""

    @classmethod
    def of(cls, layer: QuantizedLayer, x: Tensor, wanted: Tensor, *, centred: bool) -> Moments:
        """Of a layer's input as its weight reads it, and the output wanted without its bias.

        Args:
            layer: a convolution in one group, or a linear layer.
            x: (B, C, h, w), of a linear layer (B, ..., C); quantized.
            wanted: the shape of the layer's output.
        """
        count, sums = 0, None
        for picture, target in zip(x, wanted, strict=True):
            columns = _columns(layer, picture)
            rows = target if isinstance(layer, QuantConv2d) else target.movedim(-1, 0)
            rows = rows.reshape(len(rows), -1)  # (O, n)
            found = [columns.sum(1), rows.sum(1), columns @ columns.T, rows @ columns.T]
            found = [part.double() for part in found]
            sums = found if sums is None else [a + b for a, b in zip(sums, found, strict=True)]
            count += columns.shape[1]
        assert sums is not None
        inputs, outputs, second, cross = (total / count for total in sums)
        if centred:
            second = second - torch.outer(inputs, inputs)
            cross = cross - torch.outer(outputs, inputs)
        return cls(inputs, outputs, second, cross)

    @cached_property
    def damped(self) -> Tensor:
        """H with a larger diagonal: by `DAMPING`, and by more than rounding errors where inputs
        hardly vary about their means, as behind a mean of all pixels."""
        squares, one = self.inputs.square().mean(), torch.eye(len(self.second)).to(self.second)
        more = torch.maximum(DAMPING * self.second.diagonal().mean(), _ROUNDING * squares).clamp_min(1e-12)
        found = self.second + more * one
        if torch.linalg.cholesky_ex(found).info:  # errors of all columns may add up
            found += _ROUNDING * self.inputs.square().sum() * one
        return found


def refitted(weight: Tensor, moments: Moments) -> Tensor:
    """(O, K): the matrix of least ``|Z - W' X|^2 / N + d |W' - W|^2``, d the damping of H.

    Ridge regression towards the given weight.
    """
    lacks = moments.cross - weight.double() @ moments.second
    return weight.double() + torch.linalg.solve(moments.damped, lacks.T).T


def rounded(weight: Tensor, moments: Moments, step: Tensor, codes: IntRange) -> Tensor:
    """(O, K) integer codes of a matrix, rounded one column after the other.

    The columns that are not rounded yet take what rounding adds to the output ("GPTQ", Frantar et
    al., ICLR 2023, section 3: with U the upper Cholesky factor of the inverse of H, the error of
    column i over U[i, i], times row i of U, is subtracted from the later ones). Columns of larger H
    come first.

    Args:
        step: (O,).
        codes: their range.
    """
    hessian = moments.damped
    order = hessian.diagonal().argsort(descending=True)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian[order][:, order]))
    upper = torch.linalg.cholesky(inverse, upper=True)
    left, step = weight.double()[:, order], step.double()
    found, errors = torch.empty_like(left), torch.empty_like(left)
    for start in range(0, left.shape[1], _BLOCK):
        end = min(start + _BLOCK, left.shape[1])
        for i in range(start, end):
            found[:, i] = (left[:, i] / step).clamp(codes.qmin, codes.qmax).round()
            errors[:, i] = (left[:, i] - found[:, i] * step) / upper[i, i]
            left[:, i + 1 : end] -= torch.outer(errors[:, i], upper[i, i + 1 : end])
        left[:, end:] -= errors[:, start:end] @ upper[start:end, end:]
    return found[:, order.argsort()]


def _columns(layer: QuantizedLayer, picture: Tensor) -> Tensor:
    """(K, n) what the weight multiplies in one picture, (C, h, w) or (..., C)."""
    if not isinstance(layer, QuantConv2d):
        return picture.reshape(-1, picture.shape[-1]).T
    padded = F.pad(picture[None], layer._reversed_padding_repeated_twice)
    return F.unfold(padded, layer.kernel_size, dilation=layer.dilation, stride=layer.stride)[0]
