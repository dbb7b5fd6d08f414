"""`CroppedImageDataset`: aligned GT/LR training crops that depend on the seed and their number
only."""

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

#: Crops taken from a picture before its window moves on, where not all pictures fit into memory:
#: decoding and shrinking a 2K picture (some 120 ms) then costs 2 ms a crop.
CROPS_PER_DECODE = 64


def sample_rng(seed: int, index: int) -> np.random.Generator:
    """The random numbers of sample ``index``: the same on every rank and worker, whatever was drawn
    before."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, index]))


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int, shuffle: bool) -> npt.NDArray[np.int64]:
    """The order of ``count`` pictures in an epoch: ``(count,)`` int64."""
    if not shuffle:
        return np.arange(count)
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 1, epoch])).permutation(count)


class Place(NamedTuple):
    """Where a crop lies, and how it is turned: mirrored, then upside down, then transposed."""

    picture: int
    """Its number in the store."""
    top: int
    """In pixels of the LR picture, as ``left``."""
    left: int
    mirror: bool
    upset: bool
    turn: bool


@DATASET_REGISTRY.register()
class CroppedImageDataset(Dataset[dict[str, torch.Tensor]]):
    """Training crops from pictures of any size, cut from decoded pictures in memory.

    Sample ``i`` is the ``i``-th crop of an endless stream, ``i >= 0``: which picture, where, and
    how it is turned depends on ``(seed, i)`` and the pictures alone. The length is that of one pass
    over the pictures.

    Args:
        opt: BasicSR's keys ``dataroot_gt`` (a folder or a list of them), ``dataroot_lq`` (optional,
            as many), ``scale``, ``dataroot_soft`` (ours, optional, as many: another network's
            outputs under the names of the pictures), ``gt_size``, ``filename_tmpl``,
            ``meta_info_file``, ``use_hflip``, ``use_rot`` (vertical flip and transposition),
            ``use_shuffle``, and ours: ``seed``, ``cache_budget_mb`` (MiB of decoded pictures to
            keep), ``crop_sampling``: ``area`` (default: every pixel is as likely, so large pictures
            give more crops) or ``picture`` (each picture once an epoch, as BasicSR).

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
        self.hflip, self.rotate = bool(opt["use_hflip"]), bool(opt["use_rot"])
        self.shuffle = bool(opt["use_shuffle"])
        sampling = opt["crop_sampling"]
        if sampling not in ("area", "picture"):
            raise InputError(f"crop_sampling: {sampling!r} is unknown; use 'area' or 'picture'")
        self.by_area = sampling == "area" and self.shuffle
        self.store = PictureStore(
            find_sources(opt),
            scale=self.scale,
            gt_size=self.gt_size,
            budget_mb=int(opt["cache_budget_mb"]),
        )
        self._ends = np.cumsum(self.store.pixels)
        self._held: tuple[int, int] = (-1, -1)
        self._plans: dict[int, tuple[list[list[int]], npt.NDArray[np.int64]]] = {}

    def __len__(self) -> int:
        return len(self.store)

    @property
    def in_memory(self) -> bool:
        """Whether all pictures are kept decoded, so that samples may be drawn in several
        processes."""
        return self.store.in_memory

    @property
    def sides(self) -> dict[str, int]:
        """The side of a crop of each kind, in its pixels: ``lq``, ``gt`` and, if there are,
        ``soft``."""
        sides = {"lq": self.gt_size // self.scale, "gt": self.gt_size}
        if self.store.sources[0].soft is not None:
            sides["soft"] = self.gt_size
        return sides

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """``lq`` ``(3, h, w)``, ``gt`` ``(3, s*h, s*w)`` and, if there are, ``soft`` as ``gt``;
        float32 in [0, 1], RGB."""
        batch = self.__getitems__([index])
        return {key: value[0] for key, value in batch.items()}

    def __getitems__(self, indices: Sequence[int], pin_memory: bool = False) -> dict[str, torch.Tensor]:
        """A whole batch: `__getitem__`'s tensors with a first dimension more."""
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
            if place.mirror:
                view = view[:, :, ::-1]
            if place.upset:
                view = view[:, ::-1]
            if place.turn:
                view = view.swapaxes(1, 2)
            out[...] = view

    def place(self, index: int) -> Place:
        """Where sample ``index`` is cut from. In another order than theirs, only where all pictures
        are in memory."""
        rng = sample_rng(self.seed, index)
        picture = self._choose(index, rng)
        height, width = self.store.get(picture).lq.shape[1:]
        size = self.gt_size // self.scale
        top = int(rng.integers(height - size + 1))
        left = int(rng.integers(width - size + 1))
        mirror, upset, turn = (bool(value) for value in rng.random(3) < 0.5)
        return Place(picture, top, left, self.hflip and mirror, self.rotate and upset, self.rotate and turn)

    def _choose(self, index: int, rng: np.random.Generator) -> int:
        """Which picture sample ``index`` is cut from."""
        count = len(self.store)
        if self.store.in_memory:
            if self.by_area:
                return int(np.searchsorted(self._ends, rng.integers(self._ends[-1]), side="right"))
            epoch, place = divmod(index, count)
            return int(epoch_order(self.seed, epoch, count, self.shuffle)[place])
        epoch, place = divmod(index, count * CROPS_PER_DECODE)
        number = int(np.searchsorted(self._plan(epoch)[1], place // CROPS_PER_DECODE, side="right")) - 1
        window = self._hold(epoch, number)
        if not self.by_area:
            return window[int(rng.integers(len(window)))]
        ends = np.cumsum(self.store.pixels[window])
        return window[int(np.searchsorted(ends, rng.integers(ends[-1]), side="right"))]

    def _plan(self, epoch: int) -> tuple[list[list[int]], npt.NDArray[np.int64]]:
        """The windows of an epoch and the position in its order at which each begins."""
        if epoch not in self._plans:
            order = epoch_order(self.seed, epoch, len(self.store), self.shuffle)
            windows = list(self.store.windows(order.tolist()))
            starts = np.cumsum([0] + [len(window) for window in windows[:-1]])
            self._plans = {key: plan for key, plan in self._plans.items() if key >= epoch - 1}
            self._plans[epoch] = (windows, starts)
        return self._plans[epoch]

    def _hold(self, epoch: int, number: int) -> list[int]:
        """The pictures of a window; on entering it, starts decoding those of the next."""
        windows = self._plan(epoch)[0]
        if self._held != (epoch, number):
            following = windows[number + 1] if number + 1 < len(windows) else self._plan(epoch + 1)[0][0]
            self.store.hold(windows[number], following)
            self._held = (epoch, number)
        return windows[number]

    def close(self) -> None:
        """Stops background decoding."""
        self.store.close()


def _to_float(levels: U8, pin_memory: bool) -> torch.Tensor:
    """uint8 to float32 in [0, 1], as BasicSR's division by 255, in page-locked memory if asked."""
    out = torch.empty(levels.shape, dtype=torch.float32, pin_memory=pin_memory)
    view = out.numpy()
    view[...] = levels
    view /= np.float32(255)
    return out


def find_sources(opt: dict[str, Any]) -> list[Source]:
    """The pictures that ``dataroot_gt``, ``dataroot_lq``, ``dataroot_soft``, ``filename_tmpl`` and
    ``meta_info_file`` name.

    Raises:
        InputError: a folder, a picture or a partner is missing.
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
    """The folders under ``key``: none, or one for each of the ``count`` folders of ground truth."""
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
