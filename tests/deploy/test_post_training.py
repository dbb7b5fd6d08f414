"""Post-training quantization: what each layer is for, its bits, and the packed network."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from quantsr.archs import QuantSR_C
from quantsr.archs.constructors import build_network
from quantsr.deploy.convert import convert
from quantsr.deploy.engines import reference, select
from quantsr.deploy.lower import lower
from quantsr.deploy.module import to_module
from quantsr.deploy.packed import packing
from quantsr.deploy.post_training import LayerBits, choose_bits, crops, quantize
from quantsr.deploy.roles import roles
from quantsr.errors import InputError
from quantsr.quant import manifest
from quantsr.ranges import Bits
from tests.archs import ncnn_files
from tests.deploy.rebuilt import rebuilt

COLOURS = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8}
W4 = Bits(4, 4)


def edsr(**changes) -> nn.Module:
    torch.manual_seed(5)
    return build_network("EDSR", {**COLOURS, "num_block": 2, "upscale": 2, **changes}).eval()


def pictures(count: int = 3, size: tuple[int, int] = (24, 20)) -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    small = [rng.integers(0, 256, (size[0] // 4, size[1] // 4, 3), np.uint8) for _ in range(count)]
    return [np.kron(picture, np.ones((4, 4, 1), np.uint8)) for picture in small]


def test_roles_of_edsr() -> None:
    found = roles(lower(edsr(upscale=4)))
    assert found.pop("conv_first") == "first"
    assert {found.pop(name) for name in ("upsample.0", "upsample.2", "conv_last")} == {"last"}
    assert set(found) == {"conv_after_body", *(f"body.{i}.conv{k}" for i in range(2) for k in (1, 2))}
    assert set(found.values()) == {"body"}


def test_roles_of_a_network_whose_base_is_the_enlarged_picture(tmp_path: Path) -> None:
    net = build_network("NcnnNetwork", {"file": str(ncnn_files.compact(tmp_path))})
    assert dict(roles(lower(net))) == {"conv_0": "first", "conv_1": "last"}
    msrresnet = build_network("MSRResNet", {**COLOURS, "num_block": 1, "upscale": 2})
    assert dict(roles(lower(msrresnet))) == {
        "conv_first": "first",
        "body.0.conv1": "body",
        "body.0.conv2": "body",
        "upconv1": "last",
        "conv_hr": "last",
        "conv_last": "last",
    }


class Neck(nn.Module):
    """A body without a shortcut round it, as SPAN's, or with one, as EDSR's."""

    def __init__(self, shortcut: bool) -> None:
        super().__init__()
        self.first, self.body = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fusion, self.last = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 12, 3, padding=1)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        fused = self.fusion(torch.cat([x, self.body(x).relu()], 1))
        return nn.functional.pixel_shuffle(self.last(fused + x if self.shortcut else fused), 2)


@pytest.mark.parametrize("shortcut", [False, True])
def test_the_layer_that_all_of_the_picture_passes_is_a_last_one(shortcut: bool) -> None:
    assert dict(roles(lower(Neck(shortcut).eval()))) == {
        "first": "first",
        "body": "body",
        "fusion": "body" if shortcut else "last",
        "last": "last",
    }


class Shrinking(nn.Module):
    """A net of maps of half the picture's size, beside the picture and a constant channel."""

    side_multiple = 2

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(16, 8, 1)
        self.up, self.body, self.last = nn.Conv2d(8, 16, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2:]
        x = nn.functional.pad(x, (0, width % 2, 0, height % 2), "reflect")
        x = self.first(torch.cat([x, torch.full((1, 1, *x.shape[2:]), 0.1)], 1))
        y = nn.functional.pixel_shuffle(self.up(self.down(nn.functional.pixel_unshuffle(x, 2))), 2)
        return self.last(x + self.body(x + y).relu())[..., :height, :width]


def test_an_enlargement_to_the_size_before_is_none() -> None:
    assert dict(roles(lower(Shrinking().eval()))) == {
        "first": "first",
        "down": "body",
        "up": "body",
        "body": "body",
        "last": "last",
    }


def test_rules_come_before_roles_and_the_first_decides() -> None:
    rules = [LayerBits("body.0.*", Bits(8, 8)), LayerBits("body.*", Bits(32, 32)), LayerBits("conv_last", W4)]
    assert choose_bits(edsr(), W4, rules) == {
        "body.0.conv1": Bits(8, 8),
        "body.0.conv2": Bits(8, 8),
        "conv_after_body": W4,
        "conv_last": W4,
    }


@pytest.mark.parametrize(
    ("bits", "rules", "message"),
    [
        (W4, [LayerBits("tail", W4)], "--rule: 'tail' matches no layer"),
        (
            W4,
            [LayerBits("body.*", W4), LayerBits("body.0.*", W4)],
            "--rule: 'body.0.*' matches no layer that no",
        ),
        (Bits(32, 32), [], "no layer is left to quantize"),
    ],
)
def test_rules_that_decide_nothing_are_refused(bits, rules, message: str) -> None:
    with pytest.raises(InputError) as error:
        choose_bits(edsr(), bits, rules)
    assert message in str(error.value)


