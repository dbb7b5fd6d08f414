"""`CroppedImageDataset`: aligned GT/LR training crops, determined by the seed and the sample index
alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from quantsr.basicsr_compat import DATASET_REGISTRY
from quantsr.data.images import as_folders
from quantsr.data.options import complete
from quantsr.data.resize import U8
from quantsr.data.store import PictureStore, Source
from quantsr.errors import InputError
from quantsr.pictures.listing import list_images, pair_up, partner

#: Crops per decoded picture where not all pictures fit into memory: decoding and downscaling a 2K
#: picture (some 120 ms) then costs 2 ms a crop.
CROPS_PER_DECODE = 64


_CANDIDATES = {"uniform": 1, "gradient": 2}
"""Positions that are drawn for a crop, by `crop_choice`."""


def mean_gradient(crop: U8) -> float:
    """Mean absolute difference of neighbours in a picture (3, h, w), of rows plus of columns, in
    levels; 0 along sides of one pixel."""
    levels = crop.astype(np.int16)
    steps = (np.abs(np.diff(levels, axis=axis)) for axis in (1, 2))
    return sum(float(step.mean()) for step in steps if step.size)


def sample_rng(seed: int, index: int) -> np.random.Generator:
    """The random generator of sample ``index``: the same on every rank and worker, and independent
    of other samples."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, index]))


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int, shuffle: bool) -> npt.NDArray[np.int64]:
    """The order of ``count`` pictures in an epoch: ``(count,)`` int64."""
    if not shuffle:
        return np.arange(count)
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 1, epoch])).permutation(count)


class Place(NamedTuple):
    """Position of a crop and its augmentation: first hflip, then vflip, then transpose."""

    picture: int
    """Index in the store."""
    top: int
    """In pixels of the LR picture, as ``left``."""
    left: int
    hflip: bool
    vflip: bool
    transpose: bool


