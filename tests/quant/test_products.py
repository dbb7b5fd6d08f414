"""Products of activations, found in any network and quantized."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from quantsr.archs.constructors import build_network
from quantsr.deploy.convert import convert
from quantsr.deploy.engines import reference, select
from quantsr.deploy.lower import lower
from quantsr.deploy.module import to_module
from quantsr.deploy.native import library
from quantsr.errors import InputError
from quantsr.quant import QuantMatmul, calibrate, manifest
from quantsr.quant.calibrate import calibrating
from quantsr.quant.products import find_products, quantize_products

SWINIR = {
    "upscale": 2,
    "img_size": 8,
    "window_size": 4,
    "depths": [2, 1],
    "embed_dim": 12,
    "num_heads": [3, 3],
    "mlp_ratio": 2,
    "upsampler": "pixelshuffledirect",
}


class Attention(nn.Module):
    """Products of every kind, and a product with a parameter before them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(3, 9, 1)
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.conv(x).flatten(2).transpose(1, 2).chunk(3, -1)  # (B, h * w, 3) each
        q = q @ self.weight
        if self.kind == "sdpa":
            out = functional.scaled_dot_product_attention(q, k, v)
        elif self.kind == "einsum":
            out = torch.einsum("bij,bjd->bid", torch.einsum("bid,bjd->bij", q, k).softmax(-1), v)
        elif self.kind == "bmm":
            out = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        else:
            out = torch.matmul((q @ k.mT).softmax(-1), v)
        return out.transpose(1, 2).unflatten(2, x.shape[2:]).repeat_interleave(1, 1)


def attention(kind: str, nbits: int = 4, quantizer: str = "RLQ") -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    net, x = nn.Sequential(Attention(kind)), torch.rand(2, 3, 4, 5)
    assert quantize_products(net, x[:1], nbits=nbits, quantizer=quantizer) == 2
    return calibrate(net, [x], "mse"), x


@pytest.mark.parametrize("kind", ["matmul", "bmm", "einsum", "sdpa"])
def test_both_operands_of_both_products_are_quantized(kind):
    """What the module gives is what its formula gives on operands that are quantized by hand."""
    net, x = attention(kind)
    (module,) = net
    with torch.no_grad():
        found = net(x)
        q, k, v = module.conv(x).flatten(2).transpose(1, 2).chunk(3, -1)
        q = q @ module.weight
        scores = module.scores.left(q) @ module.scores.right(k.mT)
        if kind == "sdpa":
            scores = scores * 3**-0.5
        mixed = module.mixture.left(scores.softmax(-1)) @ module.mixture.right(v)
    expected = mixed.transpose(1, 2).unflatten(2, x.shape[2:])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert bool(module.scores.left.input_quantizer.signed)
    assert not bool(module.mixture.left.input_quantizer.signed)
    assert module.scores.shape == (1, 20, 3, 20)
    assert module.mixture.shape == (1, 20, 20, 3)


@pytest.mark.parametrize("quantizer", ["RLQ", "LSQPlus", "Bounds", "MinMax"])
def test_steps_of_operands_learn(quantizer):
    net, x = attention("matmul", 3, quantizer)
    net(x).square().sum().backward()
    learned = [p for n, p in net.named_parameters() if "quantizer" in n]
    assert len(learned) == {"RLQ": 8, "LSQPlus": 8, "Bounds": 8, "MinMax": 0}[quantizer]
    assert all(p.grad is not None and p.grad.shape == p.shape for p in learned)


def test_masks_and_causal_attention_are_those_of_torch():
    class Masked(nn.Module):
        def forward(self, x: Tensor, **how) -> Tensor:
            return functional.scaled_dot_product_attention(x, x, x, **how)

    torch.manual_seed(0)
    net, x = Masked(), torch.randn(1, 2, 6, 4)
    options = [
        {"is_causal": True},
        {"attn_mask": torch.randn(6, 6)},
        {"attn_mask": torch.rand(6, 6) > 0.3, "scale": 0.7},
    ]
    wanted = [net(x, **how) for how in options]
    quantize_products(net, x, nbits=8, quantizer="MinMax")
    with calibrating(net):
        for how in options:
            net(x, **how)
    for how, expected in zip(options, wanted, strict=True):
        torch.testing.assert_close(net(x, **how), expected, rtol=0, atol=0.05)


