"""Setting up a training run before its first iteration: process-wide modes, data, calibration."""

from __future__ import annotations

import logging

import torch
from torch import nn

from quantsr import cpu, quant
from quantsr.config import Options, TrainOptions
from quantsr.data.loader import TrainLoader, build_train_loader
from quantsr.hardware import processes
from quantsr.hardware.processes import World

logger = logging.getLogger(__name__)


def set_modes(options: TrainOptions, world: World) -> None:
    """Sets process-wide modes: compilation, exact FP32, the number of processes that share a batch,
    cuDNN and TF32, and that memory is kept from step to step."""
    exact = options.exact_fp32
    quant.set_processes(world.size)
    quant.set_compile(options.compile)
    quant.set_exact_fp32(exact)
    cpu.keep_memory()
    torch.backends.cudnn.benchmark = not exact
    torch.backends.cudnn.deterministic = exact
    torch.backends.cudnn.allow_tf32 = not exact
    torch.backends.cuda.matmul.allow_tf32 = not exact


def train_loader(options: Options, world: World, device: torch.device) -> TrainLoader:
    """This process's share of the training set, for ``device``."""
    return build_train_loader(
        options.datasets["train"],
        scale=options.scale,
        seed=options.manual_seed,
        rank=world.rank,
        world_size=world.size,
        device=device,
    )


def calibrate(net: nn.Module, loader: TrainLoader, options: TrainOptions, device: torch.device) -> None:
    """Calibrates the steps and signs of quantizers that have none, on the first batches of the
    training.

    Each process calibrates on the gathered batches of all processes, so that the result is that of
    a single process. In any case the network of the first process is then copied to the others.
    """
    if quant.uncalibrated(net):
        begin = loader.state_dict()
        batches = [
            processes.gather_batch(next(loader)["lq"].to(device)) for _ in range(options.calibration_batches)
        ]
        loader.load_state_dict(begin)
        quant.calibrate(net, batches, options.initial_steps, only_missing=True)
        logger.info("quantizers calibrated on %d batches", len(batches))
    processes.share_state(net)
