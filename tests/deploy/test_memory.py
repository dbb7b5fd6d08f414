"""What programs take to run: memory that does not follow from the size of their file, and thousands
of operations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantsr.deploy import costs, memory, operations
from quantsr.deploy.engines.reference import run
from quantsr.deploy.packed.header import check_structure, parts_of
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.passes.fold import fold
from quantsr.deploy.passes.tail import linear_tail
from tests.deploy.programs import Written, noise, refused


def doubled(times: int, *factors: int) -> PackedModel:
    """The enlarged picture beside itself, again and again."""
    net = Written()
    x = net.x
    for factor in factors:
        x = net.add("upsample_nearest", x, factor=factor)
    for _ in range(times):
        x = net.add("concat", x, x)
    return net.finish(net.add("slice", x, start=0, stop=3), scale=int(np.prod(factors)))


def kept_to_the_end(count: int) -> PackedModel:
    """Many values that are all read at the end."""
    net = Written()
    values = [
        net.add("scale", net.add("upsample_nearest", net.x, factor=8), factor=0.5) for _ in range(count)
    ]
    x = values.pop()
    while values:
        x = net.add("add", x, values.pop())
    return net.finish(x, scale=8)


def large_windows(count: int) -> PackedModel:
    """Attention in windows of 64 pixels, with 4 heads, of one table, so many times."""
    net = Written(64)
    x = net.conv(net.x, "first", 4, 3)
    for _ in range(count):
        x = net.attention(net.conv(x, "qkv", 12, 4, 0), "attn", 4, 64)
    return net.finish(net.conv(x, "last", 3, 4))


@pytest.mark.parametrize("make", [lambda: doubled(12, 16, 4), lambda: kept_to_the_end(800)])
def test_values_beyond_all_memory_are_refused(make: Callable[[], PackedModel], tmp_path: Path) -> None:
    refused(make(), tmp_path, "numbers at once for each pixel")


def test_tables_beyond_all_memory_are_refused(tmp_path: Path) -> None:
    refused(large_windows(3), tmp_path, "its windows have 201326592 pairs of positions")
    check_structure(large_windows(2))


def test_a_large_layer_used_again_and_again_is_refused(tmp_path: Path) -> None:
    def net(uses: int) -> PackedModel:
        net = Written()
        x = net.conv(net.x, "first", 256, 3)
        for _ in range(uses):
            x = net.conv(x, "shared", 256, 256, 5)
        return net.finish(net.conv(x, "last", 3, 256))

    refused(net(164), tmp_path, "uses 268711424 weights")
    check_structure(net(163))


def test_the_peak_counts_values_until_they_are_last_read() -> None:
    net = Written()
    x = net.conv(net.x, "a", 8, 3)  # beside the picture, 3, and as normalized, 3
    y = net.add("upsample_nearest", x, factor=2)  # 32 beside 8
    z = net.add("mean", net.conv(y, "b", 4, 8))  # 16 beside 8 and 32
    model = net.finish(net.conv(net.add("multiply", x, net.conv(z, "c", 8, 4)), "last", 3, 8))
    shapes = operations.shapes_of(model.program, parts_of(model))
    assert memory.peak(model.program, shapes) == 8 + 32 + 16


def test_tiles_are_smaller_where_a_pixel_takes_more() -> None:
    usual = costs.reach(doubled(0, 8), 1)
    wide = costs.reach(doubled(6, 8), 1)  # of 96 and of 192 channels at x8
    assert usual.max_area == costs.MAX_TILE_AREA
    assert wide.max_area == costs.MAX_TILE_AREA * memory.USUAL_PEAK // (64 * (96 + 192))


def test_a_tail_that_enlarges_beyond_use_is_not_composed() -> None:
    net = Written()
    x = net.conv(net.x, "first", 4, 3)
    for i in range(6):
        x = net.add("pixel_shuffle", net.conv(x, f"up.{i}", 16, 4), factor=2)
    program = fold(net.finish(net.conv(x, "last", 3, 4), scale=64))
    assert linear_tail(program) is None


@pytest.mark.parametrize("kind", ["add", "linear"])
def test_thousands_of_operations_in_a_row_run(kind: str) -> None:
    net = Written()
    x = base = net.add("gelu", net.conv(net.x, "first", 8, 3))
    if kind == "linear":
        x = net.norm(x, "norm", 8)
    for _ in range(3000):
        x = net.add("add", x, base) if kind == "add" else net.conv(x, "linear", 8, 8, 0)
    x = net.add("scale", x, factor=0.001)
    model = net.finish(net.conv(x, "last", 3, 8))
    check_structure(model)
    run(model, noise())