def test_the_float_network_is_left_as_it_was() -> None:
    net = edsr()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    quantize(net, W4, pictures())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert {row["bits_w"] for row in manifest(net)} == {32}


def test_progress_counts_every_layer() -> None:
    seen: list[tuple[int, int]] = []
    quantize(edsr(), W4, pictures(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 5) for n in range(1, 6)]


def test_the_copy_can_be_built_again_from_its_contract() -> None:
    found = quantize(edsr(), Bits(3, 5), pictures())
    again, x = rebuilt(found), torch.rand(1, 3, 9, 8)
    with torch.inference_mode():
        assert torch.equal(again(x), found(x))


def test_more_bits_are_nearer_to_the_float_network() -> None:
    net, x = edsr(), crops(pictures())
    with torch.inference_mode():
        wanted = net(x)
        errors = [
            float((quantize(net, Bits(b, b), pictures())(x) - wanted).square().mean()) for b in (2, 4, 6, 8)
        ]
    assert errors[0] > 4 * errors[1] > 16 * errors[2] > 32 * errors[3] > 0


def test_networks_of_ours_are_quantized_by_their_own_arguments() -> None:
    torch.manual_seed(4)
    shape = {"num_feat": 8, "num_block": 2, "upscale": 2}
    net = build_network("QuantSR_C", {**shape, "nbits_w": 32, "nbits_a": 32})
    found = quantize(net, W4, pictures())
    assert isinstance(found, QuantSR_C)
    assert {row["name"] for row in manifest(found) if row["bits_w"] == 4} == {
        f"body.{i}.conv{k}" for i in range(2) for k in (1, 2)
    }
    assert torch.equal(found.conv_first.weight, net.conv_first.weight)
    with pytest.raises(InputError, match="QuantSR_C has its own rule"):
        quantize(net, W4, pictures(), rules=[LayerBits("body.*", W4)])
    with pytest.raises(InputError, match="is quantized already"):
        quantize(found, W4, pictures())


NETWORKS = {
    "EDSR": {**COLOURS, "num_block": 2, "upscale": 4},
    "MSRResNet": {**COLOURS, "num_block": 2, "upscale": 2},
    "SRVGGNetCompact": {**COLOURS, "num_conv": 3, "upscale": 3},
    "RRDBNet": {**COLOURS, "num_block": 1, "num_grow_ch": 4, "scale": 4},
}


@functools.cache
def quantized(kind: str, bits: Bits) -> nn.Module:
    """Shared by the tests, which leave it as it is."""
    torch.manual_seed(6)
    return quantize(build_network(kind, NETWORKS[kind]).eval(), bits, pictures())


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        *((kind, W4) for kind in NETWORKS),
        ("EDSR", Bits(8, 8)),
        *(
            pytest.param(kind, Bits(8, 8), marks=pytest.mark.integration)
            for kind in NETWORKS
            if kind != "EDSR"
        ),
    ],
    ids=str,
)
def test_engines_give_the_quantized_networks_pictures(tmp_path: Path, kind: str, bits: Bits) -> None:
    found = quantized(kind, bits)
    packing.save(convert(found, calib=pictures()), tmp_path / "net.safetensors")
    model = packing.load(tmp_path / "net.safetensors")
    image = pictures(1, (16, 28))[0]
    wanted = reference.run(model, image)
    assert wanted.std() > 1
    for engine in ("onnxruntime", "openvino", "torch"):
        (got,) = select.create(engine, model, threads=1).run(image[None])
        difference = np.abs(got.astype(int) - wanted)
        assert difference.max() <= 1, engine
        assert (difference == 0).mean() > 0.97, engine


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_packed_network_is_loaded_with_its_codes(tmp_path: Path, kind: str) -> None:
    found = quantized(kind, W4)
    model = convert(found, head_tail_bits=32)
    again = to_module(model)
    x = crops(pictures())
    with torch.inference_mode():
        torch.testing.assert_close(again(x), found(x), atol=2e-5, rtol=0)
    for name, layer in model.layers.items():
        if layer.bits_w < 32:
            assert np.array_equal(again.get_submodule(name).weight_codes().numpy(), layer.weight)


def test_crops_are_the_middles_of_at_most_sixteen_pictures() -> None:
    assert crops(pictures(3)).shape == (3, 3, 20, 20)
    assert crops(pictures(40, (100, 60))).shape == (16, 3, 48, 48)
    ramp = np.arange(60, dtype=np.uint8)[None, :, None].repeat(52, 0).repeat(3, 2)
    assert crops([ramp])[0, 0, 0].mul(255).round().tolist() == list(range(6, 54))
    with pytest.raises(InputError, match="--data: has no pictures"):
        crops([])
