"""Decoded GT/LR picture pairs in memory, as ``(3, H, W)`` uint8: all of them, or a moving window of
them."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantsr.data.images import picture_size, read_rgb
from quantsr.data.resize import U8, imresize_uint8, mod_crop
from quantsr.errors import InputError

logger = logging.getLogger(__name__)

#: Skipped pictures that are logged by name; further ones are only counted.
_MAX_NAMED = 10


_kept: dict[tuple[Source, int], Pair] | None = None
"""Decoded pairs by source and scale, while `keep_decoded` is entered."""


@contextlib.contextmanager
def keep_decoded() -> Iterator[None]:
    """While entered, stores share the pairs that they keep in memory: several trainings on the same
    pictures decode them once.

    The files must not change while it is entered.
    """
    global _kept
    before, _kept = _kept, {} if _kept is None else _kept
    try:
        yield
    finally:
        _kept = before


@dataclass(frozen=True)
class Source:
    """The files of a pair; without ``lq`` the LR picture is made by MATLAB's bicubic."""

    gt: Path
    lq: Path | None = None
    soft: Path | None = None
    """Another network's upscaled LR picture, a further target."""


@dataclass(frozen=True)
class Pair:
    """A decoded pair: ``gt`` ``(3, s*h, s*w)`` and ``lq`` ``(3, h, w)``, uint8 RGB planes; ``soft``
    as ``gt``, or absent."""

    gt: U8
    lq: U8
    soft: U8 | None = None

    @property
    def planes(self) -> tuple[U8, ...]:
        """``gt``, ``lq`` and, where there is one, ``soft``."""
        return (self.gt, self.lq) if self.soft is None else (self.gt, self.lq, self.soft)


def load_pair(source: Source, scale: int) -> Pair:
    """Decodes one pair and crops the ground truth to LR * scale.

    Raises:
        InputError: a file cannot be read, or the two sizes do not fit together.
    """
    gt = read_rgb(source.gt)
    if source.lq is None:
        gt = mod_crop(gt, scale)
        lq = imresize_uint8(gt, 1 / scale)
    else:
        lq = read_rgb(source.lq)
        height, width = lq.shape[:2]
        if not _is_partner(gt.shape, lq.shape, scale):
            raise _no_partner(source, gt.shape, lq.shape, scale)
        gt = gt[: height * scale, : width * scale]
    soft = read_rgb(source.soft) if source.soft is not None else None
    if soft is not None and soft.shape != gt.shape:
        raise InputError(
            f"{source.soft}: {soft.shape[1]}x{soft.shape[0]} where {source.gt.name}, cropped to a multiple of {scale}, has "
            f"{gt.shape[1]}x{gt.shape[0]}; check dataroot_soft and scale"
        )
    return Pair(_planes(gt), _planes(lq), None if soft is None else _planes(soft))


def _kept_or_loaded(source: Source, scale: int) -> Pair:
    """`load_pair`; while `keep_decoded` is entered, the pair that an earlier store loaded."""
    if _kept is None:
        return load_pair(source, scale)
    key = (source, scale)
    if key not in _kept:
        _kept[key] = load_pair(source, scale)
    return _kept[key]


def _nbytes(pairs: Sequence[Pair]) -> int:
    return sum(plane.nbytes for pair in pairs for plane in pair.planes)


def _planes(picture: U8) -> U8:
    """(H, W, 3) to (3, H, W), contiguous."""
    return np.ascontiguousarray(picture.transpose(2, 0, 1))


def large_enough(
    sources: Sequence[Source], gt_size: int, threads: int = 4
) -> tuple[list[Source], np.ndarray]:
    """The pictures that are at least as large as a crop, and the pixels of each, (n,) int64; the
    others are named in the log.

    Raises:
        InputError: a header is unreadable, or no picture is large enough.
    """
    with ThreadPoolExecutor(threads) as pool:
        sizes = list(pool.map(picture_size, (source.gt for source in sources)))
    enough = [min(size) >= gt_size for size in sizes]
    _warn_skipped([s.gt for s, ok in zip(sources, enough, strict=True) if not ok], gt_size)
    kept = [source for source, ok in zip(sources, enough, strict=True) if ok]
    if not kept:
        raise InputError(
            f"{sources[0].gt.parent}: no picture is at least {gt_size}x{gt_size}; lower gt_size or use larger pictures"
        )
    return kept, np.array([h * w for (h, w), ok in zip(sizes, enough, strict=True) if ok], np.int64)


def check_partners(sources: Sequence[Source], scale: int) -> None:
    """Compares the headers of ground truth and LR pictures, as `load_pair` does once both are
    decoded.

    Raises:
        InputError: two sizes do not fit, in either orientation of the pictures.
    """
    for source in sources:
        if source.lq is None:
            continue
        gt, lq = picture_size(source.gt), picture_size(source.lq)
        if not any(_is_partner(size, lq, scale) for size in (gt, gt[::-1])):
            raise _no_partner(source, gt, lq, scale)


def _is_partner(gt: Sequence[int], lq: Sequence[int], scale: int) -> bool:
    return 0 <= gt[0] - lq[0] * scale < scale and 0 <= gt[1] - lq[1] * scale < scale


def _no_partner(source: Source, gt: Sequence[int], lq: Sequence[int], scale: int) -> InputError:
    return InputError(
        f"{source.lq}: {lq[1]}x{lq[0]} is not the x{scale} LR of {source.gt.name} ({gt[1]}x{gt[0]}); "
        "check dataroot_lq, filename_tmpl and scale"
    )


