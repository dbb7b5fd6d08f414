"""Crops of the pictures that runs saved, with bicubic and ground truth where the data set is
available."""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from quantsr.analysis.report.runs import Source
from quantsr.data.evaluation import build_eval_dataset
from quantsr.data.images import read_rgb
from quantsr.data.resize import U8, imresize_uint8
from quantsr.errors import InputError
from quantsr.pictures.names import file_stem

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """A picture file of a run, of the newest iteration."""

    label: str
    path: Path
    source: Source


@dataclass(frozen=True)
class Scene:
    """The same crop of one picture in several versions.

    Attributes:
        set, name, scale: of the picture.
        box: top, left, height and width of the crop in pixels of the upscaled picture.
        versions: label and crop ``(h, w, 3)`` uint8 RGB: bicubic first, the ground truth last.
        errors: label and `error_map` of every version, where there is a ground truth.
    """

    set: str
    name: str
    scale: int
    box: tuple[int, int, int, int]
    versions: tuple[tuple[str, U8], ...]
    errors: tuple[tuple[str, U8], ...] = ()


FULL_ERROR = 48
"""Difference of a channel, of 255, that error maps show as white."""


def error_map(picture: U8, truth: U8) -> U8:
    """The largest difference of the three channels at each pixel, ``(h, w, 3)`` RGB: 0 is black,
    `FULL_ERROR` and more white, by way of violet, red and yellow (OpenCV's inferno)."""
    difference = np.abs(picture.astype(np.int16) - truth.astype(np.int16)).max(axis=2)  # (h, w)
    share = np.minimum(difference * (255 / FULL_ERROR), 255).astype(np.uint8)
    return np.ascontiguousarray(cv2.applyColorMap(share, cv2.COLORMAP_INFERNO)[..., ::-1])


def find_saved(sources: Sequence[Source]) -> dict[tuple[str, int], dict[str, list[Saved]]]:
    """The saved pictures by set and scale, then by name."""
    found: dict[tuple[str, int], dict[str, list[Saved]]] = {}
    for source in sources:
        pattern = re.compile(
            rf"(?P<name>.+)_{re.escape(file_stem(source.suffix))}(?:_(?P<iteration>\d+))?(?:_depth(?P<depth>\d+))?"
        )
        for folder in sorted(source.folder.iterdir()) if source.folder.is_dir() else ():
            newest: dict[tuple[str, int], tuple[int, Path]] = {}
            for path in folder.glob("*.png"):
                match = pattern.fullmatch(path.stem)
                if match:
                    key = match["name"], int(match["depth"] or 0)
                    newest[key] = max(newest.get(key, (-1, path)), (int(match["iteration"] or 0), path))
            names = found.setdefault((folder.name, source.options.scale), {}) if newest else {}
            for (name, depth), (_, path) in sorted(
                newest.items(), key=lambda item: (item[0][0], -item[0][1])
            ):
                label = f"{source.label}, depth {depth}" if depth else source.label
                names.setdefault(name, []).append(Saved(label, path, source))
    return found


def scenes(sources: Sequence[Source], *, per_set: int, side: int) -> list[Scene]:
    """The first ``per_set`` pictures of every set, as crops of at most ``side`` pixels with the
    strongest edges."""
    found = []
    for (set_name, scale), names in find_saved(sources).items():
        wanted = sorted(names)[:per_set]
        options = next(iter(names.values()))[0].source.options
        truth = _ground_truth(options, set_name, wanted)
        for name in wanted:
            scene = _scene(set_name, name, scale, names[name], truth.get(name), side)
            if scene is not None:
                found.append(scene)
    return found


def _scene(
    set_name: str, name: str, scale: int, saved: Iterable[Saved], truth: tuple[U8, U8] | None, side: int
) -> Scene | None:
    versions: list[tuple[str, U8]] = []
    if truth is not None:
        versions.append(("bicubic", imresize_uint8(truth[0], scale)))
    for entry in saved:
        try:
            versions.append((entry.label, read_rgb(entry.path)))
        except InputError as error:
            logger.warning("%s; left out", error)
    if truth is not None:
        versions.append(("ground truth", truth[1]))
    if not versions:
        return None
    shape = versions[-1][1].shape
    same = [(label, picture) for label, picture in versions if picture.shape == shape]
    if len(same) < len(versions):
        logger.warning(
            "%s %s: pictures of different sizes; %d left out", set_name, name, len(versions) - len(same)
        )
    top, left, height, width = box = strongest_edges(versions[-1][1], side)
    crops = tuple((label, picture[top : top + height, left : left + width]) for label, picture in same)
    errors = (
        () if truth is None else tuple((label, error_map(crop, crops[-1][1])) for label, crop in crops[:-1])
    )
    return Scene(set_name, name, scale, box, crops, errors)


def _ground_truth(options: Any, set_name: str, wanted: Sequence[str]) -> dict[str, tuple[U8, U8]]:
    """LR and ground truth of the wanted names; those that cannot be read are left out."""
    chosen = [d for d in options.sets("test", "val").values() if d.name == set_name]
    found: dict[str, tuple[U8, U8]] = {}
    try:
        for item in build_eval_dataset(chosen[0], options.scale) if chosen else ():
            if file_stem(item["name"]) in wanted:
                found[file_stem(item["name"])] = item["lq"], item["gt"]
            if len(found) == len(wanted):
                break
    except InputError as error:
        logger.warning("%s: shown without bicubic and ground truth (%s)", set_name, error)
    return found


def strongest_edges(picture: U8, side: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of the square with the strongest edges, of ``side`` pixels or the
    picture's sides where these are shorter."""
    height, width = min(side, picture.shape[0]), min(side, picture.shape[1])
    gray = picture.astype(np.float64).mean(axis=2)  # (H, W)
    edges = np.zeros_like(gray)
    edges[:, 1:] += np.abs(np.diff(gray, axis=1))
    edges[1:] += np.abs(np.diff(gray, axis=0))
    # (H + 1, W + 1), the sums over all pixels above and to the left
    total = np.pad(edges.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    sums = (
        total[height:, width:] - total[:-height, width:] - total[height:, :-width] + total[:-height, :-width]
    )
    top, left = np.unravel_index(int(np.argmax(sums)), sums.shape)
    return int(top), int(left), height, width


def data_uri(picture: U8) -> str:
    """The picture as a PNG inside a ``data:`` URI."""
    done, encoded = cv2.imencode(
        ".png", np.ascontiguousarray(picture[..., ::-1]), [cv2.IMWRITE_PNG_COMPRESSION, 9]
    )
    assert done
    return "data:image/png;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
