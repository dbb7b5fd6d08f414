"""The integer reference's Swin layer against its slow twin, `tests.reference.swin_integer`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch

from quantsr.deploy import windows
from quantsr.deploy.engines.reference import ReferenceOps
from quantsr.deploy.folded import Attention, FoldedConv, FoldedLinear, Norm, Reorder, Requantize, Step, ToMap
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.passes.fold import fold
from quantsr.deploy.passes.layout import lay_out
from tests.deploy.codes import with_zero_points
from tests.deploy.quantsr_t import small_model
from tests.reference import swin_integer

GRID = (8, 8)  # windows of four kinds: in the last row or not, in the last column or not
ROOM = 1e-5
"""Codes. Nearer to a tie than this, float32 may give the neighbour: what it rounds of a value of up
to 16 codes is some 2^-23 * 16 = 2e-6."""
ROUNDED = 2.0**-20
"""Of the largest value: the float parts are about eight float32 operations from the codes, each
rounded to 2^-24 of its result."""


class Recording(ReferenceOps):
    """Keeps the codes of a layer by the name of what reads them, their last dimension as the
    twin's."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__(grid)
        self.codes: dict[str, np.ndarray] = {}

    def _keep(self, name: str, y: torch.Tensor, limits: tuple[int, int] | None) -> torch.Tensor:
        if limits is not None:
            self.codes[name.removesuffix(".input")] = y.double().numpy()
        return y

    def norm(self, op: Norm, x: torch.Tensor) -> torch.Tensor:
        return self._keep(op.name, super().norm(op, x), op.limits)

    def linear(self, op: FoldedLinear, x: torch.Tensor) -> torch.Tensor:
        head, _, part = op.name.rpartition(".qkv.")
        role = {"q": "scores.left", "k": "scores.right", "v": "mixture.right"}.get(part)
        return self._keep(f"{head}.{role}", super().linear(op, x), op.codes_out)

    def requantize(self, op: Requantize, x: torch.Tensor) -> torch.Tensor:
        return self._keep(op.name, super().requantize(op, x), op.limits)

    def requantize_last(self, op: Requantize, x: torch.Tensor) -> torch.Tensor:
        return self._keep(op.name, super().requantize_last(op, x), op.limits)


def run(ops: ReferenceOps, steps: tuple[Step, ...], values: dict[int, torch.Tensor]) -> torch.Tensor:
    """The result of the last step."""
    for step in steps:
        values[step.output] = ops(step.op, *(values[value] for value in step.inputs))
    return values[steps[-1].output]


def steps_of_layer(model: PackedModel, index: int) -> tuple[Step, ...]:
    """Those of Swin layer `index` of the first RSTB, tokens in the order of its windows."""
    steps = lay_out(fold(model)).steps
    names = [step.op.name if isinstance(step.op, Norm | FoldedConv) else "" for step in steps]
    first = names.index(f"layers.0.blocks.{index}.attn.qkv.input")
    last = names.index(f"layers.0.blocks.{index}.mlp.fc2")
    behind = (Norm, Reorder, ToMap, Requantize)
    end = next(i for i in range(last, len(steps)) if isinstance(steps[i].op, behind))
    return steps[first:end]


def by_reference(model: PackedModel, index: int, x: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Layer `index` of the first RSTB on (H, W, C): the map behind it, and its codes."""
    window, shift = model.header.arch["window_size"], 2 * index
    ops, steps = Recording(GRID), steps_of_layer(model, index)
    there, back = (
        torch.from_numpy(windows.order_index(GRID, window, *orders))
        for orders in ((None, shift), (shift, None))
    )
    tokens = torch.from_numpy(x).view(1, -1, x.shape[-1])  # (1, L, C)
    with torch.inference_mode():
        y = run(ops, steps, {steps[0].inputs[0]: tokens[:, there]})[:, back]
    return y.numpy().reshape(x.shape), ops.codes


def by_twin(model: PackedModel, index: int) -> tuple[np.ndarray, np.ndarray, dict[str, list[np.ndarray]]]:
    """The same by the twin, and before it the map: a random one of which no code is float32's to
    decide."""
    shortcut = model.header.shortcuts[index] if model.header.arch["dqa_unit"] == "layer" else None
    for seed in range(20):
        x = np.random.default_rng(seed).standard_normal((*GRID, 12)).astype(np.float32)
        y, quantized = swin_integer.swin_layer(
            model, f"layers.0.blocks.{index}", x.astype(np.float64), shift=2 * index, shortcut=shortcut
        )
        if quantized.room > ROOM:
            return x, y, quantized.codes
    raise AssertionError("every map has a value next to a tie")


@pytest.mark.parametrize("index", [0, 1], ids=["unshifted", "shifted"])
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("attention", [False, True], ids=["float attention", "quantized attention"])
@pytest.mark.parametrize("unit", ["rstb", "layer"])
def test_codes_are_the_definitions_exactly(index: int, bits: int, attention: bool, unit: str) -> None:
    """With two's complement in RSTBs, and with zero points where a unit of depth is a layer."""
    model = small_model(num_block=1, bits_w=bits, bits_a=bits, quantize_attention=attention, dqa_unit=unit)
    model = with_zero_points(model) if unit == "layer" else model
    x, expected, theirs = by_twin(model, index)
    got, ours = by_reference(model, index, x)
    assert ours.keys() == theirs.keys()
    assert len(ours) == (8 if attention else 4)
    for name, codes in theirs.items():
        assert len(np.unique(codes)) >= 2 ** (bits - 1), name
        np.testing.assert_array_equal(ours[name].reshape(-1, len(codes[0])), codes, err_msg=name)
    assert np.abs(got - expected).max() <= ROUNDED * np.abs(expected).max()


def test_sums_of_scores_are_bounded_by_the_size_of_a_head() -> None:
    """Those of scores are over the d channels of a head, those of the mixture over the N positions
    of a window."""

    class Bounds(ReferenceOps):
        bounds: ClassVar[list[int | None]] = []

        def product(self, a: torch.Tensor, b: torch.Tensor, bound: int | None) -> torch.Tensor:
            self.bounds.append(bound)
            return super().product(a, b, bound)

    limits = (0, 255)
    step = Requantize("p", np.array(255, np.float32), np.zeros(4, np.float32), limits)
    bias, mix = np.zeros((1, 4, 4), np.float32), np.float32(1)
    attention = Attention("a", 1, 2, 0, np.float32(1), bias, (limits,) * 3, step, mix)
    codes = torch.full((1, 4, 1024), 255.0)
    Bounds((2, 2)).attention(attention, codes, codes, codes)
    assert Bounds.bounds == [2**16 * 1024, 2**16 * 4]
