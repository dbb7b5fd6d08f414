"""Methods of post-training quantization beside `fit`: what they quantize, and that it packs."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from quantsr.archs import contract
from quantsr.archs.constructors import build_network
from quantsr.deploy.convert import convert
from quantsr.deploy.engines import reference
from quantsr.deploy.post_training import quantize
from quantsr.deploy.post_training_methods import QUANTIZERS, Method, set_layers
from quantsr.errors import InputError
from quantsr.quant import QuantConv2d, manifest
from quantsr.quant.fit import fit
from quantsr.ranges import Bits
from tests.deploy.rebuilt import rebuilt
from tests.deploy.test_post_training import edsr, pictures
from tests.quant.test_products import SWINIR

W4 = Bits(4, 4)
METHODS = [
    Method("minmax"),
    Method("percentile"),
    Method("mse"),
    Method("2dquant", iterations=0),
    Method("2dquant", iterations=2, rectifier=2),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{m.iterations}-{m.rectifier}")
def test_a_packed_network_gives_the_quantized_networks_picture(method: Method) -> None:
    net = edsr()
    found = quantize(net, W4, pictures(), method=method)
    rows = [row for row in manifest(found) if row["bits_w"] == 4]
    assert len(rows) == 5
    assert {row["quantizer"] for row in rows} == {QUANTIZERS[method.name]}
    same = all(
        torch.equal(found.get_submodule(row["name"]).weight, net.get_submodule(row["name"]).weight)
        for row in rows
    )
    assert same == (method.rectifier == 0)
    image = pictures(1, (16, 28))[0]
    with torch.inference_mode():
        out = found(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
    wanted = (out[0].permute(1, 2, 0).clamp(0, 1) * 255).round().numpy()
    assert wanted.std() > 1
    difference = np.abs(reference.run(convert(found, head_tail_bits=32), image) - wanted)
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.97


@pytest.mark.parametrize("count", [1, 3])
def test_each_layer_is_fitted_to_the_float_networks_output_on_the_quantized_networks_input(
    count: int,
) -> None:
    torch.manual_seed(3)
    how = {"nbits_w": 4, "nbits_a": 4, "quantizer": "RLQAsymmetric", "weight_granularity": "channel"}
    net = nn.Sequential(QuantConv2d(3, 8, 3, padding=1, **how), nn.SiLU(), QuantConv2d(8, 5, 1, **how))
    own, batch = copy.deepcopy(net), torch.rand(count, 3, 9, 7)
    weights = {"0": torch.rand(8), "2": torch.rand(5)}
    set_layers(net, batch, Method(), fits=True, importance=weights)

    theirs = ours = batch
    for name, layer in own.named_children():
        if isinstance(layer, QuantConv2d):
            theirs = nn.functional.conv2d(theirs, layer.weight, layer.bias, padding=layer.padding)
            fit(layer, ours, theirs, importance=weights[name])
        else:
            theirs = layer(theirs)
        ours = layer(ours)
    assert list(net.state_dict()) == list(own.state_dict())
    for name, value in own.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value)
    torch.testing.assert_close(net(batch), ours)


def test_progress_counts_layers_then_iterations() -> None:
    seen: list[tuple[int, int]] = []
    method = Method("2dquant", iterations=2)
    quantize(edsr(), W4, pictures(), method=method, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 7) for n in range(1, 8)]


def test_networks_of_ours_have_the_methods_quantizer() -> None:
    torch.manual_seed(4)
    shape = {"num_feat": 8, "num_block": 2, "upscale": 2}
    net = build_network("QuantSR_C", {**shape, "nbits_w": 32, "nbits_a": 32})
    found = quantize(net, W4, pictures(), method=Method("2dquant", iterations=1))
    assert contract.of(found).arguments["quantizer"] == "Bounds"
    with pytest.raises(InputError, match="--mixed: QuantSR_C has one number of bits"):
        quantize(net, W4, pictures(), method=Method(mixed=0.25))
    with pytest.raises(InputError, match="--attention: QuantSR_C has no attention"):
        quantize(net, W4, pictures(), attention=4)


def test_mixed_bits_keep_their_mean() -> None:
    found = quantize(edsr(), W4, pictures(), method=Method("minmax", mixed=0.2))
    bits = sorted(row["bits_w"] for row in manifest(found) if row["bits_w"] < 32)
    assert bits == [3, 4, 4, 4, 5]
    with pytest.raises(InputError, match=r"--mixed: .* of W2A2 would get W1A1, and bits are 2 to 8"):
        quantize(edsr(), Bits(2, 2), pictures(), method=Method(mixed=0.2))


def test_products_of_attention_are_quantized_where_they_are_asked_for() -> None:
    torch.manual_seed(2)
    net = build_network("SwinIR", SWINIR).eval()
    found = quantize(net, W4, pictures(), attention=3)
    products = [row for row in manifest(found) if row["kind"] == "matmul"]
    assert [(row["bits_w"], row["bits_a"]) for row in products] == [(3, 3)] * 6
    again, x = rebuilt(found), torch.rand(1, 3, 9, 8)
    with torch.inference_mode():
        assert torch.equal(again(x), found(x))
    with pytest.raises(InputError, match="--attention: EDSR multiplies no values"):
        quantize(edsr(), W4, pictures(), attention=4)


def test_quantsr_t_quantizes_its_products_with_its_activations_bits() -> None:
    torch.manual_seed(4)
    shape = {"embed_dim": 12, "num_block": 1, "layers_per_block": 2, "num_heads": 3, "window_size": 4}
    net = build_network("QuantSR_T", {**shape, "upscale": 2, "nbits_w": 32, "nbits_a": 32})
    found = quantize(net, W4, pictures(), attention=4)
    assert contract.of(found).protocol == "2DQuant"
    with pytest.raises(InputError, match="--attention: QuantSR_T has the bits of its activations there, 4"):
        quantize(net, W4, pictures(), attention=8)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"name": "minmax", "quantizer": "RLQ"}, "--quantizer: method minmax has its own"),
        ({"rectifier": 8}, "--rectifier: is trained with the bounds"),
        ({"name": "2dquant", "iterations": 0, "rectifier": 8}, "--rectifier: is trained with the bounds"),
    ],
)
def test_methods_that_do_not_go_together_are_refused(how, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Method(**how)
