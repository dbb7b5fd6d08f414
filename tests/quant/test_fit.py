"""Fitting layers without training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from quantsr.quant import QuantConv2d, QuantizedLayer, QuantLinear, calibrate
from quantsr.quant.fit import fit, least_error_step
from quantsr.quant.functional import fake_quantize
from quantsr.ranges import IntRange


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def layer(kind: type[QuantizedLayer], bits: int, *, equalized: bool = True, quantizer: str = "RLQAsymmetric"):
    how = {
        "nbits_w": bits,
        "nbits_a": bits,
        "quantizer": quantizer,
        "weight_granularity": "channel",
        "equalized": equalized,
    }
    net = QuantConv2d(8, 6, 3, padding=1, **how) if kind is QuantConv2d else QuantLinear(8, 6, **how)
    rng = generator()
    with torch.no_grad():
        net.weight.copy_(torch.randn(net.weight.shape, generator=rng))
        net.bias.copy_(torch.randn(6, generator=rng))
    return net


def features(kind: type[QuantizedLayer], *, spread: float = 50.0) -> Tensor:
    """Behind a SiLU: mostly positive; the largest channel is `spread` times the smallest."""
    x = torch.nn.functional.silu(2 * torch.randn(2, 8, 12, 12, generator=generator(1)))
    x = x * torch.logspace(0, 1, 8, base=spread).view(-1, 1, 1)
    return x if kind is QuantConv2d else x.movedim(1, -1)


def plain(net: QuantizedLayer, x: Tensor) -> Tensor:
    if isinstance(net, QuantConv2d):
        return torch.nn.functional.conv2d(x, net.weight, net.bias, padding=1)
    return torch.nn.functional.linear(x, net.weight, net.bias)


KINDS = pytest.mark.parametrize("kind", [QuantConv2d, QuantLinear])


@KINDS
@pytest.mark.parametrize("bits", [2, 4, 8])
@torch.no_grad()
def test_a_fitted_layer_is_nearer_to_its_float_layer_than_a_calibrated_one(kind, bits) -> None:
    x = features(kind)
    wanted = plain(layer(kind, bits), x)
    calibrated = layer(kind, bits, equalized=False, quantizer="RLQ")
    calibrate(calibrated, [x], "mse")
    fitted = layer(kind, bits)
    fit(fitted, x)
    errors = [float((net(x) - wanted).square().mean()) for net in (fitted, calibrated)]
    assert errors[0] < 0.6 * errors[1]


@KINDS
@torch.no_grad()
def test_the_bias_takes_the_mean_error_of_each_channel(kind) -> None:
    x = features(kind)
    wanted = plain(layer(kind, 3), x)
    fitted, other = layer(kind, 3), layer(kind, 3)
    fit(fitted, x)
    fit(other, x, correct_bias=False)
    assert torch.equal(other.bias, layer(kind, 3).bias)
    difference = (fitted(x) - wanted).movedim(fitted.channel_dim, 0).flatten(1).mean(1)
    torch.testing.assert_close(difference, torch.zeros(6), atol=1e-3, rtol=0)


@KINDS
@torch.no_grad()
def test_equalization_alone_changes_nothing(kind) -> None:
    """In float: the input is divided by what the weight is multiplied by."""
    x, net = features(kind), layer(kind, 8)
    wanted = plain(net, x)
    fit(net, x, correct_bias=False)
    assert not torch.equal(net.input_equal, torch.ones(8))
    assert float(net.input_equal.max()) == 1
    torch.testing.assert_close(plain(net, net.equalized(x)), wanted, rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_a_bias_is_added_to_layers_without_one() -> None:
    net = layer(QuantConv2d, 2)
    net.bias = None
    fit(net, features(QuantConv2d))
    assert net.bias is not None
    assert bool(net.bias.any())


@torch.no_grad()
def test_positive_inputs_have_no_negative_codes() -> None:
    net = layer(QuantConv2d, 4)
    fit(net, features(QuantConv2d).relu())
    assert net.input_quantizer.spec().range == IntRange(0, 15)


@torch.no_grad()
def test_mostly_positive_inputs_have_few_negative_codes() -> None:
    net = layer(QuantConv2d, 4)
    fit(net, features(QuantConv2d))
    codes = net.input_quantizer.spec().range
    assert -4 <= codes.qmin <= -1
    assert codes.qmax - codes.qmin == 15


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_step_has_the_least_error_of_those_tried(bits: int) -> None:
    codes = IntRange.of(bits, signed=True)
    rows = torch.randn(5, 400, generator=generator()) ** 5  # few and far out
    found = least_error_step(rows, codes)
    for row, step in zip(rows, found, strict=True):
        largest = max(float(row.max()) / codes.qmax, float(row.min()) / codes.qmin)
        tried = [largest * 2.0 ** (-k / 6) for k in range(31)]
        errors = [
            float((fake_quantize(row, torch.tensor(s), *codes.bounds) - row).square().mean()) for s in tried
        ]
        assert float(step) == pytest.approx(tried[errors.index(min(errors))], rel=1e-5)


def test_a_row_of_zeros_has_a_positive_step() -> None:
    assert bool((least_error_step(torch.zeros(2, 5), IntRange(0, 15)) > 0).all())
