"""Upscale pictures with an installed quantsr, not with that of a checkout, without torch.

    python scripts/check_installed.py [ENGINE ...]

Engines are "native" (default), "openvino" and the like: each must run every network that comes with
quantsr. 99 % of the values must be within 1 of 255 of the first engine's
(docs/explanation/numerics.md says where engines differ), and the pictures must look like the input.
Prints a line for each network, and ends with exit code 1 at the first fault. Needs nothing but what
`pip install quantsr` installs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 40


def picture() -> np.ndarray:
    """Smooth shapes and edges, (SIDE, SIDE + 8, 3) uint8."""
    y, x = np.mgrid[0:SIDE, 0 : SIDE + 8].astype(np.float64)
    waves = [128 + 90 * np.sin(x / (3 + c)) * np.cos(y / (5 - c)) for c in range(3)]
    pixels = np.stack(waves, 2)
    pixels[(y - 18) ** 2 + (x - 24) ** 2 < 90] = (230, 200, 40)
    return np.rint(pixels).clip(0, 255).astype(np.uint8)


def upscaled(folder: Path, name: str, engine: str) -> np.ndarray:
    """The output of `quantsr upscale` as a process of its own."""
    target = folder / f"{name}_{engine}.png"
    words = ["upscale", str(folder / "in.png"), "-o", str(target), "--model", name, "--engine", engine]
    subprocess.run([sys.executable, "-m", "quantsr", *words], cwd=folder, check=True, stdout=subprocess.PIPE)
    return np.asarray(Image.open(target)).astype(int)


def main(engines: list[str]) -> None:
    import quantsr
    from quantsr.trained_files.names import shipped

    place = Path(quantsr.__file__).parent
    if "site-packages" not in place.parts:
        sys.exit(
            f"{place}: is a checkout; run the interpreter of an environment that quantsr is installed in"
        )
    small = picture()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([sys.executable, "-m", "quantsr", "--version"], cwd=folder, check=True)
        Image.fromarray(small).save(folder / "in.png")
        for network in shipped():
            results = [upscaled(folder, network, engine) for engine in engines]
            scale = results[0].shape[0] // SIDE
            blocks = results[0].reshape(SIDE, scale, SIDE + 8, scale, 3)
            off = np.abs(blocks.mean((1, 3)) - small).mean()
            apart = max((np.abs(results[0] - result) > 1).mean() for result in results)
            words = (
                f"{network}: x{scale} on {', '.join(engines)}; means of blocks are {off:.2f} off the input"
            )
            sys.stdout.write(words + "\n")
            if off > 3 or apart > 0.01:
                sys.exit(f"{network}: a wrong picture; engines differ in {apart:.2%} of the values")


if __name__ == "__main__":
    main(sys.argv[1:] or ["native"])
