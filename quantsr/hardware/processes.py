"""Distributed processes: detecting the environment of torchrun or Slurm, joining and leaving the
process group, and collective operations.

Values of the environment are checked, and never passed to a shell.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import os
import re
import socket
import subprocess
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from quantsr.errors import InputError

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class World:
    """Rank of this process, and the number of processes of the run.

    Attributes:
        rank: of this process; rank 0 writes the files.
        size: number of processes.
        local_rank: rank on this machine, which selects the GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process logs, validates and writes."""
        return self.rank == 0


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not re.fullmatch(r"\d{1,6}", value):
        raise InputError(
            f"environment variable {name}: a number is needed, not {value!r}; start with torchrun or srun"
        )
    return int(value)


def detect(launcher: str = "none", environment: Mapping[str, str] | None = None) -> World:
    """Reads the rank of this process from the environment.

    Args:
        launcher: ``none`` (a single process, or torchrun where it is detected), ``pytorch``
            (torchrun is required) or ``slurm`` (srun).
        environment: ``os.environ`` if None.

    Raises:
        InputError: the launcher's variables are absent or not numbers.
    """
    environment = os.environ if environment is None else environment
    if launcher == "slurm":
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
    elif launcher == "pytorch" or "TORCHELASTIC_RUN_ID" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    else:
        return World()
    rank, size, local_rank = (_number(environment, name) for name in names)
    if rank >= size:
        raise InputError(f"environment: {names[0]} is {rank}, but {names[1]} only {size}")
    return World(rank, size, local_rank)


def _first_slurm_host(nodes: str) -> str:
    """The first host of a Slurm node list, expanded by scontrol (run without a shell)."""
    if not re.fullmatch(r"[A-Za-z0-9_.,\-\[\]]+", nodes) or nodes.startswith("-"):
        raise InputError(
            f"environment variable SLURM_NODELIST: not a list of nodes: {nodes!r}; set MASTER_ADDR"
        )
    try:
        done = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(f"scontrol cannot expand SLURM_NODELIST ({error}); set MASTER_ADDR") from error
    return done.stdout.split()[0]


def join(world: World, *, backend: str, port: int = 29500) -> None:
    """Joins the process group over ``backend``, ``nccl`` or ``gloo``; does nothing for a single
    process.

    ``port`` is that of the first process, where the environment has no ``MASTER_PORT``. Processes
    wait up to two hours for each other, since only the first one writes files, and the pictures of
    a validation may be distributed unevenly.

    Raises:
        InputError: the environment has no address of the first process, or one that cannot be
            reached.
    """
    if world.size == 1 or dist.is_initialized():
        return
    if "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"] = _first_slurm_host(os.environ.get("SLURM_NODELIST", ""))
    os.environ.setdefault("MASTER_PORT", str(port))
    if not 0 < _number(os.environ, "MASTER_PORT") < 2**16:
        raise InputError(
            f"environment variable MASTER_PORT: {os.environ['MASTER_PORT']} is no port; give 1 to 65535"
        )
    try:
        socket.getaddrinfo(os.environ["MASTER_ADDR"], None)
    except OSError as error:  # torch would retry until its timeout
        raise InputError(
            f"environment variable MASTER_ADDR: {os.environ['MASTER_ADDR']!r} is no machine's name ({error}); correct it"
        ) from error
    try:
        dist.init_process_group(
            backend,
            rank=world.rank,
            world_size=world.size,
            timeout=datetime.timedelta(hours=2),
        )
    except (RuntimeError, ValueError) as error:  # torch's DistError is a RuntimeError
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise InputError(
            f"processes cannot meet at {where} ({str(error).splitlines()[0]}); check MASTER_ADDR and MASTER_PORT"
        ) from error
    logger.info("process %d of %d", world.rank, world.size)


def leave() -> None:
    """Leaves the process group, if joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def agree(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is true in any process (all must call it)."""
    if not dist.is_initialized():
        return flag
    value = torch.tensor(float(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def gather_batch(part: Tensor) -> Tensor:
    """The parts (B, ...) of all processes, in the order of ranks, as one batch (all must call it,
    with equal shapes)."""
    if not dist.is_initialized():
        return part
    parts = [
        torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())
    ]
    dist.all_gather(parts, part.contiguous())
    return torch.cat(parts)


def share_state(net: nn.Module) -> None:
    """Gives ``net`` the parameters and buffers that it has in the first process (all must call
    it)."""
    if not dist.is_initialized():
        return
    state = {name: tensor.detach().contiguous() for name, tensor in net.state_dict().items()}
    for tensor in state.values():
        dist.broadcast(tensor, 0)
    net.load_state_dict(state)  # makes every quantizer read its sign and state again


def gather(value: T) -> list[T]:
    """The values of all processes, in the order of ranks (all must call it); they are pickled."""
    if not dist.is_initialized():
        return [value]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return found