@DATASET_REGISTRY.register()
class CroppedImageDataset(Dataset[dict[str, torch.Tensor]]):
    """Training crops from pictures of any size, cut from decoded pictures in memory.

    Sample ``i`` is the ``i``-th crop of an endless stream, ``i >= 0``: its picture, position and
    augmentation depend on ``(seed, i)`` and the pictures alone. The length is that of one pass over
    the pictures.

    Args:
        opt: BasicSR's keys ``dataroot_gt`` (a folder or a list of them), ``dataroot_lq`` (optional,
            as many), ``scale``, ``gt_size``, ``filename_tmpl``, ``meta_info_file``, ``use_hflip``,
            ``use_rot`` (vertical flip and transposition), ``use_shuffle``; and keys that BasicSR
            does not have: ``dataroot_soft`` (optional, as many folders: another network's outputs
            under the names of the pictures), ``seed``, ``cache_budget_mb`` (MiB of decoded pictures
            to keep), ``crop_sampling``: ``area`` (default: all pixels are equally likely, so large
            pictures give more crops) or ``picture`` (each picture once an epoch, as in BasicSR),
            ``crop_choice``: ``uniform`` (default: all positions are equally likely) or ``gradient``
            (of two positions the one whose LR crop has the larger `mean_gradient`).

    Raises:
        InputError: a folder is absent or empty, a picture cannot be read or has no LR picture, or
            all are too small.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        opt = complete(opt)
        self.scale, self.gt_size = int(opt["scale"]), int(opt["gt_size"] or 0)
        if self.gt_size <= 0 or self.gt_size % self.scale:
            raise InputError(
                f"gt_size: {self.gt_size} is not a positive multiple of scale {self.scale}; change one of them"
            )
        self.seed = int(opt.get("seed", 0))
        self.use_hflip, self.use_rot = bool(opt["use_hflip"]), bool(opt["use_rot"])
        self.shuffle = bool(opt["use_shuffle"])
        sampling = opt["crop_sampling"]
        if sampling not in ("area", "picture"):
            raise InputError(f"crop_sampling: {sampling!r} is unknown; use 'area' or 'picture'")
        self.by_area = sampling == "area" and self.shuffle
        self.candidates = _CANDIDATES.get(opt["crop_choice"], 0)
        if not self.candidates:
            raise InputError(
                f"crop_choice: {opt['crop_choice']!r} is unknown; use {' or '.join(map(repr, _CANDIDATES))}"
            )
        self.store = PictureStore(
            find_sources(opt),
            scale=self.scale,
            gt_size=self.gt_size,
            budget_mb=int(opt["cache_budget_mb"]),
        )
        self._ends = np.cumsum(self.store.pixels)
        self._current: tuple[int, int] = (-1, -1)  # epoch and number of the decoded window
        self._windows: dict[int, tuple[list[list[int]], npt.NDArray[np.int64]]] = {}

    def __len__(self) -> int:
        return len(self.store)

    @property
    def in_memory(self) -> bool:
        """Whether all pictures are kept decoded, so that samples may be drawn in several
        processes."""
        return self.store.in_memory

    @property
    def sides(self) -> dict[str, int]:
        """Side length of the crops in pixels, under ``lq``, ``gt`` and, with soft targets,
        ``soft``."""
        sides = {"lq": self.gt_size // self.scale, "gt": self.gt_size}
        if self.store.sources[0].soft is not None:
            sides["soft"] = self.gt_size
        return sides

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """``lq`` ``(3, h, w)``, ``gt`` ``(3, s*h, s*w)`` and, with soft targets, ``soft`` like
        ``gt``; float32 in [0, 1], RGB."""
        batch = self.__getitems__([index])
        return {key: value[0] for key, value in batch.items()}

    def __getitems__(self, indices: Sequence[int], pin_memory: bool = False) -> dict[str, torch.Tensor]:
        """A whole batch: the tensors of `__getitem__` with a leading batch dimension."""
        count = len(indices)
        batch = {key: np.empty((count, 3, side, side), np.uint8) for key, side in self.sides.items()}
        for row, index in enumerate(indices):
            self._cut(index, {key: crops[row] for key, crops in batch.items()})
        return {key: _to_float(crops, pin_memory) for key, crops in batch.items()}

    def _cut(self, index: int, crops: dict[str, U8]) -> None:
        """Writes sample ``index`` into ``lq`` ``(3, g/s, g/s)``, ``gt`` and ``soft`` ``(3, g,
        g)``."""
        place = self.place(index)
        pair = self.store.get(place.picture)
        size = crops["lq"].shape[1]
        for key, out in crops.items():
            side, factor = out.shape[1], out.shape[1] // size
            y, x = place.top * factor, place.left * factor
            view = getattr(pair, key)[:, y : y + side, x : x + side]
            if place.hflip:
                view = view[:, :, ::-1]
            if place.vflip:
                view = view[:, ::-1]
            if place.transpose:
                view = view.swapaxes(1, 2)
            out[...] = view

    def place(self, index: int) -> Place:
        """Position and augmentation of sample ``index``.

        Samples may be drawn in any order only where all pictures are in memory; else each new
        window of pictures has to be decoded.
        """
        rng = sample_rng(self.seed, index)
        picture = self._choose(index, rng)
        top, left = self._position(self.store.get(picture).lq, rng)
        hflip, vflip, transpose = (rng.random(3) < 0.5) & (self.use_hflip, self.use_rot, self.use_rot)
        return Place(picture, top, left, bool(hflip), bool(vflip), bool(transpose))

    def _position(self, lq: U8, rng: np.random.Generator) -> tuple[int, int]:
        """Top and left of a crop of ``lq``, (3, h, w)."""
        size = self.gt_size // self.scale
        rows, columns = (length - size + 1 for length in lq.shape[1:])
        found = [(int(rng.integers(rows)), int(rng.integers(columns))) for _ in range(self.candidates)]
        if len(found) == 1:
            return found[0]
        return max(found, key=lambda at: mean_gradient(lq[:, at[0] : at[0] + size, at[1] : at[1] + size]))

    def _choose(self, index: int, rng: np.random.Generator) -> int:
        """The picture of sample ``index``."""
        count = len(self.store)
        if self.store.in_memory:
            if self.by_area:
                return int(np.searchsorted(self._ends, rng.integers(self._ends[-1]), side="right"))
            epoch, place = divmod(index, count)
            return int(epoch_order(self.seed, epoch, count, self.shuffle)[place])
        epoch, place = divmod(index, count * CROPS_PER_DECODE)
        starts = self._windows_of(epoch)[1]
        number = int(np.searchsorted(starts, place // CROPS_PER_DECODE, side="right")) - 1
        window = self._enter_window(epoch, number)
        if not self.by_area:
            return window[int(rng.integers(len(window)))]
        ends = np.cumsum(self.store.pixels[window])
        return window[int(np.searchsorted(ends, rng.integers(ends[-1]), side="right"))]

    def _windows_of(self, epoch: int) -> tuple[list[list[int]], npt.NDArray[np.int64]]:
        """The windows of an epoch, and the position in the epoch's order at which each begins."""
        if epoch not in self._windows:
            order = epoch_order(self.seed, epoch, len(self.store), self.shuffle)
            windows = list(self.store.windows(order.tolist()))
            starts = np.cumsum([0] + [len(window) for window in windows[:-1]])
            self._windows = {key: value for key, value in self._windows.items() if key >= epoch - 1}
            self._windows[epoch] = (windows, starts)
        return self._windows[epoch]

    def _enter_window(self, epoch: int, number: int) -> list[int]:
        """The pictures of a window; where it is another than before, decoding of the next one
        starts."""
        windows = self._windows_of(epoch)[0]
        if self._current != (epoch, number):
            last = number + 1 == len(windows)
            following = self._windows_of(epoch + 1)[0][0] if last else windows[number + 1]
            self.store.keep_windows(windows[number], following)
            self._current = (epoch, number)
        return windows[number]

    def close(self) -> None:
        """Stops background decoding."""
        self.store.close()


