"""The nine CC0 photographs of ``datasets/mini``: where they are, and how they were made."""

from __future__ import annotations

from pathlib import Path

import cv2

from quantsr.data.images import read_rgb, write_file
from quantsr.data.resize import imresize_uint8, mod_crop
from quantsr.errors import InputError, WorkError
from quantsr.pictures.listing import list_images

#: Downscaling factor: 1920x1080 becomes 640x360.
SHRINK = 3


def mini_folder() -> Path:
    """``datasets/mini`` of the checkout.

    Raises:
        InputError: the package was installed without the repository around it.
    """
    folder = Path(__file__).resolve().parents[2] / "datasets" / "mini"
    if not folder.is_dir():
        raise InputError(
            f"{folder}: not there; the mini set is part of the repository, so run from a checkout"
        )
    return folder


def make_mini(source: Path, target: Path) -> int:
    """Shrinks the ``budgie_*`` photographs of a folder by MATLAB's bicubic and writes them as
    lossless WebP.

    Args:
        source: folder with the photographs of Debian's package budgie-backgrounds (CC0-1.0),
            downscaled to some 1920x1080 pixels.
        target: folder to write ``*.webp`` to.

    Returns:
        Bytes written.

    Raises:
        InputError: there are none in the folder.
    """
    paths = [path for path in list_images(source) if path.stem.startswith("budgie_")]
    if not paths:
        raise InputError(f"{source}: no budgie_* pictures in it; name the folder that holds them")
    total = 0
    for path in paths:
        small = imresize_uint8(mod_crop(read_rgb(path), SHRINK), 1 / SHRINK)
        done, content = cv2.imencode(
            ".webp", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_WEBP_QUALITY, 101]
        )  # above 100: lossless
        if not done:
            raise WorkError(f"{path}: WebP encoding failed")
        write_file(target / f"{path.stem.removeprefix('budgie_')}.webp", content.tobytes())
        total += content.size
    return total
