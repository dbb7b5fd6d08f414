"""How fast a network runs on this machine, from uint8 array to uint8 array."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from quantsr import timing
from quantsr.deploy.packed import packing
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.upscale.upscaler import Upscaler
from quantsr.trained_files.names import find_packed


def measure(
    model: PackedModel,
    engine: str,
    size: tuple[int, int],
    *,
    depth: int | None = None,
    threads: int | None = None,
    runs: int = 20,
) -> dict[str, Any]:
    """Time `runs` upscalings of a `size` (height, width) picture at `depth`, or at every depth,
    interleaved. Times in ms."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    depths = model.header.depths if depth is None else (model.depth_or_default(depth),)
    upscalers = {str(d): Upscaler(model, engine, d, threads=threads) for d in depths}
    contenders = {name: (lambda u=u: u(image)) for name, u in upscalers.items()}
    load = timing.load_per_core()
    results = timing.interleaved(contenders, runs)
    return {
        "machine": timing.machine(),
        "load_per_core_before": round(load, 2),
        "engine": next(iter(upscalers.values())).engine,
        "threads": threads,
        "size": list(size),
        "scale": model.header.scale,
        "depths": [
            {
                "depth": int(result.name),
                "median_ms": round(result.median, 3),
                "spread_ms": round(result.spread, 3),
                "fastest_ms": round(result.fastest, 3),
                "runs": runs,
            }
            for result in results
        ],
    }


STAND_INS = {
    "random": "quantsr.deploy.stand_ins.convolutional",
    "random_t": "quantsr.deploy.stand_ins.transformer",
}
"""Names that stand for a network with random weights, and the modules that make it."""


def load_packed(name: str) -> PackedModel:
    """A packed network by name or file, or one of STAND_INS."""
    if name in STAND_INS:
        model: PackedModel = import_module(STAND_INS[name]).random_model()
        return model
    return packing.load(find_packed(name))
