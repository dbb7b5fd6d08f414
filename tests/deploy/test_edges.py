"""Codes that do not depend on how float32 rounds, found by trying every sum."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from quantsr.deploy.folded import FoldedConv
from quantsr.deploy.passes.edges import clear_of_edges


def conv(multiplier: float, bias: float) -> FoldedConv:
    return FoldedConv(
        name="conv",
        weight=np.full((1, 16, 1, 1), 7, np.int8),
        multiplier=np.float32([multiplier]),
        bias=np.float32([bias]),
        codes_in=(0, 15),
        codes_out=(0, 15),
    )


def codes_depend_on_rounding(layer: FoldedConv) -> bool:
    """Whether one of the sums has other codes where the product is not rounded before the sum, the
    multiplier is a rounding larger or smaller, or halves go up."""
    sums = np.arange(-layer.sum_bound, layer.sum_bound + 1).astype(np.float64)
    found = []
    for multiplier in (
        layer.multiplier,
        np.nextafter(layer.multiplier, 0),
        np.nextafter(layer.multiplier, 9),
    ):
        fused = (sums * float(multiplier[0]) + float(layer.bias[0])).astype(np.float32)
        product = (sums * float(multiplier[0])).astype(np.float32)
        for y in (fused, product + layer.bias):
            found += [np.rint(y), np.floor(y + np.float32(0.5)), np.ceil(y - np.float32(0.5))]
    return len({tuple(np.clip(codes, *layer.codes_out)) for codes in found}) > 1


def test_layers_said_to_be_clear_have_the_same_codes_in_every_rounding():
    rng = np.random.default_rng(0)
    clear = 0
    for _ in range(200):
        layer = conv(rng.uniform(0.001, 0.05), rng.uniform(-4, 4))
        if clear_of_edges(layer):
            clear += 1
            assert not codes_depend_on_rounding(layer)
    assert clear >= 150


def test_sums_on_an_edge_are_found():
    layer = conv(0.25, 0.0)  # 2 is the code 0.5
    assert codes_depend_on_rounding(layer)
    assert not clear_of_edges(layer)
    assert clear_of_edges(conv(0.25, 0.1))
    assert not clear_of_edges(replace(layer, multiplier=np.float32([-0.25]), bias=np.float32([0.1])))
