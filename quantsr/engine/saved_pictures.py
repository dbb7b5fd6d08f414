"""Saving upscaled pictures: file names are unique, not too long, and may be any bytes; each file is
written completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantsr.data.images import encode_png
from quantsr.engine.measure import Picture
from quantsr.errors import WorkError
from quantsr.files import write_bytes
from quantsr.pictures.names import file_stem
from quantsr.temporary import fitting_name

LeaveOut = Callable[[str, Exception], None]
"""Called with the name of a picture that is left out, or not written, and the reason; it raises, or
returns to continue without the picture."""


@dataclass(frozen=True)
class Saving:
    """Where upscaled pictures are written, as ``folder/SET/NAME_SUFFIX.png``, and how many of each
    set (``limit``; None: all)."""

    folder: Path
    suffix: str = ""
    limit: int | None = None


def save_picture(path: Path, picture: Picture) -> None:
    """Writes a PNG; its name may have any bytes.

    Raises:
        WorkError: it could not be written.
    """
    write_bytes(path, encode_png(picture), sync=False)


def save_outputs(
    folder: Path,
    picture: str,
    ending: str,
    outputs: Mapping[int | None, Picture],
    leave_out: LeaveOut | None,
) -> None:
    """Writes the outputs of all depths for one picture as ``folder/PICTURE_ENDING_depthN.png``.

    Raises:
        WorkError: one cannot be written, and ``leave_out`` is None.
    """
    for depth, sr in outputs.items():
        last = "" if depth is None else f"depth{depth}"
        tail = file_stem("".join(f"_{part}" for part in (ending, last) if part)) + ".png"
        stem = fitting_name(picture, folder, reserve=len(os.fsencode(tail)))
        try:
            save_picture(folder / f"{stem}{tail}", sr)
        except WorkError as error:
            if leave_out is None:
                raise
            leave_out(f"{folder.name}: {picture}, saved", error)


def unique_names(names: Sequence[str]) -> list[str]:
    """File names for pictures, in their order: names that would be equal get numbers.

    Case is ignored, as on the file systems of Windows and macOS.
    """
    taken = {file_stem(name).casefold() for name in names}
    seen: set[str] = set()
    found = []
    for name in names:
        stem, number = file_stem(name), 1
        unique = stem
        while unique.casefold() in seen or (number > 1 and unique.casefold() in taken):
            number += 1
            unique = f"{stem}~{number}"
        seen.add(unique.casefold())
        found.append(unique)
    return found
