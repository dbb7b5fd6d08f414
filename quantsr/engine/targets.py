"""A network's outputs for the pictures of a training set, as further targets (`dataroot_soft`)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from quantsr import terminal
from quantsr.data.images import encode_png, read_rgb
from quantsr.data.resize import imresize_uint8, mod_crop
from quantsr.engine.selfensemble import self_ensemble
from quantsr.files import replace_file
from quantsr.pictures.listing import list_images


@torch.inference_mode()
def write_targets(
    net: nn.Module, scale: int, data: Path, out: Path, *, ensemble: bool, device: torch.device
) -> int:
    """Shrink every picture of a folder by MATLAB's bicubic, as the training data set does, upscale
    it, and write it as a PNG of the same name. Pictures that are in `out` are kept.

    Args:
        net: from (1, 3, h, w) in [0, 1] to (1, 3, h * scale, w * scale).
        scale: upscaling factor.
        data: folder of ground-truth pictures.
        out: folder to write to, made where it is absent.
        ensemble: whether the mean over eight flips and rotations is written.
        device: where the network runs.

    Returns:
        How many pictures were written.

    Raises:
        InputError: there is no picture, or one cannot be read.
        WorkError: one cannot be written.
    """
    net = net.eval().to(device)
    pictures = list_images(data)
    out.mkdir(parents=True, exist_ok=True)
    absent = [path for path in pictures if not (out / f"{path.stem}.png").exists()]
    for path in tqdm(absent, unit="picture", disable=not terminal.has_terminal()):
        small = imresize_uint8(mod_crop(read_rgb(path), scale), 1 / scale)
        x = torch.from_numpy(small).to(device).permute(2, 0, 1)[None].float() / 255
        output = self_ensemble(lambda x: (net(x),), x)[0] if ensemble else net(x)
        large = output[0].permute(1, 2, 0)
        levels = (large * 255 + 0.5).clamp(0, 255).byte().cpu().numpy()
        replace_file(out / f"{path.stem}.png", encode_png(levels, 1))
    return len(absent)
