"""The networks that the page offers, and a dropped file's way from bytes to a PNG."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from quantsr.data.resize import imresize_uint8
from quantsr.deploy.packed import packing
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.upscale.image_io import Pixels, merge
from quantsr.deploy.upscale.upscaler import Upscaler
from quantsr.errors import InputError
from quantsr.pictures.decode import DecodedPicture, decode, eight_bits
from quantsr.pictures.transparency import fill_hidden, scale_alpha
from quantsr.trained_files.names import find_packed

MAX_PIXELS = 1 << 20
"""Of a larger picture the page shows the middle: enlarged, all of it would not fit into a page."""

_KEPT = 4
"""Upscalers that are kept, with their memory, for the next picture."""


@dataclass(frozen=True)
class Result:
    """One enlarged picture."""

    png: bytes
    milliseconds: float
    """What enlarging took, without decoding and encoding."""
    engine: str
    size: tuple[int, int]
    """Width and height of the input, as far as it was used."""
    notes: tuple[str, ...]
    """What the user should know about the picture, in sentences without a capital and full stop."""


class Networks:
    """Packed networks by name; every one is read, and so checked, at the beginning."""

    def __init__(
        self, names: Sequence[str | Path], *, engine: str = "auto", threads: int | None = None
    ) -> None:
        """
        Args:
            names: files, or names of networks that come with quantsr, at least one; the first is
                the page's choice.
            engine, threads: see `Upscaler`.

        Raises:
            InputError: a file that is missing or no packed network, two of one name, or an engine
                that is not there or does not run the first network.
        """
        self._models: dict[str, PackedModel] = {}
        for name in names:
            file = find_packed(name)
            if file.stem in self._models:
                raise InputError(f"{name}: there are two networks of that name; rename one of the files")
            self._models[file.stem] = packing.load(file)
        self._engine = engine
        self._threads = threads
        self._upscaler = lru_cache(_KEPT)(self._make)
        # Engines use all cores for one picture, and are not made for two at a time.
        self._lock = threading.Lock()
        first = next(iter(self._models))
        self._upscaler(first, self._models[first].header.depths[0])

    def _make(self, name: str, depth: int) -> Upscaler:
        return Upscaler(self._models[name], engine=self._engine, depth=depth, threads=self._threads)

    def listing(self) -> list[dict[str, Any]]:
        """Name, scale and depths (descending) of every network, for the page's menus."""
        return [
            {"name": name, "scale": model.header.scale, "depths": list(model.header.depths)}
            for name, model in self._models.items()
        ]

    def enlarge(self, data: bytes, name: str, depth: int | None) -> Result:
        """A picture file, enlarged by a network at a depth, or for None by bicubic interpolation to
        the same size. The PNG has 8 bits per channel, and keeps transparency and ICC profile.

        Raises:
            InputError: no such network or depth, or not a picture that is read.
        """
        if name not in self._models:
            raise InputError(f"network: {name!r} is not offered; reload the page")
        scale = self._models[name].header.scale
        picture = decode(io.BytesIO(data), "the picture")
        notes = list(picture.notes)
        rgb, alpha = _middle(eight_bits(picture.rgb)), picture.alpha
        alpha = None if alpha is None else _middle(eight_bits(alpha))
        if rgb.shape != picture.rgb.shape:
            whole, part = _size(picture.rgb), _size(rgb)
            notes.append(
                f"has {whole[0]}x{whole[1]} pixels, of which the middle, {part[0]}x{part[1]}, is shown; "
                "'quantsr upscale' takes all of it"
            )
        rgb = fill_hidden(rgb, alpha)
        with self._lock:
            start = time.perf_counter()
            if depth is None:
                engine, large = "bicubic", imresize_uint8(rgb, scale)
            else:
                upscaler = self._upscaler(name, depth)
                start = time.perf_counter()
                engine, large = upscaler.engine, upscaler(rgb)
            taken = time.perf_counter() - start
        pixels = merge(large, None if alpha is None else scale_alpha(alpha, scale), picture.gray)
        return Result(_png(pixels, picture), taken * 1e3, engine, _size(rgb), tuple(notes))


def _middle(plane: Pixels) -> Pixels:
    """(H, W, ...), of which the middle is kept so that it has at most `MAX_PIXELS`, with the same
    proportions."""
    height, width = plane.shape[:2]
    share = (MAX_PIXELS / (height * width)) ** 0.5
    if share >= 1:
        return plane
    rows, columns = max(1, int(height * share)), max(1, int(width * share))
    # a strip, which has a side of one pixel now, may still be too long
    rows, columns = min(rows, MAX_PIXELS), min(columns, MAX_PIXELS)
    top, left = (height - rows) // 2, (width - columns) // 2
    return np.ascontiguousarray(plane[top : top + rows, left : left + columns])


def _size(pixels: Pixels) -> tuple[int, int]:
    return pixels.shape[1], pixels.shape[0]


def _png(pixels: Pixels, picture: DecodedPicture) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1, icc_profile=picture.icc)
    return file.getvalue()
