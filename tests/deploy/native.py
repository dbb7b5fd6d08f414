"""What the tests of the native engine share."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from quantsr.deploy.engines import select
from quantsr.deploy.native import library, structures
from quantsr.deploy.native.engine import NativeEngine
from quantsr.deploy.packed.model import PackedModel
from quantsr.errors import InputError

HERE = library.best_isa()
ISAS = library.isas()
needs_kernels = pytest.mark.skipif(
    HERE is None, reason="the kernels were not compiled: there was no C compiler"
)


def some_of(every: int, *axes: Iterable[Any]) -> list[Any]:
    """All combinations of the values: each `every`-th one a unit test, the others marked
    `integration`. The unit tests have every value of every axis."""
    combinations = list(itertools.product(*axes))
    for values in zip(*combinations, strict=True):
        assert set(map(repr, values)) == set(map(repr, values[::every])), "choose another step"
    return [
        pytest.param(*values, marks=[pytest.mark.integration] if i % every else [])
        for i, values in enumerate(combinations)
    ]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 (H, W, 3): smooth, touching both ends of the range."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 9.0
    waves = np.stack([np.sin(x + k) * np.cos(y - k) for k in range(3)], 2)
    return np.clip(127 + 140 * waves + rng.normal(0, 6, waves.shape), 0, 255).astype(np.uint8)


def assert_within_memory(engine: NativeEngine, isa: str, size: tuple[int, int]) -> None:
    """The kernels, run by themselves on a picture of that size, write nothing beside their memory
    and their result."""
    kernels = library.load()
    assert kernels is not None
    network = engine._program.for_size(*size)
    guard = 4096
    image = picture(*size)
    out = np.full(guard + image.size * network.factor**2 + guard, 77, np.uint8)
    data = structures.PictureBuffers(image.ctypes.data, out.ctypes.data + guard, *size, 0, 2)
    needed = kernels.quantsr_memory(network, data)
    memory = np.full(64 + guard + needed + guard, 77, np.uint8)
    address = -(-(memory.ctypes.data + guard) // 64) * 64
    start = address - memory.ctypes.data
    assert kernels.quantsr_run(network, data, library.ISAS[isa], ctypes.c_void_p(address)) == 0
    for around in (memory[:start], memory[start + needed :], out[:guard], out[-guard:]):
        assert (around == 77).all()
    assert (out[guard:-guard] != 77).any()


def assert_left_to_others(model: PackedModel, why: str) -> None:
    """The native engine says why it cannot run the network, and `auto` takes OpenVINO."""
    with pytest.raises(
        InputError, match=rf"engine native: cannot run this network, .*{why}.*--engine openvino"
    ):
        select.create("native", model)
    pytest.importorskip("openvino")
    assert select.create("auto", model).name == "openvino"
