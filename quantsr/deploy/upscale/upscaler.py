"""`Upscaler`: arrays in, upscaled arrays out, tile by tile. Imports neither torch nor basicsr on
the openvino engine."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from quantsr import terminal
from quantsr.deploy import costs
from quantsr.deploy.engines import select
from quantsr.deploy.packed import packing
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.upscale import tiling
from quantsr.errors import InputError
from quantsr.trained_files.names import find_packed

log = logging.getLogger(__name__)

Image = NDArray[Any]
"""(H, W, 3) RGB, uint8 or uint16."""

PRECISIONS = ("f32", "bf16")

_UINT16_PER_BYTE = 257.0  # 65535 / 255


class Upscaler:
    """A packed network, called on RGB pictures.

    Examples:
        >>> upscale = Upscaler("network.safetensors", depth=8)
        >>> upscale(picture).shape  # uint8 (H, W, 3)
        (H * upscale.scale, W * upscale.scale, 3)
    """

    scale: int
    """The upscaling factor."""
    depth: int
    """Units of depth in use, such as residual blocks or groups of Swin layers."""
    depths: tuple[int, ...]
    """Depths this network offers, descending."""
    halo: int
    """Low-resolution pixels that tiles overlap by on each side. Of networks of convolutions it is
    the receptive field, so that the result does not depend on the tiles. Where a pixel of the
    result depends on the whole picture, by window attention or a mean over all pixels, it is a
    choice (docs/explanation/derivations.md has its effect); each tile then takes its own mean.
    Where maps shrink, tiles equal the whole picture if its sides are multiples of what theirs are
    divided by; of other pictures each tile has pools of its own."""

    def __init__(
        self,
        name_or_path: str | Path | PackedModel,
        engine: str = "auto",
        depth: int | None = None,
        tile: int | None = None,
        *,
        threads: int | None = None,
        self_ensemble: bool = False,
        precision: str = "f32",
    ) -> None:
        """
        Args:
            name_or_path: a packed `.safetensors` file, the name of a network that comes with
                quantsr, or a network in memory.
            engine: "auto", "native", "openvino", "onnxruntime", "ncnn" or "torch"; auto takes
                native where that is fastest, else the first installed.
            depth: one of the network's depths; default: the deepest.
            tile: side of the tiles in low-resolution pixels, without their overlap; default: as few
                as memory allows. With window attention, tiles are whole windows. The result depends
                on the tiles only with attention or means over all pixels (`halo`).
            threads: CPU threads; default: all this process may use.
            self_ensemble: average the results of the eight flips and rotations (eight times the
                work).
            precision: "f32", or "bf16" for what OpenVINO does not run as integers: faster for
                networks with attention on processors that compute in bf16, and no longer exact
                (docs/explanation/derivations.md).

        Raises:
            InputError: no such file or name, not a packed network, an unknown engine or depth,
                `tile` or `threads` below 1, a package missing, or bf16 on an engine other than
                openvino.
        """
        self._model = (
            name_or_path if isinstance(name_or_path, PackedModel) else packing.load(find_packed(name_or_path))
        )
        header = self._model.header
        if tile is not None and tile < 1:
            raise InputError(f"tile: must be at least 1 pixel, got {tile}")
        if precision not in PRECISIONS:
            raise InputError(f"precision: must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        if precision != "f32" and engine not in ("auto", "openvino"):
            raise InputError(f"precision: engine {engine} has f32 only; use engine openvino for {precision}")
        self._options = {} if precision == "f32" else {"precision": precision}
        engine = "openvino" if self._options else engine
        self._threads = threads
        self._engine_name = engine
        self._tile = tile
        self._self_ensemble = self_ensemble
        self.scale = header.scale
        self.depths = header.depths
        self._chosen: dict[tuple[tuple[int, ...], float], tuple[int, float]] = {}
        self._use(self._model.depth_or_default(depth))

    def _use(self, depth: int) -> None:
        self.depth = depth
        self._reach = costs.reach(self._model, depth)
        self.halo = self._reach.halo
        self._engine = select.create(
            self._engine_name, self._model, depth, threads=self._threads, **self._options
        )

    @property
    def engine(self) -> str:
        """The engine in use, e.g. "openvino" or "torch:cuda"."""
        return self._engine.name

    def __call__(self, image: Image, out: Image | None = None, progress: bool = False) -> Image:
        """Upscale an RGB picture (H, W, 3) to (H*s, W*s, 3) of the same type, uint8 or uint16.

        uint16 pictures keep their precision on engines that take float pictures (native, openvino,
        ncnn, torch); on onnxruntime they pass through 8 bits.

        Args:
            out: where to write, e.g. a `numpy.memmap`; made where None.
            progress: show a bar over the tiles on a terminal.

        Raises:
            ValueError: another shape or type of `image` or `out`.
        """
        _check(image)
        height, width, _ = image.shape
        shape = (height * self.scale, width * self.scale, 3)
        if out is None:
            out = np.empty(shape, image.dtype)
        elif out.shape != shape or out.dtype != image.dtype:
            raise ValueError(f"out must be {image.dtype} {shape}, got {out.dtype} {out.shape}")
        for top, band in self.bands(image, progress=progress):
            out[top : top + len(band)] = band
        return out

    def bands(self, image: Image, progress: bool = False) -> Iterator[tuple[int, Image]]:
        """The upscaled picture from top to bottom as (first row, (rows, W*s, 3)), for pictures too
        large to hold. See `__call__`."""
        _check(image)
        width = image.shape[1]
        layout = self._layout(image)
        results = self._results(image, layout)
        if progress and layout.count > 1:
            hidden = not terminal.has_terminal()
            results = iter(tqdm(results, total=layout.count, unit="tile", leave=False, disable=hidden))
        band = np.empty((0, width * self.scale, 3), image.dtype)
        for (row, column), result in results:
            if column is layout.columns[0]:
                rows = row.keep_stop - row.keep_start
                band = np.empty((rows * self.scale, width * self.scale, 3), image.dtype)
            band[:, column.written(self.scale)] = result[row.kept(self.scale), column.kept(self.scale)]
            if column is layout.columns[-1]:
                yield row.keep_start * self.scale, band

    def _layout(self, image: Image) -> tiling.Plan:
        reach = self._reach
        return tiling.plan(
            image.shape[0], image.shape[1], self.halo, self._tile, reach.max_area, grid=reach.grid
        )

    def _results(
        self, image: Image, layout: tiling.Plan
    ) -> Iterator[tuple[tuple[tiling.Span, tiling.Span], Image]]:
        """Each tile with its whole result, in the picture's type."""
        spans = [(row, column) for row in layout.rows for column in layout.columns]
        if layout.count == 1 and not self._self_ensemble:
            yield spans[0], _from_engine(self._engine.run(self._to_engine(image)[None])[0], image.dtype)
            return
        # A whole picture is turned as it is, not with the reflection by which tiles of whole
        # windows continue it.
        parts: Iterable[Image] = [image] if layout.count == 1 else (tiling.read(image, *s) for s in spans)
        turns = range(8) if self._self_ensemble else range(1)
        tiles = (
            ((span, turn), _turn(self._to_engine(part), turn))
            for span, part in zip(spans, parts, strict=True)
            for turn in turns
        )
        total: Any = 0.0
        for (span, turn), result in self._engine.run_tiles(tiles):
            if not self._self_ensemble:
                yield span, _from_engine(result, image.dtype)
                continue
            total = total + _turn_back(result, turn).astype(np.float32)
            if turn == turns[-1]:
                yield span, _from_engine(total / len(turns), image.dtype)
                total = 0.0

    def _to_engine(self, image: Image) -> Image:
        if image.dtype == np.uint8:
            return image
        values = image.astype(np.float32) / _UINT16_PER_BYTE
        return values if self._engine.takes_float else np.rint(values).astype(np.uint8)

    def choose_depth(self, image: Image, budget_ms: float) -> float:
        """Take the deepest sub-network that upscales a picture of this size within `budget_ms` on
        this machine, as measured now.

        Returns the median time measured, in ms. Where not even the smallest keeps the budget, it is
        used and a warning says so.
        """
        known = self._chosen.get((image.shape, budget_ms))
        if known is not None:
            if known[0] != self.depth:
                self._use(known[0])
            return known[1]
        taken = 0.0
        for depth in self.depths:
            self._use(depth)
            taken = self.measure(image)
            log.info("depth %d takes %.1f ms", depth, taken)
            if taken <= budget_ms:
                break
        else:
            log.warning(
                "the smallest depth, %d, takes %.0f ms, more than the budget of %g ms",
                self.depth,
                taken,
                budget_ms,
            )
        self._chosen[image.shape, budget_ms] = self.depth, taken
        return taken

    def measure(self, image: Image, runs: int = 3) -> float:
        """Median ms of `runs` upscalings of one tile of this picture, after one to warm up, times
        the tiles."""
        layout = self._layout(image)
        part = self._to_engine(tiling.read(image, layout.rows[0], layout.columns[0]))[None]
        self._engine.run(part)
        times = []
        for _ in range(runs):
            start = time.perf_counter()
            self._engine.run(part)
            times.append(time.perf_counter() - start)
        return median(times) * 1e3 * layout.count * (8 if self._self_ensemble else 1)


def _check(image: Image) -> None:
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or not all(image.shape):
        raise ValueError(
            f"a picture is an array (H, W, 3), got {getattr(image, 'shape', type(image).__name__)}"
        )
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"a picture is uint8 or uint16, got {image.dtype}")


def _from_engine(result: Image, dtype: Any) -> Image:
    """uint8, or float32 in 0..255, as the picture's own type."""
    if result.dtype == dtype:
        return result
    if dtype == np.uint16:
        return np.rint(result.astype(np.float32) * np.float32(_UINT16_PER_BYTE)).astype(np.uint16)
    return np.rint(result).astype(np.uint8)


def _turn(image: Image, turn: int) -> Image:
    """One of the eight symmetries of the square: 0..3 quarter turns, 4..7 mirrored first."""
    return np.ascontiguousarray(np.rot90(image[:, ::-1] if turn >= 4 else image, turn % 4))


def _turn_back(image: Image, turn: int) -> Image:
    image = np.rot90(image, -(turn % 4))
    return image[:, ::-1] if turn >= 4 else image
