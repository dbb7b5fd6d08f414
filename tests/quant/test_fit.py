"""Fitting layers without training."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from quantsr.quant import QuantConv2d, QuantizedLayer, QuantLinear, calibrate
from quantsr.quant.fit import POWERS, _sample, fit
from quantsr.quant.functional import fake_quantize
from quantsr.quant.input_grids import Channels, Rows
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
def test_equalization_goes_into_the_weight(kind) -> None:
    """At 8 bits the weight of the equalized input is nearly the float one times the factors."""
    x, net = features(kind), layer(kind, 8)
    wanted = plain(net, x)
    fit(net, x, correct_bias=False)
    assert not torch.equal(net.input_equal, torch.ones(8))
    assert float(net.input_equal.max()) == 1
    error = (plain(net, net.equalized(x)) - wanted).std() / wanted.std()
    assert float(error) < 0.02


@KINDS
@torch.no_grad()
def test_the_wanted_output_makes_up_for_an_error_of_the_input(kind) -> None:
    """The input has lost a share of each channel; the weight takes it."""
    x = features(kind)
    wanted = plain(layer(kind, 8), x)
    losses = torch.linspace(0.5, 1, 8).view(-1, 1, 1)
    lost = x * losses if kind is QuantConv2d else x * losses.flatten()
    errors = []
    for target in (None, wanted):
        net = layer(kind, 8)
        fit(net, lost, target)
        errors.append(float((net(lost) - wanted).square().mean()))
    assert errors[1] < 0.02 * errors[0]


@torch.no_grad()
def test_important_channels_are_nearer_than_they_are_without_weights() -> None:
    x = features(QuantConv2d)
    wanted = plain(layer(QuantConv2d, 3), x)
    errors = []
    for importance in (None, torch.eye(6)[2]):
        net = layer(QuantConv2d, 3)
        fit(net, x, importance=importance)
        errors.append(float((net(x) - wanted)[:, 2].square().mean()))
    assert errors[1] <= errors[0]


@torch.no_grad()
def test_weights_that_are_read_back_have_the_codes_that_were_chosen() -> None:
    """A weight lies in the cell of its code, so nothing rounds it to another one."""
    net = layer(QuantConv2d, 4)
    fit(net, features(QuantConv2d))
    places = net.weight / net.weight_quantizer.step[:, None, None, None]
    off = (places - net.weight_codes()).abs()
    inside = (places > -8) & (places < 7)
    assert float(off[inside].max()) < 0.495


@torch.no_grad()
def test_other_quantizers_are_calibrated() -> None:
    net = layer(QuantConv2d, 4, quantizer="PAMS")
    x = features(QuantConv2d)
    wanted = plain(net, x)
    fit(net, x)
    assert torch.equal(net.input_equal, torch.ones(8))
    assert float((net(x) - wanted).square().mean() / wanted.var()) < 0.2


@torch.no_grad()
def test_layers_in_groups_keep_their_weights() -> None:
    net = QuantConv2d(
        4,
        4,
        3,
        padding=1,
        groups=4,
        nbits_w=8,
        nbits_a=8,
        quantizer="RLQAsymmetric",
        weight_granularity="channel",
    )
    weight, x = net.weight.detach().clone(), torch.randn(2, 4, 9, 9, generator=generator())
    wanted = torch.nn.functional.conv2d(x, net.weight, net.bias, padding=1, groups=4)
    fit(net, x)
    assert torch.equal(net.weight, weight)
    assert float((net(x) - wanted).std() / wanted.std()) < 0.02


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
    found = Rows(rows).least_error_step(codes)
    for row, step in zip(rows, found, strict=True):
        largest = max(float(row.max()) / codes.qmax, float(row.min()) / codes.qmin)
        tried = [largest * 2.0 ** (-k / 6) for k in range(31)]
        errors = [
            float((fake_quantize(row, torch.tensor(s), *codes.bounds) - row).square().mean()) for s in tried
        ]
        assert float(step) == pytest.approx(tried[errors.index(min(errors))], rel=1e-5)


@pytest.mark.parametrize("codes", [IntRange(0, 3), IntRange(-3, 12), IntRange(-128, 127), IntRange(0, 65535)])
def test_the_error_of_sorted_rows_is_that_of_every_value(codes: IntRange) -> None:
    """Values on a level, between two and beyond the last ones; more levels than values, too."""
    random = torch.randn(4, 300, generator=generator(), dtype=torch.float64)
    rows = torch.cat([random, torch.arange(-8, 8, dtype=torch.float64).expand(4, -1) / 16], 1)
    steps = torch.tensor([0.125, 0.03, 1.0, 1e-3], dtype=torch.float64)
    wanted = (fake_quantize(rows, steps[:, None], *codes.bounds) - rows).square().mean(1)
    torch.testing.assert_close(Rows(rows).errors(steps, codes), wanted, rtol=1e-11, atol=1e-15)


def test_a_row_of_zeros_has_a_positive_step() -> None:
    assert bool((Rows(torch.zeros(2, 5)).least_error_step(IntRange(0, 15)) > 0).all())


def test_the_levels_of_one_channel_are_those_of_the_least_weighted_error() -> None:
    """With all of the weight on one channel and equalization by steps alone, that channel has the
    step of least error of its own."""
    codes = IntRange(0, 15)
    values = torch.rand(3, 500, generator=generator()) ** 4 * torch.tensor([[1.0], [10.0], [0.1]])
    grid = Channels(values, torch.tensor([0.0, 1.0, 0.0]), 4).grid(codes, 1.0, torch.ones(3))
    own = Rows(values).least_error_step(codes)
    torch.testing.assert_close(grid.step * grid.equal, own)


@torch.no_grad()
def test_equalization_is_chosen_on_other_pictures_than_its_levels() -> None:
    """Each share tried by hand: levels of pictures 0 and 2, error on 1 and 3, where one channel has
    large values that the first two lack; the levels kept are those of all four."""
    net = layer(QuantConv2d, 4)
    x = features(QuantConv2d)[:1].repeat(4, 1, 1, 1) * torch.linspace(0.5, 1.5, 4).view(4, 1, 1, 1)
    x[1::2, 0] *= 20
    weight, bias = net.weight.detach().clone(), net.bias.detach().clone()
    wanted = F.conv2d(x, weight, bias, padding=net.padding)
    weighing = 1 / wanted.transpose(0, 1).flatten(1).var(1, correction=0)
    rows = weight.abs().amax((2, 3))
    rows = (rows / rows.amax(1, keepdim=True)).amax(0)
    errors = {}
    seen, whole = (
        Channels(_sample(part, 1), weighing @ weight.square().sum((2, 3)), 4) for part in (x[::2], x)
    )
    codes = IntRange(0, 15).shifted(-whole.zero_point())
    for power in POWERS:
        grid = seen.grid(codes, power, rows)
        equal = grid.equal.view(1, -1, 1, 1)
        levels = (x[1::2] / equal / grid.step).round().clamp(*codes.bounds) * grid.step
        scaled = weight * equal
        steps = Rows(scaled.flatten(1)).least_error_step(IntRange.of(4, signed=True)).view(-1, 1, 1, 1)
        rounded = fake_quantize(scaled, steps, -8, 7)
        off = F.conv2d(levels, rounded, bias, padding=net.padding) - wanted[1::2]
        errors[power] = float((off.transpose(0, 1).flatten(1).var(1, correction=0) * weighing).mean())
    best = whole.grid(codes, min(errors, key=lambda power: errors[power]), rows)
    fit(net, x)
    torch.testing.assert_close(net.input_equal, best.equal)
    assert float(net.input_quantizer.step) == pytest.approx(best.step)
