"""What a training run sets up before its first iteration: process-wide switches, the data, the quantizers' first state."""

from __future__ import annotations

import logging

import torch
import torch.distributed as dist
from torch import nn

from quantsr import quant
from quantsr.config import Options, TrainOptions
from quantsr.data.loader import TrainLoader, build_train_loader
from quantsr.hardware.processes import World

logger = logging.getLogger(__name__)


def set_modes(options: TrainOptions) -> None:
    """Process-wide switches: compilation, exact arithmetic, cuDNN."""
    exact = options.exact_fp32
    quant.set_compile(options.compile)
    quant.set_exact_fp32(exact)
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
    """Gives the quantizers their first steps and signs, from the batches that training will begin with.

    Those that have them keep them. Processes end with the same values, those of the first.
    """
    if not quant.uncalibrated(net):
        return
    begin = loader.state_dict()
    batches = [next(loader)["lq"].to(device) for _ in range(options.calibration_batches)]
    loader.load_state_dict(begin)
    quant.calibrate(net, batches, options.initial_steps, only_missing=True)
    if dist.is_initialized():
        for tensor in net.state_dict().values():
            dist.broadcast(tensor, 0)
        net.load_state_dict(net.state_dict())  # every quantizer reads its sign and state again
    logger.info("quantizers calibrated on %d batches", len(batches))
