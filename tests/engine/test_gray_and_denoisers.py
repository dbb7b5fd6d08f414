"""Networks of gray pictures, of scale 1, with layers to merge and depthwise convolutions: from a
checkpoint to pictures by every command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import quantsr
from quantsr import Upscaler, cli
from quantsr.archs.gray import LUMA
from quantsr.archs.prepared import prepare
from quantsr.deploy.packed import packing
from quantsr.engine import build
from quantsr.errors import InputError
from tests.networks.denoiser_arch import SmallDenoiser

RNG = np.random.default_rng(4)
GRAY = cv2.resize(RNG.integers(0, 256, (6, 7), np.uint8), (42, 36), interpolation=cv2.INTER_CUBIC)
COLOURS = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]], 2)


def denoiser(channels: int) -> nn.Module:
    torch.manual_seed(1)
    net = SmallDenoiser(channels, channels)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean)
            nn.init.normal_(module.bias)
    return net.eval()


def written(folder: Path, channels: int) -> list[str]:
    """Its checkpoint, and the words of a command that name it."""
    torch.save({"params": denoiser(channels).state_dict()}, folder / "float.pth")
    section = f"{{type: SmallDenoiser, num_in_ch: {channels}, num_out_ch: {channels}}}"
    (folder / "net.yml").write_text(f"network_g: {section}\n", encoding="utf-8")
    return [str(folder / "float.pth"), "-opt", str(folder / "net.yml")]


@pytest.fixture(
    scope="module", params=[1, pytest.param(3, marks=pytest.mark.integration)], ids=["gray", "colour"]
)
def packed(request, tmp_path_factory) -> tuple[int, Path]:
    """The number of channels, and the folder with net.safetensors, W8A8."""
    folder = tmp_path_factory.mktemp("denoiser")
    (folder / "pictures").mkdir()
    cv2.imwrite(str(folder / "pictures/a.png"), COLOURS[:, :, ::-1])
    words = [*written(folder, request.param), "-o", str(folder / "net.safetensors"), "--bits", "8"]
    words += ["--data", str(folder / "pictures"), "--gt", str(folder / "pictures")]
    assert cli.main(["quantize", *words]) == 0
    return request.param, folder


def in_float(channels: int, picture: np.ndarray) -> np.ndarray:
    """What the float network gives of an RGB picture, in three channels; of a gray one's luma."""
    x = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    if channels == 1:
        x = (x * torch.tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
    with torch.inference_mode():
        y = denoiser(channels)(x).expand(-1, 3, -1, -1)
    return 255 * y[0].clamp(0, 1).permute(1, 2, 0).numpy()


def test_layers_are_merged_and_have_bits_by_role(packed) -> None:
    channels, folder = packed
    layers = packing.load(folder / "net.safetensors").layers
    assert {name: (layer.bits_w, layer.bits_a, layer.groups) for name, layer in layers.items()} == {
        **({"to_gray": (32, 32, 1)} if channels == 1 else {}),
        "first": (8, 16, 1) if channels == 1 else (32, 32, 1),
        "body.0.depthwise": (8, 8, 8),
        "body.0.mix": (8, 8, 1),
        "body.1.depthwise": (8, 8, 8),
        "body.1.mix": (8, 8, 1),
        "last": (8, 16, 1),
    }


@pytest.mark.parametrize("picture", [np.repeat(GRAY[..., None], 3, 2), COLOURS], ids=["gray", "colours"])
def test_upscaler_and_load_give_nearly_the_float_networks_pictures(packed, picture) -> None:
    channels, folder = packed
    wanted = in_float(channels, picture)
    found = Upscaler(folder / "net.safetensors")(picture)
    assert np.abs(wanted - picture).mean() > 3
    assert np.abs(found - wanted).mean() < 1
    module = quantsr.load(folder / "net.safetensors")
    with torch.inference_mode():
        y = module(torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255)
    by_module = np.rint(255 * y[0].clamp(0, 1).permute(1, 2, 0).numpy())
    assert np.abs(by_module - found).max() <= 1
    if channels == 1:
        assert (found == found[..., :1]).all()


def test_gray_pictures_stay_gray_files(packed, tmp_path) -> None:
    _, folder = packed
    cv2.imwrite(str(tmp_path / "gray.png"), GRAY)
    words = [
        str(tmp_path / "gray.png"),
        "-o",
        str(tmp_path / "out"),
        "--model",
        str(folder / "net.safetensors"),
    ]
    assert cli.main(["upscale", *words]) == 0
    (file,) = (tmp_path / "out").iterdir()
    found = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
    assert found.shape == GRAY.shape
    assert np.abs(found - in_float(packed[0], np.repeat(GRAY[..., None], 3, 2)).mean(2)).mean() < 1


def test_fewer_bits_leave_depthwise_convolutions_at_8(tmp_path) -> None:
    from quantsr.deploy.post_training import Bits, LayerBits, choose_bits

    net = prepare(denoiser(3))
    found = choose_bits(net, Bits(4, 4), [LayerBits("body.1.depthwise", Bits(3, 5))])
    assert {name: str(bits) for name, bits in found.items()} == {
        "body.0.depthwise": "W8A8",
        "body.0.mix": "W4A4",
        "body.1.depthwise": "W3A5",
        "body.1.mix": "W4A4",
    }


def test_four_channels_are_refused_in_one_line(tmp_path, capsys) -> None:
    words = written(tmp_path, 4)
    assert cli.main(["quantize", *words, "-o", str(tmp_path / "net.safetensors")]) == 2
    assert "network_g.num_in_ch: must be 1 or 3, got 4" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"network: reads 4 channels; only networks of gray \(1\) or RGB"):
        prepare(denoiser(4))


def test_a_training_with_depths_starts_from_the_merged_network(tmp_path) -> None:
    torch.save({"params": denoiser(3).state_dict()}, tmp_path / "float.pth")
    arguments: dict[str, Any] = {
        "network": {"type": "SmallDenoiser", "num_in_ch": 3, "num_out_ch": 3},
        "rules": {"body.*.mix": "W8A8"},
        "depths": [2, 1],
    }
    net = build.build_network("Quantized", arguments)
    state = torch.load(tmp_path / "float.pth")["params"]
    net.load_float(build._as_prepared(net, state, "float.pth"))
    merged = prepare(denoiser(3)).state_dict()
    assert not any("parametrizations" in name for name in merged)
    own = net.state_dict()
    assert all(torch.equal(own[name], values) for name, values in merged.items())
