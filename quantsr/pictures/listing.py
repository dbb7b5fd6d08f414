"""Listing the pictures of a folder or of a list of names, and pairing ground truth with LR. No
torch."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from quantsr.errors import InputError
from quantsr.files import read_text
from quantsr.paths import expanded
from quantsr.pictures.names import SUFFIXES, pictures_in

logger = logging.getLogger(__name__)


def list_images(folder: Path, meta_info_file: str | None = None) -> list[Path]:
    """The pictures directly in a folder, without hidden files and sorted by name; or those listed
    in BasicSR's ``meta_info_file``.

    Raises:
        InputError: there is no such folder, or no picture in it, or a listed picture is missing.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name a folder of pictures")
    if meta_info_file is not None:
        return _listed(folder, expanded(meta_info_file))
    found = pictures_in(folder)
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and path.is_symlink() and not path.exists():
            logger.warning("%s: a link to a file that is not there; left out", path)
    if not found:
        raise InputError(
            f"{folder}: no pictures in it; expected files ending in {', '.join(sorted(SUFFIXES))}"
        )
    return found


def _listed(folder: Path, meta_info_file: Path) -> list[Path]:
    """The pictures that BasicSR's ``meta_info_file`` names (``NAME (h,w,c)``, one per line).

    Names may contain spaces. A byte-order mark and Windows line ends are removed.
    """
    try:
        lines = read_text(meta_info_file, encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(
            f"meta_info_file: {meta_info_file} cannot be read ({what}); check the path"
        ) from None
    paths = [_named_in(line.strip(), folder) for line in lines if line.strip()]
    missing = next((path for path in paths if not path.is_file()), None)
    if missing is not None or not paths:
        raise InputError(
            f"meta_info_file: {meta_info_file} names {missing or 'no picture'}, which is not there; check both"
        )
    return paths


def _named_in(line: str, folder: Path) -> Path:
    """The picture that a line of a ``meta_info_file`` names."""
    match = re.fullmatch(r"(.*?)\s+\([\d,\s]+\)(\s+\d+)?", line)
    whole = folder / (match[1] if match else line)
    return whole if match or whole.is_file() else folder / line.split()[0]


def partner(folder: Path, stem: str, suffix: str) -> Path | None:
    """The picture with this stem in a folder, preferably with this suffix, else with any other;
    None where there is none."""
    exact = folder / f"{stem}{suffix}"
    if exact.is_file():
        return exact
    endings = [
        ending
        for lower in sorted(SUFFIXES)
        for ending in (lower, lower.upper(), f".{lower[1:].capitalize()}")
    ]
    return next((p for ending in endings if (p := folder / f"{stem}{ending}").is_file()), None)


def pair_up(gt_paths: Iterable[Path], lq_folder: Path, filename_tmpl: str = "{}") -> list[tuple[Path, Path]]:
    """Each ground-truth picture with its low-resolution picture, whose name is ``filename_tmpl``
    with the stem of the ground truth in place of ``{}``.

    Raises:
        InputError: an LR picture is missing, or the template does not have exactly one ``{}``.
    """
    if filename_tmpl.count("{}") != 1:
        raise InputError(
            f"filename_tmpl: needs one '{{}}', where the picture's name goes, got {filename_tmpl!r}"
        )
    pairs = []
    for gt in gt_paths:
        stem = filename_tmpl.replace("{}", gt.stem)
        lq = partner(lq_folder, stem, gt.suffix)
        if lq is None:
            raise InputError(
                f"{lq_folder / (stem + gt.suffix)}: the LR picture of {gt.name} is missing; "
                "check dataroot_lq and filename_tmpl, or make it with `quantsr prepare bicubic`"
            )
        pairs.append((gt, lq))
    return pairs
