"""Networks with a program in their file, cut to one depth: the same pictures, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantsr.deploy.engines.reference import run
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.packed.restrict import restrict
from tests.deploy.conftest import small_model
from tests.deploy.programs import Written, loaded, noise


def three_units(end: Callable[[Written, list[int], list[int]], int], shared: bool = False) -> PackedModel:
    """Three units of one convolution; `end` gives the network's end from the streams behind the
    units and their branches."""
    net = Written()
    streams, branches = [net.conv(net.x, "first", 8, 3)], []
    for unit in range(3):
        name = "unit" if shared else f"unit.{unit}"
        branches.append(net.conv(streams[-1], name, 8, 8, gain=0.5))
        streams.append(net.add("shortcut", streams[-1], branches[-1], unit=unit))
    x = end(net, streams, branches)
    return net.finish(
        net.conv(x, "last", 3, 8),
        units=3,
        depths=(3, 2, 1),
        ranking=(0, 2, 1),
        shortcuts=(0.5, 0.3, -0.7),
    )


def joined(net: Written, streams: list[int], branches: list[int]) -> int:
    return net.conv(net.add("concat", streams[1], streams[-1]), "fusion", 8, 16)


def norm_read_twice() -> PackedModel:
    """A LayerNorm before the first unit that a long skip reads too."""
    net = Written()
    x = start = net.norm(net.conv(net.x, "first", 8, 3), "norm", 8, 20)
    for unit in range(2):
        x = net.add("shortcut", x, net.conv(x, f"unit.{unit}", 8, 8, gain=0.5), unit=unit)
    x = net.conv(net.add("add", x, start), "last", 3, 8)
    return net.finish(x, units=2, depths=(2, 1), ranking=(1, 0), shortcuts=(0.3, 0.5))


def layer_between_units() -> PackedModel:
    """Units that end around an inner sum, with a branch that no layer ends."""
    net = Written()
    x = net.conv(net.x, "first", 8, 3)
    for unit in range(2):
        y = net.add("add", x, net.add("gelu", net.conv(x, f"unit.{unit}", 8, 8)))
        x = net.add("around", x, y, unit=unit)
    x = net.conv(x, "last", 3, 8)
    return net.finish(x, units=2, depths=(2, 1), ranking=(1, 0), shortcuts=(0.3, 0.5))


CUTS = {
    "plain": lambda: three_units(lambda net, streams, branches: streams[-1]),
    "an inner stream is read": lambda: three_units(joined),
    "a branch is read": lambda: three_units(
        lambda net, streams, branches: net.add("add", streams[-1], branches[0])
    ),
    "a layer is shared": lambda: three_units(lambda net, streams, branches: streams[-1], shared=True),
    "a LayerNorm is read twice": norm_read_twice,
    "around": layer_between_units,
}


@pytest.mark.parametrize("name", CUTS)
def test_a_program_cut_to_a_depth_computes_the_same(name: str, tmp_path: Path) -> None:
    model = CUTS[name]()
    for depth in model.header.depths[1:]:
        cut = loaded(restrict(model, depth), tmp_path)
        assert cut.header.num_block == depth
        for inner in cut.header.depths:
            expected = run(model, noise(), inner)
            assert expected.std() > 20
            np.testing.assert_array_equal(run(cut, noise(), inner), expected)


def test_a_cut_network_has_no_layer_of_a_dropped_unit() -> None:
    cut = restrict(CUTS["plain"](), 1)
    assert list(cut.layers) == ["first", "unit.0", "last"]
    assert [op.attributes["factor"] for op in cut.program.operations if op.kind == "scale"] == [0.3, -0.7]


@pytest.mark.parametrize("written", [False, True])
def test_the_released_rule_counts_its_extra_unit_once(written: bool, tmp_path: Path) -> None:
    model = small_model(num_block=4, depths=(4, 2, 1))
    header = replace(model.header, arch={**model.header.arch, "depth_rule": "released"})
    model = replace(model, header=header, written=model.program if written else None)
    cut = loaded(restrict(model, 2), tmp_path)
    assert cut.header.depths == (3, 2)
    assert [len(cut.header.blocks_kept(depth)) for depth in (3, 2)] == [3, 2]
    difference = np.abs(run(cut, noise(), 2).astype(int) - run(model, noise(), 1))
    assert difference.max() <= (0 if written else 1)
