"""Crops cut on the training device from pictures kept there: only a few integers per crop are
copied to it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from quantsr.data.crops import CroppedImageDataset
from quantsr.errors import InputError

logger = logging.getLogger(__name__)

SHARE_OF_FREE_MEMORY = 0.5
"""Share of the device's free memory that the pictures may take under ``device_cache: auto``."""


def fits(dataset: CroppedImageDataset, device: torch.device, device_cache: bool | Literal["auto"]) -> bool:
    """Whether the pictures are to be kept on ``device``, by the option ``device_cache``.

    Raises:
        InputError: ``device_cache`` is true, but not all pictures are in memory.
    """
    if device_cache is True:
        if not dataset.in_memory:
            raise InputError(
                "device_cache: true needs all pictures in memory; raise cache_budget_mb or set device_cache: auto"
            )
        return True
    if device_cache is False or device.type != "cuda" or not dataset.in_memory:
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return dataset.store.nbytes <= SHARE_OF_FREE_MEMORY * free


class DeviceCrops:
    """The pictures of a data set on ``device``, and its batches cut there: bit for bit those of the
    data set's ``__getitems__``.

    Args:
        dataset: a data set with all pictures in memory.
        device: the device that the pictures are copied to, as one uint8 tensor.
    """

    def __init__(self, dataset: CroppedImageDataset, device: torch.device) -> None:
        self.dataset, self.device = dataset, device
        self.levels = torch.empty(dataset.store.nbytes, dtype=torch.uint8, device=device)
        # A tensor: to divide by a Python number, CUDA multiplies by its reciprocal.
        self._max_level = torch.tensor(255.0, device=device)
        self._channels = torch.arange(3, device=device)[:, None, None]
        self._axes = {key: torch.arange(side, device=device) for key, side in dataset.sides.items()}
        # For each key and picture: the offset of its planes in `levels`, their height and width.
        self._tables = {key: np.empty((len(dataset), 3), np.int64) for key in dataset.sides}
        begin = 0
        for number in range(len(dataset)):
            pair = dataset.store.get(number)
            for key, table in self._tables.items():
                planes = torch.from_numpy(getattr(pair, key))
                self.levels[begin : begin + planes.numel()].copy_(planes.flatten())
                table[number] = begin, planes.shape[1], planes.shape[2]
                begin += planes.numel()
        logger.info("%d pictures are kept on %s, %d MiB", len(dataset), device, begin >> 20)

    def layout(self, indices: Sequence[int]) -> Tensor:
        """Offsets and strides of samples in `levels`: (K, B, 4) int64, for each of the K keys of a
        batch the offset of a crop's first pixel and its strides from plane to plane, from row to
        row and from column to column."""
        places = [self.dataset.place(index) for index in indices]
        picture, top, left, hflip, vflip, transpose = np.array(places, np.int64).T
        lq_side = self.dataset.sides["lq"]
        layout = np.empty((len(self._tables), len(places), 4), np.int64)
        for rows, (key, side) in zip(layout, self.dataset.sides.items(), strict=True):
            begin, height, width = self._tables[key][picture].T
            factor = side // lq_side
            y = top * factor + vflip * (side - 1)
            x = left * factor + hflip * (side - 1)
            down, right = np.where(vflip, -width, width), np.where(hflip, -1, 1)
            rows[:, 0] = begin + y * width + x
            rows[:, 1] = height * width
            rows[:, 2] = np.where(transpose, right, down)
            rows[:, 3] = np.where(transpose, down, right)
        return torch.from_numpy(layout)

    def cut(self, layout: Tensor) -> dict[str, Tensor]:
        """The batch of a `layout`: float32 in [0, 1] on the device, as
        `CroppedImageDataset.__getitems__` makes it on the CPU."""
        layout = layout.to(self.device, non_blocking=True)
        batch = {}
        for rows, (key, axis) in zip(layout, self._axes.items(), strict=True):
            first, plane, down, right = rows[:, :, None, None, None].unbind(1)
            at = first + self._channels * plane + axis[:, None] * down + axis * right
            batch[key] = self.levels[at].float() / self._max_level
        return batch
