"""Which files of a folder are taken for pictures, by their names alone."""

from __future__ import annotations

import os
from pathlib import Path

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
"""Endings, in lower case, of the files that are looked for in folders."""


def is_picture_name(name: str) -> bool:
    """Whether a file of this name is taken for a picture in a folder. Hidden files are not, as in
    BasicSR: macOS leaves a `._NAME.png`, which is no picture, beside each NAME.png on foreign file
    systems."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def pictures_in(folder: Path) -> list[Path]:
    """The pictures directly in a folder, by name, in order. Raises OSError."""
    return sorted(path for path in folder.iterdir() if is_picture_name(path.name) and path.is_file())
