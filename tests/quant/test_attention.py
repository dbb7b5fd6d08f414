"""Linear layers and attention products on codes, compared with explicit fake quantization."""

import pytest
import torch

from quantsr.quant import (
    IntRange,
    QuantLinear,
    attention_products,
    calibrate,
    manifest,
    set_exact_fp32,
)
from tests.reference import rlq

B, N, C, HEADS = 3, 4, 6, 2


def relative_error(a, b):
    return ((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-12)).item()


def close_enough(gradient):
    """Bound of the relative error. A step's gradient is a sum of many terms of both signs, where
    rounding has more effect."""
    return 0.02 if gradient.numel() > 1 else 0.1


def linear(bits, granularity="tensor"):
    layer = QuantLinear(16, 12, nbits_w=bits, nbits_a=bits, weight_granularity=granularity)
    x = torch.randn(2, 5, 16)
    calibrate(layer, [x])
    layer.input_quantizer.tau.data.normal_(0, 0.3)
    return layer, x


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_linear_on_codes_is_the_fake_quantized_linear(bits, granularity):
    """In bfloat16 only output and gradients are rounded, to 8 bits."""
    layer, x = linear(bits, granularity)
    results = []
    upstream = torch.randn(2, 5, 12)
    for amp in (False, True):
        layer.zero_grad()
        a = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            out = layer(a)
        out.backward(upstream.to(out.dtype))
        results.append([out, a.grad, *(p.grad.clone() for p in layer.parameters())])
    exact, fast = results
    assert fast[0].dtype == torch.bfloat16
    assert relative_error(fast[0], exact[0]) < 2**-8
    for a, b in zip(fast[1:], exact[1:], strict=True):
        assert relative_error(a, b) < close_enough(b)


def test_linear_on_codes_is_exact_before_the_last_rounding():
    """Products of codes are integers: bfloat16's result is that of FP32, rounded once or twice."""
    layer, x = linear(4)
    layer.bias.data.zero_()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        fast = layer(x)
    sums = layer.input_quantizer.codes(x).double() @ layer.weight_codes().double().t()
    expected = sums.bfloat16().float() * (layer.input_quantizer.step * layer.weight_quantizer.step)
    assert torch.equal(fast, expected.bfloat16())


def test_linear_saves_only_its_input_parameters_and_quantized_weight():
    layer, x = linear(4)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        a = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            layer(a)
    own = {a.data_ptr(), *(p.data_ptr() for p in layer.parameters())}
    others = [t for t in saved if t.data_ptr() not in own]
    assert (
        sum(t.numel() for t in others) <= layer.weight.numel()
    )  # the quantized weight, shared by all depths


def test_exact_fp32_computes_on_values_under_autocast():
    layer, x = linear(4)
    set_exact_fp32(True)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
    finally:
        set_exact_fp32(False)
    assert layer.input_quantizer is not None
    weight = layer.quantized_weight(torch.float32)
    assert weight is not None
    assert torch.equal(out, torch.nn.functional.linear(layer.input_quantizer(x), weight.values, layer.bias))


class Attention(torch.nn.Module):
    """Both attention products on given q, k and v."""

    def __init__(self, bits, quantizer="RLQ"):
        super().__init__()
        how = {"channels": C, "heads": HEADS, "tokens": N, "nbits": bits, "quantizer": quantizer}
        self.scores, self.mixture = attention_products(**how)

    def forward(self, qkv):
        q, k, v = qkv.chunk(3, -1)
        probabilities = self.scores(q, k).float().softmax(-1)
        return self.mixture(probabilities, v).transpose(1, 2).flatten(2)


def attention(bits, quantizer="RLQ"):
    net = Attention(bits, quantizer)
    qkv = torch.randn(B, N, 3 * C) * 2
    calibrate(net, [qkv])
    for name, parameter in net.named_parameters():
        if name.endswith("tau"):
            parameter.data.normal_(0, 0.05)
    return net, qkv


def attention_reference(net, qkv, soft):
    """Attention with the reference quantizer, head by head."""

    def quantized(x, operand):
        q = operand.input_quantizer
        r = q.range
        return rlq.fake_quantize(x, q.tau, q.step, r.qmin, r.qmax, soft=soft, numel=x.numel())

    q, k, v = (
        quantized(t, operand)
        for t, operand in zip(
            qkv.chunk(3, -1), (net.scores.left, net.scores.right, net.mixture.right), strict=True
        )
    )
    heads = [slice(h * C // HEADS, (h + 1) * C // HEADS) for h in range(HEADS)]
    scores = torch.stack([q[..., h] @ k[..., h].transpose(1, 2) for h in heads], 1)  # (B, h, N, N)
    probabilities = quantized(scores.softmax(-1), net.mixture.left)
    return torch.cat([probabilities[:, i] @ v[..., h] for i, h in enumerate(heads)], -1)


@pytest.mark.parametrize(("quantizer", "soft"), [("RLQ", True), ("LSQ", False)])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_attention_products_and_gradients_agree_with_the_formulae(bits, quantizer, soft):
    net, qkv = attention(bits, quantizer)
    upstream = torch.randn(B, N, C)
    results = []
    for run in (net, lambda x: attention_reference(net, x, soft)):
        net.zero_grad()
        x = qkv.clone().requires_grad_()
        out = run(x)
        out.backward(upstream)
        results.append([out, x.grad, *(p.grad.clone() for p in net.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_products_on_codes_and_their_gradients_are_close(bits):
    """One product at a time: with both, a rounded score could change a code."""
    net, qkv = attention(bits)
    q, k, v = qkv.chunk(3, -1)
    cases = [(net.scores, q, k), (net.mixture, torch.rand(B, HEADS, N, N), v)]
    for product, left, right in cases:
        results = []
        upstream = torch.randn_like(product(left, right))
        for amp in (False, True):
            product.zero_grad()
            a, b = left.clone().requires_grad_(), right.clone().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                out = product(a, b)
            out.backward(upstream.to(out.dtype))
            results.append([out, a.grad, b.grad, *(p.grad.clone() for p in product.parameters())])
        assert results[1][0].dtype == torch.bfloat16
        for exact, fast in zip(*results, strict=True):
            assert relative_error(fast, exact) < close_enough(exact)


def test_the_output_of_softmax_is_unsigned_even_when_calibrated_again():
    net, qkv = attention(4)
    net.mixture.left.input_quantizer.tau.data.fill_(-0.5)
    calibrate(net, [qkv])
    assert net.mixture.left.input_quantizer.range == IntRange.of(4, signed=False)
    assert net.scores.left.input_quantizer.range == IntRange.of(4, signed=True)


def test_manifest_names_the_products():
    net, _ = attention(4)
    scores, mixture = manifest(net)
    assert (scores["name"], scores["kind"], scores["shape"]) == (
        "scores",
        "matmul",
        [HEADS, N, C // HEADS, N],
    )
    assert (scores["bits_w"], scores["bits_a"], scores["signed"]) == (4, 4, True)
    assert (mixture["shape"], mixture["signed"]) == ([HEADS, N, N, C // HEADS], False)
    assert {r["quantizer"] for r in manifest(Attention(32))} == {None}


def test_an_uncalibrated_product_refuses_to_run():
    with pytest.raises(RuntimeError, match="not calibrated"):
        Attention(4)(torch.rand(1, N, 3 * C))
