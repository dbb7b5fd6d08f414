"""Pairs of pictures whose low resolution is made by Real-ESRGAN's degradations (Wang et al., ICCVW
2021): BasicSR's data set of kernels, and what BasicSR leaves to its training step."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from quantsr.basicsr_compat import DATASET_REGISTRY, degradations
from quantsr.errors import InputError
from quantsr.pictures.listing import list_images

_KERNELS = ["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]
_PROBABILITIES = [0.45, 0.25, 0.12, 0.03, 0.12, 0.03]
DEFAULTS: Mapping[str, Any] = {
    "blur_kernel_size": 21,
    "kernel_list": _KERNELS,
    "kernel_prob": _PROBABILITIES,
    "sinc_prob": 0.1,
    "blur_sigma": [0.2, 3],
    "betag_range": [0.5, 4],
    "betap_range": [1, 2],
    "blur_kernel_size2": 21,
    "kernel_list2": _KERNELS,
    "kernel_prob2": _PROBABILITIES,
    "sinc_prob2": 0.1,
    "blur_sigma2": [0.2, 1.5],
    "betag_range2": [0.5, 4],
    "betap_range2": [1, 2],
    "final_sinc_prob": 0.8,
    "resize_prob": [0.2, 0.7, 0.1],
    "resize_range": [0.15, 1.5],
    "gaussian_noise_prob": 0.5,
    "noise_range": [1, 30],
    "poisson_scale_range": [0.05, 3],
    "gray_noise_prob": 0.4,
    "jpeg_range": [30, 95],
    "second_blur_prob": 0.8,
    "resize_prob2": [0.3, 0.4, 0.3],
    "resize_range2": [0.3, 1.2],
    "gaussian_noise_prob2": 0.5,
    "noise_range2": [1, 25],
    "poisson_scale_range2": [0.05, 2.5],
    "gray_noise_prob2": 0.4,
    "jpeg_range2": [30, 95],
}
"""BasicSR's keys with the values of the published option file."""

_MODES = ("area", "bilinear", "bicubic")
_MARGIN = 32  # pixels around a crop that its degradations read: each of three kernels reaches 10


@dataclass(frozen=True)
class Stage:
    """One of the two degradations: blur, another size, noise, JPEG."""

    blur_prob: float
    resize_prob: list[float]
    """Of a larger, a smaller and the same size."""
    resize_range: list[float]
    gaussian_noise_prob: float
    """Else Poisson noise."""
    noise_range: list[float]
    """Standard deviation of Gaussian noise, of 255."""
    poisson_scale_range: list[float]
    gray_noise_prob: float
    jpeg_range: list[float]
    """Quality."""

    @classmethod
    def of(cls, opt: Mapping[str, Any], suffix: str, blur_prob: float) -> Stage:
        """That of BasicSR's keys with a suffix."""
        keys = [name for name in cls.__dataclass_fields__ if name != "blur_prob"]
        return cls(blur_prob, **{key: opt[key + suffix] for key in keys})


