"""Weights by least squares, against each step's own problem (tests/reference/least_squares.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from quantsr.quant import QuantConv2d, QuantLinear, least_squares
from quantsr.quant.least_squares import DAMPING, Moments, refitted, rounded
from quantsr.ranges import IntRange
from tests.reference import least_squares as reference

HOW = {"nbits_w": 4, "nbits_a": 4}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def correlated(rows: int, places: int) -> Tensor:
    """(rows, places) whose rows depend on each other and have means."""
    mixed = torch.randn(rows, rows, generator=generator(1)) @ torch.randn(
        rows, places, generator=generator(2)
    )
    return mixed + torch.arange(rows)[:, None]


def linear(x: Tensor, z: Tensor, *, centred: bool = False) -> Moments:
    """Of rows X (K, N) and Z (O, N)."""
    layer = QuantLinear(len(x), len(z), **HOW)
    return Moments.of(layer, x.T[None], z.T[None], centred=centred)


@pytest.mark.parametrize(("padding", "stride"), [(0, 1), (1, 1), (1, 2)])
def test_moments_of_a_convolution_are_those_of_its_patches(padding: int, stride: int) -> None:
    layer = QuantConv2d(3, 2, 3, padding=padding, stride=stride, **HOW)
    x = torch.randn(2, 3, 7, 6, generator=generator())
    z = torch.nn.functional.conv2d(x, layer.weight.detach(), padding=padding, stride=stride)
    found = Moments.of(layer, x, z, centred=False)
    columns = np.hstack([reference.patches(picture.double().numpy(), 3, padding, stride) for picture in x])
    rows = z.double().transpose(0, 1).flatten(1).numpy()
    count = columns.shape[1]
    np.testing.assert_allclose(found.second, columns @ columns.T / count, atol=1e-5)
    np.testing.assert_allclose(found.cross, rows @ columns.T / count, atol=1e-5)


def test_moments_read_as_much_padding_as_keeps_the_size() -> None:
    layer = QuantConv2d(3, 2, 3, padding="same", **HOW)
    x = torch.randn(2, 3, 7, 6, generator=generator())
    columns = np.hstack([reference.patches(picture.double().numpy(), 3, 1, 1) for picture in x])
    found = Moments.of(layer, x, torch.zeros(2, 2, 7, 6), centred=False)
    np.testing.assert_allclose(found.second, columns @ columns.T / columns.shape[1], atol=1e-5)


def test_centred_moments_are_covariances() -> None:
    x, z = correlated(5, 200), correlated(3, 200)
    found = linear(x, z, centred=True)
    both = np.cov(np.vstack([x.double(), z.double()]), bias=True)
    np.testing.assert_allclose(found.second, both[:5, :5], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found.cross, both[5:, :5], rtol=1e-4, atol=1e-3)


def test_the_refitted_weight_is_that_of_ridge_regression() -> None:
    x, z, weight = correlated(5, 60), correlated(3, 60), torch.randn(3, 5, generator=generator(4))
    moments = linear(x, z)
    damping = DAMPING * float(moments.second.diagonal().mean())
    wanted = reference.ridge(weight.double().numpy(), x.double().numpy(), z.double().numpy(), damping)
    np.testing.assert_allclose(refitted(weight, moments), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", [1, 3, 64])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_each_rounded_column_is_made_up_for_by_the_later_ones(
    bits: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(least_squares, "_BLOCK", block)
    x, codes = correlated(7, 80), IntRange.of(bits, signed=True)
    moments = linear(x, x)
    weight = torch.randn(4, 7, generator=generator(5))
    step = weight.abs().amax(1) / codes.qmax * 0.9
    found = rounded(weight, moments, step, codes)
    wanted = reference.rounded(
        weight.double().numpy(), moments.damped.numpy(), step.double().numpy(), *codes.bounds
    )
    assert np.array_equal(found.numpy(), wanted)


def test_rounding_by_columns_is_nearer_than_rounding_to_the_nearest() -> None:
    x, codes = correlated(12, 300), IntRange.of(3, signed=True)
    moments = linear(x, x)
    weight = torch.randn(6, 12, generator=generator(6)).double()
    step = weight.abs().amax(1) / codes.qmax
    nearest = (weight / step[:, None]).round().clamp(*codes.bounds)
    found = rounded(weight, moments, step, codes)
    errors = []
    for choice in (found, nearest):
        off = choice * step[:, None] - weight
        errors.append(float(((off @ moments.second) * off).sum()))
    assert errors[0] < 0.7 * errors[1]


def test_inputs_that_are_always_0_keep_their_weights() -> None:
    x = correlated(4, 50)
    x[1] = 0
    weight = torch.randn(3, 4, generator=generator(7))
    moments = linear(x, weight @ x)
    torch.testing.assert_close(refitted(weight, moments)[:, 1].float(), weight[:, 1])
    assert bool(rounded(weight, moments, torch.full((3,), 0.1), IntRange(-8, 7)).isfinite().all())


def test_a_matrix_that_rounding_made_indefinite_is_damped_more() -> None:
    second = torch.diag(torch.tensor([1e-4, 1e-4, -2e-5], dtype=torch.float64))
    moments = Moments(torch.ones(3).double(), torch.zeros(1).double(), second, torch.zeros(1, 3).double())
    assert float(torch.linalg.eigvalsh(moments.damped).min()) > 0
    larger = Moments(moments.inputs, moments.outputs, second.abs(), moments.cross)  # no more than needed
    torch.testing.assert_close(larger.damped, second.abs() + 1e-5 * torch.eye(3).double())


def test_inputs_that_hardly_vary_about_large_means_are_rounded() -> None:
    x = 1000 + 1e-4 * correlated(9, 6)
    moments = linear(x, x[:3], centred=True)
    weight = torch.randn(3, 9, generator=generator(8))
    found = rounded(refitted(weight, moments), moments, torch.full((3,), 0.3), IntRange(-8, 7))
    assert bool(found.isfinite().all())
