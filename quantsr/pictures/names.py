"""Recognizing picture files in a folder by their names."""

from __future__ import annotations

import os
from pathlib import Path

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"})
"""Suffixes, in lower case, of picture files."""


def is_picture_name(name: str) -> bool:
    """Whether a file of this name counts as a picture. Hidden files do not, as in BasicSR: on
    foreign file systems macOS writes a `._NAME.png`, which is no picture, beside each NAME.png."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def pictures_in(folder: Path) -> list[Path]:
    """The pictures directly in a folder, by name, in order. Raises OSError."""
    return sorted(path for path in folder.iterdir() if is_picture_name(path.name) and path.is_file())


def file_stem(name: str) -> str:
    """A picture's name, or a part of it, in the form for file names."""
    return name.replace("/", "-").replace(" ", "-")
