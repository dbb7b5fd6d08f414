"""The device of a run, and random seeds."""

from __future__ import annotations

import logging
import random

import numpy as np
import torch

from quantsr import cpu
from quantsr.hardware.processes import World

logger = logging.getLogger(__name__)


def resolve_device(num_gpu: int | str, world: World | None = None) -> torch.device:
    """The device for ``num_gpu``: with ``"auto"`` a GPU where there is one, with 0 the CPU, with
    n > 0 a GPU.

    Without a GPU the CPU is used, with a warning if ``num_gpu`` > 0. Each process uses one GPU,
    that of its local rank in ``world``; several GPUs need several processes (torchrun).
    """
    world = world or World()
    if num_gpu == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if num_gpu != "auto":
            logger.warning("num_gpu: %s, but no CUDA device is here; running on the CPU", num_gpu)
        return torch.device("cpu")
    if isinstance(num_gpu, int) and num_gpu > 1 and world.size == 1:
        logger.warning(
            "num_gpu: %d, but this is one process and drives one GPU; start with `torchrun --nproc-per-node %d "
            "-m quantsr.train -opt ...` to use all",
            num_gpu,
            num_gpu,
        )
    device = torch.device("cuda", world.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def bf16_is_faster(device: torch.device) -> bool:
    """Whether ``device`` trains faster in bf16 than in FP32.

    An emulated bf16 convolution takes up to 20 times as long as one in FP32. With AVX-512's bf16
    instructions, but without AMX (which virtual machines may hide), a training step takes up to 1.2
    times as long on Intel's processors (docs/reference/speed.md).
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    name, flags = cpu.describe()
    return bool(flags & (cpu.BF16 if "intel" not in name.lower() else {"amx_bf16"}))


def seed_everything(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - libraries draw from it
    torch.manual_seed(seed)
