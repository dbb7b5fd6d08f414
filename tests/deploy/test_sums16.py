"""Sums of products of bytes in 16 bits: exact for every input, in as few groups as that allows."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from quantsr.deploy.native import structures, sums16
from quantsr.deploy.native.arrays import G2, G4, transformed
from tests.reference import sums16 as reference

CASES = [
    (4, (0, 15), structures.LARGE_TILE),
    (4, (-8, 7), structures.LARGE_TILE),
    (4, (0, 63), structures.TILE),
]


def weight_of(bits: int, seed: int, inputs: int = 32, outputs: int = 4) -> NDArray[np.int64]:
    limits = -(2 ** (bits - 1)), 2 ** (bits - 1)
    return np.random.default_rng(seed).integers(*limits, (outputs, inputs, 3, 3))


def worst_inputs(part: sums16.Part, output: int) -> list[NDArray[np.int64]]:
    """Values (I,) that make the sums of an output largest and smallest, and random ones."""
    low, high = part.values
    weight = part.weight[:, output]
    random = np.random.default_rng(output).integers(low, high + 1, len(weight))
    return [np.where(weight > 0, high, low), np.where(weight > 0, low, high), random]


def stored(part: sums16.Part, values: NDArray[np.int64]) -> NDArray[np.uint8]:
    found = values + part.offset
    assert found.min() >= 0
    assert found.max() <= 255
    return found.astype(np.uint8)


@pytest.mark.parametrize(("bits", "codes", "tile"), CASES)
def test_every_sum_is_exact(bits: int, codes: tuple[int, int], tile: int) -> None:
    """With the inputs that make it largest or smallest, among them."""
    parts = sums16.tile_parts(weight_of(bits, 0), codes, tile)
    assert sums16.fit(parts)
    for part in parts:
        steps = sums16.steps_together(part)
        memory = sums16.laid_out([part], [steps])
        outputs = part.weight.shape[1]
        for values in (values for output in range(outputs) for values in worst_inputs(part, output)):
            found = reference.sums(stored(part, values), memory, outputs, steps, part.factor)
            assert found == list(part.factor * (values @ part.weight))


@pytest.mark.parametrize(("bits", "codes", "tile"), CASES)
def test_one_group_less_would_not_be(bits: int, codes: tuple[int, int], tile: int) -> None:
    several = 0
    for part in sums16.tile_parts(weight_of(bits, 1), codes, tile):
        steps, all_steps = sums16.steps_together(part), len(part.weight) // sums16.STEP
        groups = -(-all_steps // steps)
        if groups == 1:
            continue
        several += 1
        longer = -(-all_steps // (groups - 1))
        memory = sums16.laid_out([part], [longer])
        outputs = part.weight.shape[1]
        wrong = [
            reference.sums(stored(part, values), memory, outputs, longer, part.factor)
            != list(part.factor * (values @ part.weight))
            for output in range(outputs)
            for values in worst_inputs(part, output)
        ]
        assert any(wrong)
    assert several


@pytest.mark.parametrize(("bits", "codes", "tile"), CASES)
def test_parts_are_the_transform_without_its_common_factors(
    bits: int, codes: tuple[int, int], tile: int
) -> None:
    """Doubled inputs of F(4x4, 3x3) are stored without their factor."""
    weight = weight_of(bits, 2)
    large = tile == structures.LARGE_TILE
    side = 7 if large else 4
    whole = transformed(weight, G4 if large else G2)
    for position, part in enumerate(sums16.tile_parts(weight, codes, tile)):
        doubled = 2 ** [position // side, position % side].count(5) if large else 1
        np.testing.assert_array_equal(part.weight * part.factor, whole[position] * doubled)


def test_pairs_that_saturate_do_not_fit() -> None:
    weight = np.zeros((1, 8, 3, 3), np.int64)
    weight[0, :1] = -8  # 72 times 240 at position (1, 1)
    assert sums16.fit(sums16.tile_parts(weight, (0, 15), structures.LARGE_TILE))
    weight[0, 5:6] = -8  # two of them exceed 2^15, wherever they lie
    assert not sums16.fit(sums16.tile_parts(weight, (0, 15), structures.LARGE_TILE))
    assert sums16.fit(sums16.tile_parts(weight, (0, 15), structures.TILE))
    assert not sums16.fit(sums16.tile_parts(weight, (0, 255), structures.TILE))  # inputs beyond bytes


def test_rows_of_a_kernel_have_one_length_of_groups() -> None:
    rows = list(np.random.default_rng(3).integers(-60, 61, (3, 48, 4)))
    parts = sums16.row_parts(rows, (-100, 100))
    steps = min(sums16.steps_together(part) for part in parts)
    assert 1 < steps < 12
    memory = sums16.laid_out(parts, [steps] * 3)
    for values in worst_inputs(parts[0], 0):
        found = np.zeros(4, np.int64)
        for part, piece in zip(parts, np.split(memory, 3), strict=True):
            found += reference.sums(stored(part, values), piece, 4, steps, 1)
        np.testing.assert_array_equal(found, sum(values @ part.weight for part in parts))
