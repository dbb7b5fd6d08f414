"""Training a quantized network for a given time to give its float network's pictures."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

from torch import nn

from quantsr.archs import contract
from quantsr.config.queue import NETWORK_FILE, QueueEntry, QueueOptions
from quantsr.engine import build
from quantsr.engine.network_file import network_file
from quantsr.engine.queue import Queue
from quantsr.errors import InputError
from quantsr.files import write_text
from quantsr.trained_files import checkpoint
from quantsr.trained_files.checkpoint import plain

logger = logging.getLogger(__name__)

TRAINED_SCALES = (2, 3, 4)
"""Upscaling factors that option files of trainings can have."""

NAME = "network"
OPTIONS_FILE, FLOAT_FILE, START_FILE = "training.json", "float.pth", "start.pth"

_CROP = 32  # height and width of crops of low resolution, a multiple of usual attention windows
_BATCH = 8
_NEVER = 1_000_000  # iterations; the time decides


def finetune(
    quantized: nn.Module,
    teacher: nn.Module,
    data: Path,
    folder: Path,
    *,
    scale: int,
    seconds: float,
    resume_command: str,
) -> nn.Module:
    """Train `quantized` on the float network's pictures of crops, and return the trained network.

    Its loss is the L1 distance to the float network's output, at all depths together where the
    units are ranked; ground truth is not used. Muon with a cosine schedule fitted to the time;
    weights are a moving average. A call with the same networks
    and `folder` resumes, and trains for what is left of `seconds`; a finished training is not begun
    anew.

    Args:
        quantized: calibrated, built by its registered name (`quantsr.archs.contract`).
        teacher: the float network, likewise.
        data: folder of high-resolution pictures, which are shrunk by MATLAB's bicubic.
        folder: for the option file, both networks, logs and states.
        scale: upscaling factor, 2 to 4.
        seconds: of training, all calls together.
        resume_command: for the message of a call that a signal stopped.

    Raises:
        InputError: `folder` is of another quantization, or the pictures cannot be read.
        StopError: stopped by a signal.
        WorkError: the training failed.
    """
    options = json.dumps(_options(quantized, teacher, data, folder, scale), indent=2) + "\n"
    file = folder / OPTIONS_FILE
    if file.is_file() and (folder / START_FILE).is_file():
        if file.read_text(encoding="utf-8") != options:
            raise InputError(f"{folder}: is of another quantization; remove it, or name another -o")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        for name, net in ((FLOAT_FILE, teacher), (START_FILE, quantized)):
            checkpoint.save(folder / name, network_file(net, None, iteration=0))
        write_text(file, options)
    entry = QueueEntry(why="distillation from the float network", opt=str(file), budget=seconds)
    queue = QueueOptions(entries={NAME: entry})
    trained = folder / NAME / NETWORK_FILE
    if trained.is_file():
        logger.warning("%s: trained already; remove %s to train anew", trained, folder)
    # A call whose machine became slower ends before the last iteration; another then ends the run.
    for duration in (seconds, math.inf):
        if not trained.is_file():
            Queue(queue, folder, seconds=duration, last=True, resume_command=resume_command).run()
    net = build.build_described(plain(contract.of(quantized).arch), trained)
    build.load_content(net, checkpoint.load(trained), str(trained), None)
    return net.eval()


def _options(
    quantized: nn.Module, teacher: nn.Module, data: Path, folder: Path, scale: int
) -> dict[str, Any]:
    options: dict[str, Any] = {
        "name": NAME,
        "model_type": "QuantSRModel",
        "scale": scale,
        "num_gpu": "auto",
        "manual_seed": 0,
        "network_g": contract.of(quantized).arch,
        "network_teacher": contract.of(teacher).arch,
        "datasets": {
            "train": {
                "name": data.name,
                "type": "CroppedImageDataset",
                "dataroot_gt": str(data),
                "gt_size": _CROP * scale,
                "use_hflip": True,
                "use_rot": True,
                "batch_size_per_gpu": _BATCH,
                "dataset_enlarge_ratio": 100,
            }
        },
        "path": {
            "pretrain_network_g": str(folder / START_FILE),
            "pretrain_network_teacher": str(folder / FLOAT_FILE),
        },
        "train": {
            "total_iter": _NEVER,
            "stage1_fraction": 1.0 if contract.of(quantized).ranking is None else 0.0,
            "ema_decay": 0.998,
            "warmup_iter": 50,
            "step_lr": "relative",
            "step_lr_mult": 0.5,
            "optim_g": {"type": "Muon", "lr": 6e-4},
            "scheduler": {"type": "CosineAnnealingRestartLR", "eta_min": 1e-7},
            "pixel_opt": {"type": "L1Loss", "loss_weight": 0.0, "reduction": "mean"},
            "distill": {"output_weight": 1.0},
        },
        "logger": {"print_freq": 50, "use_tb_logger": False},
    }
    found: dict[str, Any] = plain(options)
    return found
