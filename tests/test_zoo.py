"""The networks that come with quantsr: they load by name, have a card, and are as good as it says."""

import re

import numpy as np
import pytest

import quantsr
from quantsr.basicsr_compat import calculate_psnr
from quantsr.data.images import read_rgb
from quantsr.data.resize import imresize_uint8
from quantsr.deploy.upscale_cli import DEFAULT_MODEL
from quantsr.deploy.upscaler import ZOO

NAMES = sorted(file.stem for file in ZOO.glob("*.safetensors"))


def test_the_default_network_is_there():
    assert DEFAULT_MODEL in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_is_small_and_has_a_card_with_its_size(name):
    size = (ZOO / f"{name}.safetensors").stat().st_size
    assert size < 1_000_000
    assert f"{size:,} bytes" in (ZOO / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_each_loads_by_name_as_module_and_as_upscaler(name):
    picture = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    upscaler = quantsr.Upscaler(name)
    assert upscaler(picture).shape == (9 * upscaler.scale, 11 * upscaler.scale, 3)
    net = quantsr.load(name)
    assert tuple(net.depths) == upscaler.depths


def _psnr(upscale, data_root, scale):
    values = []
    for file in sorted((data_root / "benchmark" / "Set5" / "HR").glob("*.png")):
        low = read_rgb(
            data_root / "benchmark" / "Set5" / "LR_bicubic" / f"X{scale}" / f"{file.stem}x{scale}.png"
        )
        result = upscale(low)
        truth = read_rgb(file)[: result.shape[0], : result.shape[1]]
        values.append(calculate_psnr(result[..., ::-1], truth[..., ::-1], scale, test_y_channel=True))
    return float(np.mean(values))


@pytest.mark.integration
@pytest.mark.parametrize("name", NAMES)
def test_each_is_as_good_as_its_card_says(name, data_root):
    card = (ZOO / f"{name}.md").read_text(encoding="utf-8")
    stated = float(re.search(r"([\d.]+) by OpenVINO", card).group(1))
    upscaler = quantsr.Upscaler(name, engine="openvino")
    measured = _psnr(upscaler, data_root, upscaler.scale)
    assert measured == pytest.approx(stated, abs=0.005)
    assert measured > _psnr(lambda low: imresize_uint8(low, upscaler.scale), data_root, upscaler.scale) + 2
