"""`load`: a trained network from one file, without its option file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantsr.errors import InputError

if TYPE_CHECKING:
    from torch import nn


def load(name_or_path: str | Path) -> nn.Module:
    """A trained network in eval mode on the CPU, from (B, 3, H, W) in [0, 1] to (B, 3, H * s, W * s).

    Args:
        name_or_path: a checkpoint ``.pth`` of quantsr (its moving average is taken where there is one), a packed
            ``.safetensors``, the name or folder of a training run in ``experiments`` (its best network, else its latest), or the
            name of a network that comes with quantsr.

    Raises:
        InputError: no such file or run, or not one that says how to build its network.
    """
    path = resolve(name_or_path)
    if path.suffix == ".safetensors":
        from quantsr.deploy.module import to_module
        from quantsr.deploy.packing import load as load_packed

        return to_module(load_packed(path), path).eval()
    return _from_checkpoint(path)


def resolve(name_or_path: str | Path) -> Path:
    """The file that `load` reads for a path, the name of a training run or that of a network that comes with quantsr.

    Raises:
        InputError: there is none, the run has no checkpoint yet, or it is an exported graph.
    """
    from quantsr.deploy.upscaler import refuse_graph, shipped_file

    path = Path(name_or_path).expanduser()
    if path.is_file():
        refuse_graph(path)
        return path
    for run in (path, Path("experiments") / path):
        models = run / "models"
        for label in ("best", "latest"):
            file = models / f"net_g_{label}.pth"
            if file.is_file():
                return file
        if models.is_dir():
            raise InputError(f"{run}: this run has no checkpoint yet; train on, or name another")
    if shipped := shipped_file(name_or_path):
        return shipped
    raise InputError(
        f"{name_or_path}: no such checkpoint, no training run of that name in experiments, and no network that comes "
        "with quantsr"
    )


def architecture(name_or_path: str | Path) -> dict[str, Any]:
    """How the network in a file is built, as ``network_g`` in an option file: its ``type`` and the constructor's arguments.

    Args:
        name_or_path: see `load`.

    Raises:
        InputError: no such file or run, or not one that says how to build its network.
    """
    path = resolve(name_or_path)
    if path.suffix == ".safetensors":
        from quantsr.deploy.packing import load as load_packed

        return dict(load_packed(path).header.arch)
    from quantsr.engine import checkpoint

    ours = checkpoint.metadata(checkpoint.load(path), path)
    if ours is None or not ours.get("arch"):
        raise InputError(
            f"{path}: does not say how its network is built; use `quantsr test -opt FILE` with network_g and "
            "path.pretrain_network_g"
        )
    return dict(ours["arch"])


def _from_checkpoint(path: Path) -> nn.Module:
    from quantsr.engine import build

    arch = architecture(path)
    net = build.build_network(arch.pop("type"), arch)
    build.load_checkpoint(net, str(path), None)
    return net.eval()
