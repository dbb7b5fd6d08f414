"""2DQuant's quantizer: search of bounds; bits by gradient. Learned bounds are those of DDTB."""

import pytest
import torch
from torch import nn

from quantsr.quant import QuantConv2d, QuantLinear, calibrate
from quantsr.quant.bit_gradients import bit_gradients, mixed_bits
from quantsr.quant.bounds_quantizer import BoundsActivation, BoundsWeight
from quantsr.ranges import Bits
from tests.reference import post_training as reference

BITS = pytest.mark.parametrize("bits", [2, 3, 4, 8])
KINDS = ["symmetric", "positive", "behind GELU"]


def values(kind: str, count: int = 400) -> torch.Tensor:
    torch.manual_seed(3)
    x = torch.randn(count, dtype=torch.float64) ** 3
    return {"symmetric": x, "positive": x.relu(), "behind GELU": nn.functional.gelu(3 * x)}[kind]


@BITS
@pytest.mark.parametrize("kind", KINDS)
def test_the_bounds_have_the_least_error_of_the_grid(kind, bits):
    x = values(kind)
    q = BoundsActivation(bits=bits, channels=1, channel_dim=-1)
    q.observe(x.float()[:, None])
    error = float((q(x.float()[:, None]).detach().squeeze(1).double() - x).square().sum())
    assert error == pytest.approx(reference.dobi(x.float().tolist(), bits), rel=1e-4)
    if kind != "behind GELU":  # whose lower bound may be less than half a step from 0
        assert bool(q.signed) == (kind == "symmetric")


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [2, 4])
def test_steps_of_weights_are_those_of_the_grid(bits, granularity):
    torch.manual_seed(1)
    weight = torch.randn(3, 40) ** 3
    q = BoundsWeight(bits=bits, out_channels=3, granularity=granularity)
    q.calibrate(weight)
    rows = [weight.flatten()] if granularity == "tensor" else list(weight)
    expected = [reference.dobi_weight(row.tolist(), bits) for row in rows]
    assert q.step.tolist() == pytest.approx(expected, rel=1e-6)


def small() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(5)
    how = {"nbits_w": 3, "nbits_a": 3, "quantizer": "Bounds", "weight_granularity": "channel"}
    net = nn.Sequential(QuantLinear(4, 5, **how), nn.ReLU(), QuantLinear(5, 2, **how))
    x = torch.randn(6, 4)
    return calibrate(net, [x]), x


def test_gradients_of_bits_are_those_of_the_formula():
    """Every value of an input and of a weight by itself, times its gradient."""
    net, x = small()
    found = bit_gradients(net, lambda: (net(x) ** 2).sum())
    assert all(p.grad is None for p in net.parameters())
    first, _, second = net
    inputs = {"0": (first, x), "2": (second, first(x).relu().detach())}
    for name, (layer, values_in) in inputs.items():
        q = layer.input_quantizer
        x_q = q(values_in).detach().requires_grad_()
        w_q = layer.weight_quantizer(layer.weight).detach().requires_grad_()
        out = nn.functional.linear(x_q, w_q, layer.bias)
        (out if name == "2" else second(out.relu())).square().sum().backward()
        total = 0.0
        for v, g in zip(values_in.flatten().tolist(), x_q.grad.flatten().tolist(), strict=True):
            total += g * reference.by_bits(v, 7 * q.lower.item(), 7 * q.upper.item(), 3)
        for row, grads, step in zip(layer.weight, w_q.grad, layer.weight_quantizer.step, strict=True):
            for v, g in zip(row.tolist(), grads.tolist(), strict=True):
                total += g * reference.by_bits(v, -4 * step.item(), 3 * step.item(), 3)
        assert found[name] == pytest.approx(total, rel=1e-4)


def test_more_bits_go_to_the_layers_whose_loss_falls_most():
    bits = {name: Bits(4, 6) for name in "abcdefgh"}
    gradients = dict(zip("abcdefgh", [3.0, -2.0, 0.0, -5.0, 1.0, 2.0, -1.0, 4.0], strict=True))
    found = mixed_bits(bits, gradients, 0.25)
    assert {name for name, b in found.items() if b == Bits(5, 7)} == {"d", "b"}
    assert {name for name, b in found.items() if b == Bits(3, 5)} == {"a", "h"}
    assert mixed_bits(bits, gradients, 0) == bits
    with pytest.raises(ValueError, match=r"of W2A4 would get W1A3, and bits are 2 to 8"):
        mixed_bits({**bits, "h": Bits(2, 4)}, gradients, 0.25)


def test_a_convolution_trains_its_bounds():
    torch.manual_seed(2)
    conv = QuantConv2d(3, 4, 3, padding=1, nbits_w=4, nbits_a=4, quantizer="Bounds")
    x = torch.randn(2, 3, 6, 6)
    calibrate(conv, [x])
    out = conv(x)
    out.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in conv.parameters())
    with torch.no_grad():
        torch.testing.assert_close(conv(x), out, rtol=1e-5, atol=1e-5)
