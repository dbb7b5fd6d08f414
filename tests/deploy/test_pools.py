"""Maps that are smaller than the picture: lowering finds what they are divided by, tiles of
pictures give what whole pictures give, programs that mix sizes are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor, nn
from torch.nn import functional

from quantsr.deploy import costs
from quantsr.deploy.lower import lower
from quantsr.deploy.packed.header import described_program
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.upscale.upscaler import Upscaler
from quantsr.errors import InputError
from tests.deploy.programs import Written, refused


class Pooling(nn.Module):
    """Maps shrunk to a size and back, beside the picture."""

    def __init__(self, size, mode: str = "nearest") -> None:
        super().__init__()
        self.first, self.small = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 4, 1)
        self.last = nn.Conv2d(4, 3, 3, 1, 1)
        self.size, self.mode = size, mode

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.small(functional.adaptive_max_pool2d(x, self.size(*x.shape[2:])))
        return self.last(x + functional.interpolate(y, x.shape[2:], mode=self.mode))


@pytest.mark.parametrize("factor", [2, 3, 7, 8, 9])
def test_lowering_finds_the_factor_of_a_pool(factor):
    program = lower(Pooling(lambda h, w: (h // factor, w // factor)))
    (pool,) = (op for op in program.operations if op.kind == "max_pool")
    assert pool.attributes == {"factor": factor}
    assert [op.attributes for op in program.operations if op.kind == "resize_nearest"] == [{"factor": 1}]


@pytest.mark.parametrize(
    ("size", "says"),
    [
        (lambda h, w: (-(-h // 2), -(-w // 2)), "pools maps of 13 x 18 to 7 x 9"),
        (lambda h, w: (h // 2, w // 3), "pools maps of 13 x 18 to 6 x 6"),
        (lambda h, w: (1, 1), "pools maps of 25 x 181 to 1 x 1"),
        (lambda h, w: (min(h, w) // 6, 3), "pools maps of 41 x 11 to 1 x 3"),
    ],
)
def test_pools_to_other_sizes_are_refused(size, says):
    with pytest.raises(InputError, match=says) as caught:
        lower(Pooling(size))
    assert "\n" not in str(caught.value)


def test_other_enlargements_of_pools_are_refused():
    with pytest.raises(InputError, match="resizes maps of"):
        lower(Pooling(lambda h, w: (h // 2, w // 2), mode="bilinear"))


def pooling() -> PackedModel:
    """Maps of a half, a quarter and an eighth of the picture's size, with a convolution of each."""
    net = Written()
    start = x = net.conv(net.x, "first", 8, 3)
    for name, factor in (("half", 2), ("eighth", 8)):
        small = net.quantized(net.add("max_pool", x, factor=factor), name, 8, 8)
        if factor == 2:
            smaller = net.quantized(net.add("max_pool", small, factor=2), "quarter", 8, 8)
            x = net.add("add", x, net.add("resize_nearest", smaller, factor=1))
        x = net.add("add", x, net.add("resize_nearest", small, factor=1))
    return net.finish(net.conv(net.add("add", x, start), "last", 3, 8))


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
def test_tiles_of_pictures_of_whole_pools_give_the_whole_pictures_result(engine):
    pytest.importorskip(engine)
    model, image = pooling(), picture(136, 72)
    reach = costs.reach(model, 1)
    assert reach.grid == 8
    # the convolutions 1 + 2 + 4 + 8 + 1 pixels on each side, the pools 1 + 2 and 7
    assert reach.halo == 26
    whole = Upscaler(model, engine, threads=1)(image)
    tiled = Upscaler(model, engine, tile=32, threads=1)(image)
    np.testing.assert_array_equal(tiled, whole)
    assert whole.std() > 5


def test_tiles_of_other_pictures_differ_by_their_pools():
    model, image = pooling(), picture(133, 70)
    whole = Upscaler(model, "torch", threads=1)(image).astype(int)
    tiled = Upscaler(model, "torch", tile=32, threads=1)(image)
    assert 0 < np.abs(tiled - whole).mean() < whole.std() / 2


def test_pictures_smaller_than_a_pool_have_one_pixel_of_it():
    image = picture(3, 5)
    found = [Upscaler(pooling(), engine, threads=1)(image) for engine in ("torch", "onnxruntime")]
    np.testing.assert_array_equal(*found)