def _to_float(levels: U8, pin_memory: bool) -> torch.Tensor:
    """uint8 to float32 in [0, 1], divided by 255 as in BasicSR; in page-locked memory with
    ``pin_memory``."""
    out = torch.empty(levels.shape, dtype=torch.float32, pin_memory=pin_memory)
    view = out.numpy()
    view[...] = levels
    view /= np.float32(255)
    return out


def find_sources(opt: dict[str, Any]) -> list[Source]:
    """The pictures that ``dataroot_gt``, ``dataroot_lq``, ``dataroot_soft``, ``filename_tmpl`` and
    ``meta_info_file`` name.

    Raises:
        InputError: a folder, a picture, an LR picture or a soft target is missing.
    """
    if not opt["dataroot_gt"]:
        raise InputError("dataroot_gt: missing; name a folder of ground-truth pictures")
    gt_folders = as_folders(opt["dataroot_gt"])
    lq_folders, soft_folders = (
        _as_many(opt, key, len(gt_folders)) for key in ("dataroot_lq", "dataroot_soft")
    )
    sources: list[Source] = []
    for number, folder in enumerate(gt_folders):
        paths = list_images(folder, opt["meta_info_file"])
        lqs: list[Path | None] = [None] * len(paths)
        softs = lqs
        if lq_folders:
            lqs = [lq for _, lq in pair_up(paths, lq_folders[number], opt["filename_tmpl"])]
        if soft_folders:
            softs = [_soft(path, soft_folders[number]) for path in paths]
        sources += map(Source, paths, lqs, softs)
    return sources


def _as_many(opt: dict[str, Any], key: str, count: int) -> list[Path]:
    """The folders under ``key``: none, or one for each of the ``count`` ground-truth folders."""
    folders = as_folders(opt[key]) if opt[key] else []
    if folders and len(folders) != count:
        raise InputError(
            f"{key}: {len(folders)} folders for {count} of dataroot_gt; give one for each, or none"
        )
    return folders


def _soft(gt: Path, folder: Path) -> Path:
    found = partner(folder, gt.stem, gt.suffix)
    if found is None:
        raise InputError(f"{folder / gt.name}: the soft target of {gt.name} is missing; check dataroot_soft")
    return found