def test_places_are_found_in_the_module_that_computes_them():
    net = build_network("SwinIR", SWINIR).eval()
    found = find_products(net, torch.rand(1, 3, 8, 8))
    names = [f"layers.{i}.residual_group.blocks.{j}.attn" for i, j in ((0, 0), (0, 1), (1, 0))]
    assert sorted(found) == names
    assert [len(calls) for calls in found.values()] == [2, 2, 2]
    assert all(p.requires_grad for p in net.parameters())
    assert not any("forward" in vars(module) for module in net.modules())


def test_places_are_found_in_inference_mode():
    with torch.inference_mode():
        net = build_network("SwinIR", SWINIR).eval()
        before = dict(net.named_parameters())
        found = find_products(net, torch.rand(1, 3, 8, 8))
        assert torch.is_inference_mode_enabled()
    assert len(found) == 3
    assert all(p is before[name] and p.is_inference() for name, p in net.named_parameters())


def test_a_network_is_built_in_inference_mode_with_products_quantized():
    section = {"network": {"type": "SwinIR", **SWINIR}, "rules": {}, "attention": 4}
    with torch.inference_mode():
        net = build_network("Quantized", section)
    assert sum(isinstance(module, QuantMatmul) for module in net.modules()) == 6


def test_a_network_without_products_is_refused_in_one_line():
    edsr = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 2}
    section = {"network": {"type": "EDSR", **edsr}, "rules": {"body.*": 4}, "attention": 4}
    with pytest.raises(InputError, match=r"network_g.attention: EDSR multiplies no values") as caught:
        build_network("Quantized", section)
    assert "\n" not in str(caught.value)


def swinir(quantizer: str, nbits: int) -> nn.Module:
    torch.manual_seed(3)
    section = {
        "network": {"type": "SwinIR", **SWINIR},
        "rules": {"layers.*.attn.*": nbits, "layers.*.mlp.*": nbits},
        "quantizer": quantizer,
        "attention": nbits,
    }
    net = build_network("Quantized", section).eval()
    return calibrate(net, [torch.rand(2, 3, 8, 8)], "mse")


@pytest.mark.parametrize(("quantizer", "nbits"), [("RLQ", 4), ("MinMax", 8), ("LSQPlus", 4), ("Bounds", 3)])
def test_swinir_with_quantized_products_runs_as_integers(quantizer, nbits):
    net = swinir(quantizer, nbits)
    products = [row for row in manifest(net) if row["kind"] == "matmul"]
    assert len(products) == 6
    assert {(row["bits_w"], row["bits_a"]) for row in products} == {(nbits, nbits)}
    assert products[0]["shape"] == [3, 16, 4, 16]
    model = convert(net, head_tail_bits=32)
    picture = (torch.rand(9, 13, 3, generator=torch.Generator().manual_seed(4)) * 255).to(torch.uint8)
    x = picture.permute(2, 0, 1)[None] / 255
    again = to_module(model)
    with torch.no_grad():
        wanted = net(x)
        # LSQ+ runs on values before it is packed, so some of its codes differ.
        torch.testing.assert_close(again(x), wanted, atol=2e-3 if quantizer == "LSQPlus" else 2e-5, rtol=0)
    levels = (wanted[0].permute(1, 2, 0).clamp(0, 1) * 255).round()
    difference = (torch.from_numpy(reference.run(model, picture.numpy()).astype("float32")) - levels).abs()
    assert (difference <= 1).float().mean() >= 0.999
    assert levels.std() > 3


def test_engines_give_the_references_picture_with_quantized_products():
    model = convert(swinir("Bounds", 4), head_tail_bits=32)
    picture = (torch.rand(9, 13, 3, generator=torch.Generator().manual_seed(4)) * 255).to(torch.uint8)
    wanted = reference.run(model, picture.numpy()).astype(int)
    for engine in ("onnxruntime", "openvino", "torch", *(["native"] if library.best_isa() else [])):
        (got,) = select.create(engine, model, threads=1).run(picture.numpy()[None])
        difference = abs(got.astype(int) - wanted)
        assert difference.max() <= 1, engine
        assert (difference == 0).mean() > 0.99, engine


def test_other_products_are_refused_by_lowering_in_one_line():
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = Attention("matmul")

        def forward(self, x: Tensor) -> Tensor:
            return x + self.attention(x)

    net = Network()
    quantize_products(net, torch.rand(1, 3, 8, 8), nbits=4, quantizer="RLQ")
    with pytest.raises(InputError, match="network: attention multiplies quantized values") as caught:
        lower(net)
    assert "\n" not in str(caught.value)
    assert isinstance(net.attention.scores, QuantMatmul)