def test_listings_say_what_sides_are_divided_by():
    assert "8 x 1h/8 x 1w/8, weight 4 bits" in described_program(pooling())


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("add", "its values do not fit each other"),
        ("concat", "its values differ in size"),
        ("subtract", "differ in shape"),
    ],
)
def test_programs_that_join_maps_of_different_sizes_are_refused(kind: str, says: str, tmp_path: Path):
    net = Written()
    start = net.conv(net.x, "first", 8, 3)
    x = net.add(kind, start, net.add("max_pool", start, factor=2))
    refused(net.finish(net.conv(x, "last", 3, 16 if kind == "concat" else 8)), tmp_path, says)


@pytest.mark.parametrize(
    ("kinds", "says"),
    [
        ([("max_pool", 65)], "attribute factor is out of range"),
        ([("max_pool", 16), ("max_pool", 16)], "gives a value of 8 x 1h/256 x 1w/256"),
        ([("max_pool", 2), ("upsample_nearest", 2)], "sides of its maps are no parts of 1 pixels"),
        ([("max_pool", 2), ("pixel_shuffle", 2)], "sides of its maps are no parts of 1 pixels"),
        ([("max_pool", 2), ("upsample_bilinear", 2)], "sides of its maps are no parts of 1 pixels"),
        ([("pixel_unshuffle", 2)], "sides of its maps are no parts of 1 pixels"),
        ([("pixel_unshuffle", 17)], "attribute factor is out of range"),
        ([("mean", 0), ("pixel_unshuffle", 2)], "reads one number for each channel, not a map"),
        ([("max_pool", 2)], "3 channels are not a picture's"),
    ],
)
def test_programs_of_wrong_sizes_are_refused(kinds, says, tmp_path: Path):
    net = Written()
    x = net.conv(net.x, "first", 8, 3)
    for kind, factor in kinds:
        x = net.add(kind, x, **({"factor": factor} if factor else {}))
    refused(net.finish(net.conv(x, "last", 3, 8)), tmp_path, says)


def test_a_mean_of_a_pool_is_one_number_for_each_channel():
    net = Written()
    start = net.conv(net.x, "first", 8, 3)
    x = net.add("multiply", start, net.add("mean", net.add("max_pool", start, factor=2)))
    model = net.finish(net.conv(x, "last", 3, 8))
    assert replace(costs.reach(model, 1), max_area=0) == costs.Reach(32, 2, 0)
    image = picture(7, 9)
    found = [Upscaler(model, engine, threads=1)(image) for engine in ("torch", "onnxruntime")]
    assert np.abs(found[0].astype(int) - found[1]).max() <= 1


def unshuffling(multiple: int) -> PackedModel:
    """Convolutions of maps of a half and a sixth of the picture's size."""
    net = Written(multiple)
    start = net.conv(net.x, "first", 8, 3)
    half = net.quantized(net.add("pixel_unshuffle", start, factor=2), "half", 36, 32)
    small = net.quantized(net.add("pixel_unshuffle", half, factor=3), "sixth", 36, 324)
    x = net.add("add", half, net.add("upsample_bilinear", small, factor=3))
    return net.finish(net.conv(net.add("pixel_shuffle", x, factor=2), "last", 3, 9))


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
def test_tiles_of_unshuffled_pictures_of_any_size_give_the_whole_pictures_result(engine):
    pytest.importorskip(engine)
    model, image = unshuffling(12), picture(101, 76)
    reach = costs.reach(model, 1)
    assert reach.grid == 12
    # the convolutions 1 + 2 + 6 + 1 pixels on each side, the bilinear 6, the blocks 1 and 4
    assert reach.halo == 21
    whole = Upscaler(model, engine, threads=1)(image).astype(int)
    tiled = Upscaler(model, engine, tile=36, threads=1)(image)
    assert np.abs(tiled - whole).max() <= 1
    assert (tiled == whole).mean() > 0.999
    assert whole.std() > 5


def test_pictures_that_are_no_multiples_of_unshuffled_blocks_are_refused(tmp_path: Path):
    refused(unshuffling(4), tmp_path, "sides of its maps are no parts of 4 pixels")
