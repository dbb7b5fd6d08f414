"""Crops cut on the device that trains, from pictures that lie there: only a few integers a crop
cross over."""

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
"""What `auto` lets the pictures take of the memory that is free on the device."""


def fits(dataset: CroppedImageDataset, device: torch.device, wanted: bool | Literal["auto"]) -> bool:
    """Whether the pictures are to be kept on ``device``, as the option ``device_cache`` says.

    Raises:
        InputError: it says so, but they are not all in memory.
    """
    if wanted is True:
        if not dataset.in_memory:
            raise InputError(
                "device_cache: true needs all pictures in memory; raise cache_budget_mb or set device_cache: auto"
            )
        return True
    if wanted is False or device.type != "cuda" or not dataset.in_memory:
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return dataset.store.nbytes <= SHARE_OF_FREE_MEMORY * free


class DeviceCrops:
    """The pictures of a data set on ``device``, and its batches cut there: those of its
    ``__getitems__``, bit for bit.

    Args:
        dataset: with all pictures in memory.
        device: where they are copied to, as one uint8 tensor.
    """

    def __init__(self, dataset: CroppedImageDataset, device: torch.device) -> None:
        self.dataset, self.device = dataset, device
        self.levels = torch.empty(dataset.store.nbytes, dtype=torch.uint8, device=device)
        # by a number, CUDA multiplies by its reciprocal
        self._white = torch.tensor(255.0, device=device)
        self._channels = torch.arange(3, device=device)[:, None, None]
        self._lines = {key: torch.arange(side, device=device) for key, side in dataset.sides.items()}
        # Of each kind and picture: where its planes begin in `levels`, their height and their
        # width.
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

    def plan(self, indices: Sequence[int]) -> Tensor:
        """How samples lie in `levels`: (kinds, B, 4) int64, the address of a crop's first pixel and
        what leads from there to the next plane, to the next row and to the next column."""
        places = [self.dataset.place(index) for index in indices]
        picture, top, left, mirror, upset, turn = np.array(places, np.int64).T
        small = self.dataset.sides["lq"]
        plan = np.empty((len(self._tables), len(places), 4), np.int64)
        for rows, (key, side) in zip(plan, self.dataset.sides.items(), strict=True):
            begin, height, width = self._tables[key][picture].T
            factor = side // small
            y = top * factor + upset * (side - 1)
            x = left * factor + mirror * (side - 1)
            down, right = np.where(upset, -width, width), np.where(mirror, -1, 1)
            rows[:, 0] = begin + y * width + x
            rows[:, 1] = height * width
            rows[:, 2] = np.where(turn, right, down)
            rows[:, 3] = np.where(turn, down, right)
        return torch.from_numpy(plan)

    def cut(self, plan: Tensor) -> dict[str, Tensor]:
        """The batch of a `plan`: float32 in [0, 1] on the device, as
        `CroppedImageDataset.__getitems__` makes it on the CPU."""
        plan = plan.to(self.device, non_blocking=True)
        batch = {}
        for rows, (key, line) in zip(plan, self._lines.items(), strict=True):
            first, plane, down, right = rows[:, :, None, None, None].unbind(1)
            at = first + self._channels * plane + line[:, None] * down + line * right
            batch[key] = self.levels[at].float() / self._white
        return batch