@DATASET_REGISTRY.register()
class RealESRGANDataset(Dataset[dict[str, Tensor]]):
    """BasicSR's data set of this name with the degradations done, on the CPU.

    Draws from the global random states of Python, NumPy and torch, one sample at a time.

    Args:
        opt: BasicSR's keys of this data set, and those of its training step: `DEFAULTS` where they
            are not given. ``meta_info`` may be left out: then all pictures of ``dataroot_gt``.

    Raises:
        InputError: ``gt_size`` is no multiple of the scale or larger than 400, or there are no
            pictures.
    """

    def __init__(self, opt: dict[str, Any]) -> None:
        opt = {**DEFAULTS, **opt}
        self.scale, self.gt_size = int(opt["scale"]), int(opt.get("gt_size") or 0)
        if not 0 < self.gt_size <= 400 or self.gt_size % self.scale:
            raise InputError(
                f"gt_size: {self.gt_size} is no multiple of scale {self.scale} up to 400; change one of them"
            )
        self.stages = (Stage.of(opt, "", 1.0), Stage.of(opt, "2", float(opt["second_blur_prob"])))
        listed = opt.get("meta_info")
        self.kernels = degradations().RealESRGANDataset({**opt, "meta_info": listed or os.devnull})
        if not listed:
            self.kernels.paths = [str(path) for path in list_images(Path(opt["dataroot_gt"]))]
        self.paths = self.kernels.paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """``lq`` (3, h, w) and ``gt`` (3, s*h, s*w), float32 in [0, 1], RGB."""
        sample = self.kernels[index]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(random.getrandbits(32))
            side = min(self.gt_size + 2 * _MARGIN - (2 * _MARGIN) % self.scale, 400 - 400 % self.scale)
            gt = _cropped(sample["gt"][None], side)
            lq = degraded(gt, sample, self.stages, self.scale)
            top, left = (random.randrange((side - self.gt_size) // self.scale + 1) for _ in range(2))
            low = self.gt_size // self.scale
            lq = lq[..., top : top + low, left : left + low]
            top, left = top * self.scale, left * self.scale
            gt = gt[..., top : top + self.gt_size, left : left + self.gt_size]
        return {"lq": lq[0].contiguous(), "gt": gt[0].contiguous()}


@torch.no_grad()
def degraded(gt: Tensor, kernels: Mapping[str, Tensor], stages: tuple[Stage, Stage], scale: int) -> Tensor:
    """The low resolution of pictures (1, 3, H, W) in [0, 1]: (1, 3, H / scale, W / scale), of whole
    numbers over 255.

    Args:
        kernels: ``kernel1`` and ``kernel2`` of the two stages and ``sinc_kernel``, (21, 21) each.
        stages: their settings.
    """
    run = degradations()
    low = (gt.shape[2] // scale, gt.shape[3] // scale)

    def sharpened(x: Tensor) -> Tensor:
        """Of the wanted size, with the rings of the last filter."""
        resized = F.interpolate(x, size=low, mode=random.choice(_MODES))
        return run.filter2D(resized, kernels["sinc_kernel"][None])

    x = gt
    for stage, kernel, size in zip(stages, ("kernel1", "kernel2"), (tuple(gt.shape[2:]), low), strict=True):
        if np.random.uniform() < stage.blur_prob:  # noqa: NPY002
            x = run.filter2D(x, kernels[kernel][None])
        factor = _factor(stage)
        sides = [max(1, int(side * factor)) for side in size]
        x = _noisy(F.interpolate(x, size=sides, mode=random.choice(_MODES)), stage, run)
        if stage is stages[0]:
            x = _compressed(x, stage, run)
    last = stages[1]
    x = (
        _compressed(sharpened(x), last, run)
        if random.random() < 0.5
        else sharpened(_compressed(x, last, run))
    )
    return (255 * x).round().clamp(0, 255) / 255


def _factor(stage: Stage) -> float:
    """Of the sides."""
    (kind,) = random.choices(("up", "down", "keep"), stage.resize_prob)
    low, high = stage.resize_range
    return {"up": random.uniform(1, high), "down": random.uniform(low, 1), "keep": 1.0}[kind]


def _noisy(x: Tensor, stage: Stage, run: SimpleNamespace) -> Tensor:
    how = {"clip": True, "rounds": False, "gray_prob": stage.gray_noise_prob}
    if random.random() < stage.gaussian_noise_prob:
        return run.gaussian(x, sigma_range=stage.noise_range, **how)
    return run.poisson(x, scale_range=stage.poisson_scale_range, **how)


def _compressed(x: Tensor, stage: Stage, run: SimpleNamespace) -> Tensor:
    quality = torch.tensor([random.uniform(*stage.jpeg_range)])
    return run.jpeg(x.clamp(0, 1), quality=quality)


def _cropped(x: Tensor, side: int) -> Tensor:
    """A random square of (1, 3, H, W)."""
    top, left = (random.randrange(size - side + 1) for size in x.shape[2:])
    return x[..., top : top + side, left : left + side]
