"""Attention in rectangles and between channels: indices of windows, programs that are refused,
costs, several pictures at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantsr.deploy import costs, memory, rectangles
from quantsr.deploy.engines import select
from quantsr.deploy.engines.reference import run
from quantsr.deploy.packed.header import check_structure
from quantsr.deploy.packed.model import PackedModel
from quantsr.errors import InputError
from tests.deploy.programs import Written, loaded, refused

CHANNELS, HEADS = 8, 2


def attending(*, positions: int = 21, temperatures: int = HEADS, **how: Any) -> PackedModel:
    """Both kinds one behind the other, of parts of a linear layer each; windows have 4 x 2
    pixels."""
    net = Written()
    x = net.conv(net.x, "first", CHANNELS, 3)
    attributes = {"heads": HEADS, "window": [4, 2], "shift": [2, 1], "multiple": 4, **how}
    net.tensor("a.relative_position_bias_table", net.rng.standard_normal((positions, HEADS)))
    net.tensor("b.temperature", net.rng.standard_normal(temperatures))
    x = net.build.add("rectangle_attention", *parts(net, x, "qkv1"), name="a", **attributes)
    x = net.build.add("channel_attention", *parts(net, x, "qkv2"), name="b", heads=HEADS)
    return net.finish(net.conv(net.add("scale", x, factor=20.0), "last", 3, CHANNELS))


def parts(net: Written, x: int, name: str) -> list[int]:
    """q, k and v."""
    x = net.conv(x, name, 3 * CHANNELS, CHANNELS, 0, gain=0.05)
    ends = range(0, 3 * CHANNELS, CHANNELS)
    return [net.add("slice", x, start=start, stop=start + CHANNELS) for start in ends]


WINDOWS = [
    ((5, 7), (2, 4), (0, 0), 4),
    ((8, 4), (4, 2), (2, 1), 4),
    ((3, 9), (8, 2), (4, 1), 8),
    ((1, 1), (1, 3), (0, 2), 6),
]


@pytest.mark.parametrize("where", WINDOWS)
def test_windows_hold_every_pixel_once(where) -> None:
    places, tokens = rectangles.places(*where), rectangles.tokens(*where)
    (height, width), window, shift, multiple = where
    high, wide = rectangles.continued((height, width), multiple)
    found = []
    for top in range(0, high, window[0]):
        for left in range(0, wide, window[1]):
            at = [((top + i + shift[0]) % high, (left + j + shift[1]) % wide) for i, j in np.ndindex(window)]
            found.append([y * width + x if y < height and x < width else height * width for y, x in at])
    np.testing.assert_array_equal(places, found)
    np.testing.assert_array_equal(places.ravel()[tokens], np.arange(height * width))


def test_only_pixels_that_were_neighbours_before_the_shift_see_each_other() -> None:
    mask = rectangles.mask((4, 4), (2, 4), (1, 2), 4)
    assert mask.shape == (2, 1, 8, 8)
    # of the upper windows the columns 2, 3, and 0, 1 that come from the other end
    apart = np.array([[0, 0, 1, 1] * 2])
    np.testing.assert_array_equal(mask[0, 0] < 0, apart != apart.T)
    below = apart + 2 * np.array([[0] * 4 + [1] * 4])  # the second row of the lower ones likewise
    np.testing.assert_array_equal(mask[1, 0] < 0, below != below.T)


def test_relative_positions_are_rows_of_the_table() -> None:
    found = rectangles.relative_positions((2, 3))
    assert found.shape == (6, 6)
    assert (found[0, 5], found[5, 0], found[4, 4]) == (0, 14, 7)
    assert found[4, 0] - found[1, 0] == 5  # one row below


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize("size", [(5, 7), (8, 4), (1, 1)])
def test_several_pictures_of_any_size_are_run_at_once(
    engine: str, size: tuple[int, int], tmp_path: Path
) -> None:
    pytest.importorskip(engine)
    model = loaded(attending(), tmp_path)
    images = np.random.default_rng(1).integers(0, 256, (3, *size, 3), np.uint8)
    wanted = np.stack([run(model, image) for image in images])
    found = select.create(engine, model, threads=1).run(images).astype(int)
    assert np.abs(found - wanted).max() <= 1
    assert (found == wanted).mean() > 0.99


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"window": [4]}, "its attribute window is out of range"),
        ({"window": 4}, "its attribute window is out of range"),
        ({"window": [4, 65]}, "its attribute window is out of range"),
        ({"shift": [2, -1]}, "its attribute shift is out of range"),
        ({"multiple": 65}, "its attribute multiple is out of range"),
        ({"shift": [4, 1]}, "windows of 4 x 2, shifts by 4 and 1 and multiples of 4 do not fit"),
        ({"multiple": 6}, "and multiples of 6 do not fit"),
        ({"heads": 3}, "are no q, k and v of 3 heads"),
        ({"cosine": 1}, "there is no 'a.temperature'"),
        ({"cosine": 2}, "its attribute cosine is out of range"),
        ({"positions": 22}, "relative_position_bias_table has shape"),
        ({"pairs": 1}, "there is no 'a.pair_bias_table'"),
        ({"pairs": 0}, "its attribute pairs is out of range"),
        ({"beyond": 1}, "there is no 'a.beyond_k'"),
        ({"temperatures": 3}, "temperature has shape"),
    ],
)
def test_programs_of_other_windows_and_parameters_are_refused(how, says: str, tmp_path: Path) -> None:
    refused(attending(**how), tmp_path, says)


@pytest.mark.parametrize("kind", ["rectangle_attention", "channel_attention"])
def test_values_of_different_shapes_are_refused(kind: str, tmp_path: Path) -> None:
    net = Written()
    x = net.conv(net.x, "first", CHANNELS, 3)
    how: dict[str, Any] = {"heads": HEADS}
    if kind == "rectangle_attention":
        how |= {"window": [2, 2], "shift": [0, 0], "multiple": 2}
    x = net.build.add(kind, x, x, net.add("mean", x), name="a", **how)
    refused(net.finish(net.conv(x, "last", 3, CHANNELS)), tmp_path, "are no q, k and v of 2 heads")


@pytest.mark.parametrize(
    ("kind", "factor", "window", "says"),
    [
        ("max_pool", 2, 2, "sides of its maps are no parts of 1 pixels"),
        ("upsample_nearest", 2, 2, "reads maps that are larger than the picture"),
        ("pixel_unshuffle", 16, 64, "numbers at once for each pixel of the picture"),
    ],
)
def test_rectangles_of_other_maps_are_refused(
    kind: str, factor: int, window: int, says: str, tmp_path
) -> None:
    net = Written(factor if kind == "pixel_unshuffle" else 1)
    x = net.add(kind, net.conv(net.x, "first", CHANNELS, 3), factor=factor)
    how = {"heads": 1, "window": [window, window], "shift": [0, 0], "multiple": window}
    net.tensor("a.relative_position_bias_table", np.zeros(((2 * window - 1) ** 2, 1)))
    x = net.build.add("rectangle_attention", x, x, x, name="a", **how)
    if kind == "pixel_unshuffle":
        x = net.add("pixel_shuffle", x, factor=factor)
    refused(net.finish(net.conv(x, "last", 3, CHANNELS)), tmp_path, says)


def test_rectangles_of_smaller_maps_count_as_those_of_the_picture() -> None:
    net = Written(2)
    x = net.add("pixel_unshuffle", net.conv(net.x, "first", 1, 3), factor=2)
    how = {"heads": 2, "window": [4, 2], "shift": [0, 0], "multiple": 4}
    net.tensor("a.relative_position_bias_table", np.zeros((21, 2)))
    x = net.add("pixel_shuffle", net.build.add("rectangle_attention", x, x, x, name="a", **how), factor=2)
    model = net.finish(net.conv(x, "last", 3, 1))
    assert costs.reach(model, 1).grid == 8
    products = [cost.macs for cost in costs.costs(model, 1, (9, 7)) if cost.kind == "product"]
    assert products == [8 * 4 * 8 * 4] * 2  # 5 x 4 pixels, with the zeros 8 x 4


def test_pairs_of_channels_beyond_all_memory_are_refused(tmp_path: Path) -> None:
    net = Written()
    x = net.conv(net.x, "first", 1 << 10, 3)
    for _ in range(4):
        x = net.add("concat", x, x)
    net.tensor("a.temperature", np.ones(1))
    x = net.build.add("channel_attention", x, x, x, name="a", heads=1)
    x = net.add("slice", x, start=0, stop=3)
    refused(net.finish(x), tmp_path, "attends to 268435456 pairs of channels at once")


def to_all_pixels(shrink: int, heads: int = HEADS, channels: tuple[int, int, int] = (4, 4, 8)) -> PackedModel:
    """Attention to a pool of the map."""
    net = Written()
    x = net.conv(net.x, "first", CHANNELS, 3)
    small = net.add("max_pool", x, factor=shrink)
    parts = [
        net.conv(y, part, n, CHANNELS, 0)
        for part, y, n in zip("qkv", (x, small, small), channels, strict=True)
    ]
    x = net.build.add("global_attention", *parts, name="a", heads=heads)
    return net.finish(net.conv(x, "last", 3, channels[2]))


def test_attention_to_all_pixels_counts_in_memory_and_costs() -> None:
    model = to_all_pixels(16)
    check_structure(model)
    products = {cost.name: cost.macs for cost in costs.costs(model, 1, (35, 49)) if cost.kind == "product"}
    assert products == {"a.scores": 35 * 49 * 6 * 4, "a.mixture": 35 * 49 * 6 * 8}
    reach = costs.reach(model, 1)
    assert (reach.halo, reach.grid) == (costs.OVERLAP, 16)
    assert costs.reach(to_all_pixels(8, 4), 1).max_area < reach.max_area <= memory.MAX_WHOLE_AREA


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: to_all_pixels(2, 4), "holds [0-9]+ numbers at once"),
        (lambda: to_all_pixels(16, 3), "are no q, k and v of 3 heads"),
        (lambda: to_all_pixels(16, channels=(8, 4, 8)), "are no q, k and v of 2 heads"),
    ],
)
def test_attention_to_all_pixels_of_large_maps_or_of_other_values_is_refused(model, says, tmp_path) -> None:
    refused(model(), tmp_path, says)


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize("size", [(37, 50), (1, 1)])
def test_several_pictures_attend_to_their_own_pixels(engine: str, size: tuple[int, int]) -> None:
    pytest.importorskip(engine)
    model = to_all_pixels(16)
    images = np.random.default_rng(1).integers(0, 256, (2, *size, 3), np.uint8)
    wanted = np.stack([run(model, image) for image in images])
    found = select.create(engine, model, threads=1).run(images).astype(int)
    assert np.abs(found - wanted).max() <= 1
    assert (found == wanted).mean() > 0.99


def test_windows_of_rectangles_count_in_memory_and_costs() -> None:
    assert memory.keys({"window": [4, 2]}) == memory.positions({"window": [4, 2]}) == 8
    model = attending()
    check_structure(model)
    products = {cost.name: cost.macs for cost in costs.costs(model, 1, (5, 7)) if cost.kind == "product"}
    # 8 x 8 pixels with the zeros around; of channels 4 a head
    assert products["a.scores"] == products["a.mixture"] == 64 * 8 * CHANNELS
    assert products["b.scores"] == products["b.mixture"] == 35 * 4 * CHANNELS
    assert costs.has_attention(model)
    assert costs.reach(model, 1).grid == 4
    assert costs.reach(model, 1).halo == costs.OVERLAP


@pytest.mark.parametrize("engine", ["native", "ncnn"])
def test_engines_without_it_say_so_in_one_line(engine: str) -> None:
    with pytest.raises(InputError, match=r"has no (kernel for|layer that)|was not compiled") as caught:
        select.create(engine, attending(), threads=1)
    assert "\n" not in str(caught.value)
