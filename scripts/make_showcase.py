"""Makes docs/images/showcase.png, the first picture of the README: ``python
scripts/make_showcase.py``.

It shows crops of scikit-image's photographs (public domain and CC0), on which no network of the
package was trained, unlike those of datasets/mini. Needs numpy, opencv and openvino, and the three
PNG files of an installed scikit-image; no torch.
"""

from __future__ import annotations

import argparse
import hashlib
import struct
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from quantsr.commands.upscale import DEFAULT_MODEL
from quantsr.data.evaluation import skimage_pictures
from quantsr.data.images import read_rgb
from quantsr.data.resize import imresize_uint8, mod_crop
from quantsr.deploy.packed.packing import load
from quantsr.deploy.upscale.upscaler import Upscaler
from quantsr.errors import InputError
from quantsr.trained_files.names import find_packed

Picture = NDArray[np.uint8]

CROPS = {"astronaut": (12, 0), "coffee": (216, 324), "chelsea": (72, 120)}
"""Top and left of each row's crop in the ground truth; multiples of 12, so that they are at the
borders of LR pixels for x2, x3 and x4."""
SIDE = 96
ZOOM = 3
GAP = 8
HEAD, FOOT = 76, 40
INK, PALE = (32, 32, 32), (110, 110, 110)
FINGERPRINT = "quantsr network sha256"
"""Key of the PNG's text chunk with the digest of the network file."""


def psnr_y(result: Picture, truth: Picture, border: int) -> float:
    """PSNR in dB on the Y channel (ITU-R BT.601, 16..235) of RGB pictures, ``border`` pixels left
    out; BasicSR's protocol."""
    luma = [
        (picture[border:-border, border:-border] / 255.0) @ np.array([65.481, 128.553, 24.966]) + 16.0
        for picture in (result, truth)
    ]
    return float(20 * np.log10(255.0 / np.sqrt(np.mean((luma[0] - luma[1]) ** 2))))


def versions(truth: Picture, upscalers: Sequence[Upscaler]) -> tuple[list[Picture], list[str]]:
    """The columns of one row, whole pictures of the size of ``truth``, and the PSNR of all except
    the first and the last."""
    scale = upscalers[0].scale
    low = imresize_uint8(truth, 1 / scale)
    nearest = low.repeat(scale, axis=0).repeat(scale, axis=1)
    made = [imresize_uint8(low, scale), *(upscaler(low) for upscaler in upscalers)]
    notes = [f"{psnr_y(picture, truth, scale):.2f} dB" for picture in made]
    return [nearest, *made, truth], notes


def write_line(canvas: Picture, text: str, x: int, y: int, size: float, ink: tuple[int, int, int]) -> None:
    """Text centred at ``x`` on the baseline ``y``: drawn four times as large and downscaled, for
    smooth edges."""
    fine, base, start = 4, 48, 16
    page = np.zeros((72 * fine, 480 * fine), np.uint8)
    cv2.putText(
        page,
        text,
        (start * fine, base * fine),
        cv2.FONT_HERSHEY_DUPLEX,
        size * fine,
        255,
        fine + 1,
        cv2.LINE_AA,
    )
    page = cv2.resize(page, None, fx=1 / fine, fy=1 / fine, interpolation=cv2.INTER_AREA)
    rows, columns = np.flatnonzero(page.any(1)), np.flatnonzero(page.any(0))
    alpha = page[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1, None] / 255.0
    top, left = y - base + rows[0], x - alpha.shape[1] // 2
    part = canvas[top : top + alpha.shape[0], left : left + alpha.shape[1]]
    part[:] = np.rint(part * (1 - alpha) + np.array(ink) * alpha).astype(np.uint8)


def showcase(name: str) -> Picture:
    """The whole picture, uint8 RGB.

    Raises:
        InputError: no such network, or scikit-image is not installed.
    """
    model = load(find_packed(name))
    depths = model.header.depths
    upscalers = [Upscaler(model, depth=depth) for depth in sorted(depths)]
    scale, bits = model.header.scale, model.header.arch["nbits_w"]
    ours = [
        (
            f"ours, {bits} bit",
            f"{depth} of {max(depths)} blocks" if depth < max(depths) else f"all {depth} blocks",
        )
        for depth in sorted(depths)
    ]
    heads = [
        ("low resolution", f"1/{scale} of each side"),
        ("bicubic", "no network"),
        *ours,
        ("truth", "PSNR: Y, whole picture"),
    ]
    cell = SIDE * ZOOM
    canvas = np.full((HEAD + len(CROPS) * (cell + FOOT), len(heads) * (cell + GAP) - GAP, 3), 255, np.uint8)
    centres = [column * (cell + GAP) + cell // 2 for column in range(len(heads))]
    for x, (title, below) in zip(centres, heads, strict=True):
        write_line(canvas, title, x, 30, 1.0, INK)
        if below:
            write_line(canvas, below, x, 62, 0.8, PALE)
    for row, path in enumerate(skimage_pictures()):
        truth = mod_crop(read_rgb(path), scale)
        top, left = CROPS[path.stem]
        y = HEAD + row * (cell + FOOT)
        pictures, notes = versions(truth, upscalers)
        for x, picture, note in zip(centres, pictures, [path.stem, *notes, ""], strict=True):
            crop = picture[top : top + SIDE, left : left + SIDE]
            canvas[y : y + cell, x - cell // 2 : x + cell // 2] = crop.repeat(ZOOM, 0).repeat(ZOOM, 1)
            if note:
                write_line(canvas, note, x, y + cell + 28, 0.8, PALE)
    return canvas


def encode(picture: Picture, name: str) -> bytes:
    """A PNG with the fingerprint of the network file in a text chunk."""
    _, data = cv2.imencode(".png", picture[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    png = data.tobytes()
    body = b"tEXt" + f"{FINGERPRINT}\0{fingerprint(name)}".encode("latin-1")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return png[:33] + chunk + png[33:]  # after the signature and IHDR


def fingerprint(name: str) -> str:
    """SHA-256 of the packed file."""
    return hashlib.sha256(find_packed(name).read_bytes()).hexdigest()


def main() -> int:
    root = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=DEFAULT_MODEL, help="name or packed file of the network")
    parser.add_argument("-o", "--output", type=Path, default=root / "docs" / "images" / "showcase.png")
    args = parser.parse_args()
    try:
        content = encode(showcase(args.model), args.model)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_bytes(content)
    sys.stdout.write(f"{args.output}: {len(content) / 1e3:.0f} kB\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