class PictureStore:
    """The pairs of a training set, decoded once and kept when they fit the budget.

    Where they do not fit, two of the `windows` of pictures are kept at a time, each of at most half
    of the budget: the current one, and the next one, which background threads decode.

    Forked loader processes share the decoded pictures; for spawned ones they are moved to shared
    memory when pickled.

    Attributes:
        sources: the pictures that are large enough; indices below count them.
        pixels: ``(n,)`` int64, ground-truth pixels of each.
        in_memory: whether all of them are kept.
    """

    def __init__(
        self, sources: Sequence[Source], *, scale: int, gt_size: int, budget_mb: int, threads: int = 0
    ) -> None:
        """Reads the headers, and the pictures if they fit.

        Args:
            sources: at least one.
            scale: ground-truth side over LR side.
            gt_size: pictures with a side shorter than this are skipped with a warning.
            budget_mb: MiB of decoded pictures to keep at most; all pictures of a pair count.
            threads: decoding threads; 0 for one per core, at most 8.

        Raises:
            InputError: a picture is unreadable, or none is large enough.
        """
        self.scale = scale
        self._threads = threads or min(8, os.cpu_count() or 1)
        self.sources, self.pixels = large_enough(sources, gt_size, self._threads)
        self._budget = budget_mb << 20
        targets = 2 if self.sources[0].soft is not None else 1
        self._need = 3 * targets * self.pixels + 3 * (self.pixels // scale**2)
        self.in_memory = int(self._need.sum()) <= self._budget
        self._pairs = self._load_all() if self.in_memory else []
        self._arena: torch.Tensor | None = None
        self._futures: dict[int, Future[Pair]] = {}
        self._pool: ThreadPoolExecutor | None = None
        if not self.in_memory:
            logger.warning(
                "%d pictures need %d MiB decoded, more than cache_budget_mb: %d; a part of them is kept at a time. "
                "Raise it, or use sub-images or an LMDB (`quantsr prepare`)",
                len(self.sources),
                int(self._need.sum()) >> 20,
                budget_mb,
            )

    def _load_all(self) -> list[Pair]:
        begin = time.perf_counter()
        with ThreadPoolExecutor(self._threads) as pool:
            pairs = list(pool.map(lambda source: _kept_or_loaded(source, self.scale), self.sources))
        seconds = time.perf_counter() - begin
        logger.info("%d pictures decoded, %d MiB, %.1f s", len(pairs), _nbytes(pairs) >> 20, seconds)
        return pairs

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded pictures, where all are in memory."""
        return _nbytes(self._pairs)

    def __len__(self) -> int:
        return len(self.sources)

    def windows(self, order: Sequence[int]) -> Iterator[list[int]]:
        """Cuts an order of pictures into consecutive windows of at most half of the budget each (or
        one picture)."""
        window: list[int] = []
        used = 0
        for index in order:
            need = int(self._need[index])
            if window and used + need > self._budget // 2:
                yield window
                window, used = [], 0
            window.append(int(index))
            used += need
        if window:
            yield window

    def keep_windows(self, current: Sequence[int], following: Sequence[int]) -> None:
        """Keeps the pictures of these two windows, starts decoding those that are missing, and
        drops all others."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
        keep = {*current, *following}
        for index in [index for index in self._futures if index not in keep]:
            self._futures.pop(index).cancel()
        for index in [*current, *following]:
            if index not in self._futures:
                self._futures[index] = self._pool.submit(load_pair, self.sources[index], self.scale)

    def get(self, index: int) -> Pair:
        """The decoded pair; waits while it is being decoded.

        Raises:
            InputError: the picture cannot be read.
        """
        if self.in_memory:
            return self._pairs[index]
        future = self._futures.get(index)
        return future.result() if future is not None else load_pair(self.sources[index], self.scale)

    def close(self) -> None:
        """Stops the decoding threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        self._futures.clear()

    def __getstate__(self) -> dict[str, Any]:
        if self.in_memory and self._arena is None:
            self._arena = torch.cat(
                [torch.from_numpy(plane).flatten() for pair in self._pairs for plane in pair.planes]
            )
            self._arena.share_memory_()
            self._pairs = self._views(self._shapes())
        shapes = self._shapes()
        return {**self.__dict__, "_pairs": shapes, "_futures": {}, "_pool": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pairs = self._views(state["_pairs"])

    def _shapes(self) -> list[tuple[tuple[int, ...], ...]]:
        return [tuple(plane.shape for plane in pair.planes) for pair in self._pairs]

    def _views(self, shapes: list[tuple[tuple[int, ...], ...]]) -> list[Pair]:
        """The pairs as views of the shared tensor, which holds them one after the other."""
        pairs, at = [], 0
        for pair_shapes in shapes:
            assert self._arena is not None
            planes = []
            for shape in pair_shapes:
                size = int(np.prod(shape))
                planes.append(self._arena[at : at + size].numpy().reshape(shape))
                at += size
            pairs.append(Pair(*planes))
        return pairs


def _warn_skipped(paths: Sequence[Path], gt_size: int) -> None:
    for path in paths[:_MAX_NAMED]:
        logger.warning("%s: smaller than gt_size %d; skipped", path, gt_size)
    if len(paths) > _MAX_NAMED:
        logger.warning(
            "... and %d more pictures smaller than gt_size %d; skipped", len(paths) - _MAX_NAMED, gt_size
        )
