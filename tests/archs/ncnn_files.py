"""Small networks in ncnn's files, written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HALF, FULL = 0x01306B47, 0


def weight(values: NDArray[np.float32], *, half: bool = False) -> bytes:
    """A tagged weight, padded to 4 bytes."""
    data = values.astype(np.float16 if half else np.float32).tobytes()
    return np.uint32(HALF if half else FULL).tobytes() + data + bytes(-len(data) % 4)


def write(folder: Path, lines: Sequence[str], data: Sequence[bytes], name: str = "net") -> Path:
    """Write ``NAME.param`` and ``NAME.bin``; returns the former."""
    blobs = {word for line in lines for word in line.split()[4:] if "=" not in word}
    text = "\n".join(["7767517", f"{len(lines)} {len(blobs)}", *lines]) + "\n"
    path = folder / f"{name}.param"
    path.write_text(text, encoding="utf-8")
    path.with_suffix(".bin").write_bytes(b"".join(data))
    return path


def compact(folder: Path, *, half: bool = False, seed: int = 0) -> Path:
    """x2: two convolutions with PReLU between, a pixel shuffle, and the nearest picture added."""
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    last = rng.normal(size=(12, 4, 3, 3)).astype(np.float32) / 8
    biases = [rng.normal(size=n).astype(np.float32) for n in (4, 12)]
    slopes = rng.uniform(0, 0.5, 4).astype(np.float32)
    lines = [
        "Input data 0 1 data",
        "Split split 1 2 data base x",
        f"Convolution conv.0 1 1 x a 0=4 1=3 4=1 5=1 6={first.size}",
        "PReLU act 1 1 a b 0=4",
        f"Convolution conv.1 1 1 b c 0=12 1=3 4=1 5=1 6={last.size}",
        "PixelShuffle shuffle 1 1 c d 0=2",
        "Interp resize 1 1 base e 0=1 1=2.0 2=2.0",
        "BinaryOp add 2 1 d e output 0=0",
    ]
    data = [
        weight(first, half=half),
        biases[0].tobytes(),
        slopes.tobytes(),
        weight(last, half=half),
        biases[1].tobytes(),
    ]
    return write(folder, lines, data)
