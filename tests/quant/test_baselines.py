"""DoReFa, PACT, LSQ+, PAMS, MinMax and Percentile, compared with references, and calibrated."""

import math

import pytest
import torch

from quantsr.quant import IntRange, get_quantizer, uniform
from quantsr.quant.functional import step_gradient_scale
from tests.reference import baselines as reference

METHODS = ["DoReFa", "PACT", "LSQPlus", "PAMS", "MinMax", "Percentile", "DDTB", "ODM"]
BITS = pytest.mark.parametrize("bits", [2, 3, 4, 8])
SIGNED = pytest.mark.parametrize("signed", [True, False], ids=["signed", "unsigned"])


def features(signed: bool, count: int = 240) -> torch.Tensor:
    """(2, 5, 4, 6), similar to a network's features: many small and few large values, about
    0..255."""
    torch.manual_seed(7)
    x = torch.randn(count, dtype=torch.float64).reshape(2, 5, 4, -1) ** 3 * 20
    return x + 2 if signed else (x + 2).relu()


def activation(method: str, bits: int, x: torch.Tensor, *, search: bool = False):
    q = get_quantizer(method).activation(bits=bits, channels=x.shape[1], channel_dim=1)
    q.search_step = search
    q.observe(x)
    return q.double()


def run(q, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values, upstream gradient, and gradient of ``x``; sets the gradients of parameters."""
    upstream = torch.randn_like(x)
    a = x.clone().requires_grad_()
    out = q(a)
    out.backward(upstream)
    return out.detach(), upstream, a.grad


def columns(function, x: torch.Tensor, *args) -> list[torch.Tensor]:
    """The reference applied to every element; a tensor for each of its results."""
    rows = [function(float(value), *args) for value in x.flatten()]
    return [torch.tensor(column, dtype=torch.float64).reshape(x.shape) for column in zip(*rows, strict=True)]


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-9)


# --- activations compared with their references ---------------------------------------------------


@BITS
@SIGNED
def test_dorefa_activation(bits, signed):
    x = features(signed)
    q = activation("DoReFa", bits, x)
    out, upstream, grad = run(q, x)
    value, slope = columns(reference.dorefa_activation, x, q.alpha.item(), bits, signed)
    assert_close(out, value)
    inside = x != 0  # at 0 itself the gradient depends on the convention, as that of a ReLU
    assert_close(grad[inside], (upstream * slope)[inside])
    assert bool(q.signed) is signed
    assert list(q.parameters()) == []


@BITS
@SIGNED
def test_pact_activation(bits, signed):
    x = features(signed)
    q = activation("PACT", bits, x)
    q.step.data.mul_(0.7)  # so that some values are clipped on either side
    alpha = q.alpha.item()
    x.view(-1)[5] = alpha  # equation 3: alpha itself counts
    out, upstream, grad = run(q, x)
    value, slope, by_alpha = columns(reference.pact_activation, x, alpha, bits, signed)
    assert_close(out, value)
    assert_close(grad, upstream * slope)
    steps = (2**bits - 1) / 2 if signed else 2**bits - 1  # alpha in steps
    assert_close(q.step.grad, (upstream * by_alpha).sum().reshape(1) * steps)
    assert by_alpha.view(-1)[5] == 1


@BITS
@SIGNED
def test_lsq_plus_activation(bits, signed):
    x = features(signed)
    q = activation("LSQPlus", bits, x)
    q.beta.data.add_(0.3)
    q.step.data.mul_(0.8)
    out, upstream, grad = run(q, x)
    step, beta = q.step.item(), q.beta.item()
    value, slope, by_step, by_beta = columns(reference.lsq_plus_activation, x, step, beta, bits)
    assert_close(out, value)
    assert_close(grad, upstream * slope)
    g = step_gradient_scale(x.numel(), 2**bits - 1)
    assert_close(q.step.grad, (upstream * by_step).sum().reshape(1) * g)
    assert_close(q.beta.grad, (upstream * by_beta).sum().reshape(1) * g)


@BITS
@SIGNED
def test_pams_activation(bits, signed):
    x = features(signed)
    q = activation("PAMS", bits, x, search=True)
    out, upstream, grad = run(q, x)
    value, slope, by_alpha = columns(reference.pams_activation, x, q.alpha.item(), bits, signed)
    assert_close(out, value)
    assert_close(grad, upstream * slope)
    top = IntRange.of(bits, signed).qmax
    g = step_gradient_scale(x.numel(), top)
    assert_close(q.step.grad, (upstream * by_alpha).sum().reshape(1) * top * g)


@BITS
@SIGNED
@pytest.mark.parametrize("method", ["MinMax", "Percentile"])
def test_static_activation(method, bits, signed):
    x = features(signed).float().double()
    q = activation(method, bits, x)
    values = x.flatten().tolist()
    low, high = (
        (min(values), max(values))
        if method == "MinMax"
        else (reference.percentile(values, 0.01), reference.percentile(values, 0.99))
    )
    low = min(low, 0.0)
    step = torch.tensor([(high - low) / (2**bits - 1)], dtype=torch.float64)
    torch.testing.assert_close(q.step, step, rtol=1e-6, atol=0)
    q.step.copy_(step)  # calibration is FP32
    out, upstream, grad = run(q, x)
    value, slope = columns(reference.affine, x, low, high, bits)
    assert_close(out, value)
    inside = (x != 0) & (x != high) & (x != low)
    assert_close(grad[inside], (upstream * slope)[inside])
    assert (int(q.zero_point) > 0) is signed
    assert list(q.parameters()) == []


# --- weights compared with their references -------------------------------------------------------


def weights(method: str, bits: int, granularity: str):
    torch.manual_seed(bits)
    w = torch.randn(4, 3, 3, 3, dtype=torch.float64) * torch.tensor([0.1, 1, 3, 0.5]).view(4, 1, 1, 1)
    w[3] = w[3].abs()  # a kernel of one sign
    q = get_quantizer(method).weight(bits=bits, out_channels=4, granularity=granularity).double()
    q.calibrate(w)
    a = w.clone().requires_grad_()
    upstream = torch.randn_like(w)
    result = q.quantize(a, torch.float64)
    result.values.backward(upstream)
    assert torch.equal(result.values, result.codes * result.step)
    assert torch.equal(result.step.flatten(), q.step)
    groups = list(range(4)) if granularity == "channel" else [slice(None)]
    return q, w, upstream, result.values.detach(), a.grad, groups


@BITS
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("method", ["DoReFa", "PAMS", "MinMax"])
def test_weights(method, bits, granularity):
    q, w, upstream, values, grad, groups = weights(method, bits, granularity)
    for group in groups:
        part = w[group]
        if method == "DoReFa":
            squashed = part.tanh()
            value, slope = columns(reference.dorefa_weight, squashed, float(squashed.abs().max()), bits)
        elif method == "PAMS":
            value, slope = columns(reference.pams_weight, part, float(part.abs().max()), bits)
        else:
            value, slope = columns(reference.min_max_weight, part, float(part.min()), float(part.max()), bits)
            assert (value - part).abs().max() <= (0.5 + 1e-9) * float(q.step.max())
        assert_close(values[group], value)
        assert_close(grad[group], upstream[group] * slope)
        assert value.unique().numel() <= 2**bits
    assert list(q.parameters()) == []


@pytest.mark.parametrize("method", ["DoReFa", "PAMS"])
def test_levels_follow_the_weight_as_it_grows(method):
    q = get_quantizer(method).weight(bits=4, out_channels=4)
    w = torch.randn(4, 3, 3, 3) * 0.1
    q.calibrate(w)
    before = q.step.clone()
    q(2 * w)
    torch.testing.assert_close(q.step, 2 * before, rtol=0.1, atol=0)


def test_weight_quantizers_of_pact_percentile_and_lsq_plus():
    assert get_quantizer("PACT").weight is get_quantizer("DoReFa").weight
    assert get_quantizer("Percentile").weight is get_quantizer("MinMax").weight
    assert get_quantizer("LSQPlus").weight is get_quantizer("LSQ").weight


# --- codes ----------------------------------------------------------------------------------------


@BITS
@pytest.mark.parametrize("method", ["PAMS", "MinMax", "LSQPlus"])
def test_weight_codes_fit_their_bits(method, bits):
    q = get_quantizer(method).weight(bits=bits, out_channels=4)
    w = torch.randn(4, 3, 3, 3)
    q.calibrate(w)
    codes = q.codes(w)
    r = IntRange.of(bits, True)
    assert codes.dtype == torch.int8
    assert r.qmin <= codes.min() < 0 < codes.max() <= r.qmax
    assert torch.equal(codes * q.step, q(w))


@pytest.mark.parametrize("method", ["DoReFa", "PACT"])
def test_odd_multiples_are_no_codes(method):
    q = get_quantizer(method).weight(bits=2, out_channels=4)
    w = torch.randn(4, 3, 3, 3)
    q.calibrate(w)
    assert sorted(q.quantize(w, torch.bfloat16).codes.unique().tolist()) == [-3, -1, 1, 3]
    with pytest.raises(ValueError, match="no integer codes of 2 bits"):
        q.codes(w)


@BITS
@pytest.mark.parametrize(
    ("method", "signed"), [("PAMS", True), ("PAMS", False), ("MinMax", False), ("DoReFa", False)]
)
def test_activation_values_are_codes_times_step(method, signed, bits):
    x = features(signed).float()
    q = activation(method, bits, x).float()
    codes = q.codes(x)
    r = IntRange.of(bits, signed)
    assert q.spec().range == r
    assert r.qmin <= codes.min() <= codes.max() <= r.qmax
    assert torch.equal(codes * q.step, q(x))


@pytest.mark.parametrize("method", ["DoReFa", "PACT"])
def test_levels_without_0_have_no_codes(method):
    x = features(True).float()
    q = activation(method, 4, x)
    assert q.spec() is None
    with pytest.raises(ValueError, match="no integer codes"):
        q.codes(x)


@BITS
@SIGNED
@pytest.mark.parametrize("method", METHODS)
def test_the_number_of_levels_is_two_to_the_bits(method, bits, signed):
    x = torch.linspace(-100 if signed else 0, 100, 4000).view(1, 1, 40, 100)
    q = activation(method, bits, x).float()
    assert q(1.3 * x if bits > 3 else 3 * x).unique().numel() == 2**bits


# --- calibration ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_features_of_0_to_255_are_not_clipped_to_1(method):
    x = torch.rand(1, 3, 20, 20) * 255
    q = activation(method, 8, x).float()
    assert (q(x) - x).abs().max() < 4


@SIGNED
@pytest.mark.parametrize("method", ["DoReFa", "PACT", "LSQPlus", "PAMS"])
def test_a_searched_bound_beats_the_largest_value_and_is_the_best_of_its_kind(method, signed):
    x = features(signed, 24000).float()
    q = activation(method, 2, x, search=True).float()
    error = (q(x) - x).square().mean()
    static = activation("MinMax", 2, x).float()
    assert error < 0.9 * (static(x) - x).square().mean()
    for factor in (2**0.25, 2**-0.25):  # its neighbours in the search
        other = activation(method, 2, x, search=True).float()
        other.step.data.mul_(factor)
        if method == "LSQPlus":
            continue  # searched in two dimensions; its beta would have to move too
        assert (other(x) - x).square().mean() >= 0.99 * error


def test_lsq_plus_uses_the_offset_for_lopsided_inputs():
    """As after a GELU: small negative values, large positive ones."""
    x = torch.nn.functional.gelu(torch.randn(1, 4, 40, 40) * 4)
    with_offset, without = (activation(m, 3, x, search=True).float() for m in ("LSQPlus", "LSQ"))
    assert (with_offset(x) - x).square().mean() < 0.5 * (without(x) - x).square().mean()


def test_pams_starts_at_the_mean_of_the_batches_largest_values():
    q = get_quantizer("PAMS").activation(bits=4, channels=1, channel_dim=1)
    q.observe(torch.tensor([1.0, -3.0]).view(1, 1, 1, 2))
    q.observe(torch.tensor([5.0, 0.0]).view(1, 1, 1, 2))
    assert q.alpha.item() == pytest.approx(4)


def test_min_max_are_those_of_all_batches_until_the_reset():
    q = get_quantizer("MinMax").activation(bits=4, channels=1, channel_dim=1)
    q.observe(torch.tensor([1.0, 3.0]).view(1, 1, 1, 2))
    assert not q.signed
    q.observe(torch.tensor([-2.0, 0.0]).view(1, 1, 1, 2))
    assert q.signed
    assert (q.step.item(), q.zero_point.item()) == (pytest.approx(5 / 15), 6)
    assert q.spec().centred == IntRange(-6, 9)
    q.reset()
    q.observe(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2))
    assert (q.step.item(), q.zero_point.item()) == (pytest.approx(1 / 15), 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_fixed_sign_is_kept(method):
    q = get_quantizer(method).activation(bits=4, channels=3, channel_dim=1)
    q.fix_sign(False)
    q.observe(torch.randn(1, 3, 8, 8))
    assert q.range == IntRange.of(4, signed=False)
    assert not q.signed


@pytest.mark.parametrize("value", [0.0, -3.0])
@pytest.mark.parametrize("method", METHODS)
def test_constant_inputs_give_finite_values_and_gradients(method, value):
    x = torch.full((1, 3, 4, 4), value, requires_grad=True)
    q = activation(method, 2, x.detach()).float()
    out = q(x)
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()
    assert (out - value).abs().max() <= abs(value) / 2


@pytest.mark.parametrize("method", ["PACT", "LSQPlus", "PAMS"])
def test_a_step_below_zero_can_recover(method):
    x = torch.randn(1, 2, 4, 4)
    q = activation(method, 4, x).float()
    q.step.data.fill_(-0.1)
    out = q(x)
    assert out.isfinite().all()
    out.backward(x.sign())
    assert q.step.grad.abs().item() > 0


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_is_quantized_in_fp32(method):
    x = features(True).bfloat16()
    q = activation(method, 4, x.float()).float()
    assert q(x).dtype == torch.bfloat16
    assert torch.equal(q(x), q(x.float()).bfloat16())


@pytest.mark.parametrize("method", METHODS)
def test_channels_may_come_last(method):
    x = features(True).float()
    first = activation(method, 4, x).float()
    last = get_quantizer(method).activation(bits=4, channels=5, channel_dim=-1)
    last.load_state_dict(first.state_dict())
    assert torch.equal(last(x.movedim(1, -1)), first(x).movedim(1, -1))


def test_straight_through_is_exact():
    x = torch.randn(1000, requires_grad=True)
    values = torch.randn(1000) * math.pi
    out = uniform.straight_through(values, x)
    assert torch.equal(out, values)
    out.backward(torch.ones(1000))
    assert torch.equal(x.grad, torch.ones(1000))
