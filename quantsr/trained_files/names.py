"""Finding the file of a trained network by name: checkpoints, training runs, packed files, shipped
networks."""

from __future__ import annotations

import os
from pathlib import Path

from quantsr.errors import InputError

ZOO = Path(__file__).resolve().parents[1] / "zoo"
"""Folder of the packed networks that come with quantsr."""

GRAPHS = (".onnx", ".xml")
"""Suffixes of the graphs that `quantsr export` writes for other runtimes."""

CHECKPOINTS = (".pth", ".pt", ".ckpt")
"""Suffixes of files that `torch.save` writes."""

PACKED = ".safetensors"
"""Suffix of packed networks."""


def resolve(name_or_path: str | Path) -> Path:
    """The file of a trained network, given by path, by the name of a training run, or by a shipped
    network's name.

    For a run, this is ``net_g_best.pth`` where it exists, else ``net_g_latest.pth``.

    Raises:
        InputError: no such file, a run without a checkpoint yet, or an exported graph.
    """
    path = _path(name_or_path)
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


def find_packed(name_or_path: str | Path) -> Path:
    """The file of a packed network, given by path or by a shipped network's name.

    Raises:
        InputError: it is a checkpoint or an exported graph, or there is none; lists the shipped
            networks.
    """
    path = _path(name_or_path)
    refuse_graph(path)
    if path.suffix in CHECKPOINTS:
        if not path.is_file():
            raise InputError(f"{path}: there is no such file")
        raise InputError(
            f"{path}: is a checkpoint; convert it with 'quantsr export -m {path} -o NETWORK.safetensors'"
        )
    if path.suffix == PACKED or path.is_file():
        return path
    if named := shipped_file(name_or_path):
        return named
    raise InputError(
        f"model {name_or_path}: no such file or name (the networks that come with quantsr are {', '.join(shipped())}); "
        "give a packed file with --model FILE"
    )


def _path(name: str | Path) -> Path:
    """The path of that name. Raises InputError for one that no file system takes."""
    path = Path(os.path.expanduser(name))
    try:
        path.exists()
        Path("experiments", path, "models").exists()
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be looked for ({error}); name a trained network") from error
    return path


def refuse_graph(path: Path) -> None:
    """Raises InputError for an exported graph: the network it was made from cannot be read from
    it."""
    if path.suffix in GRAPHS and path.is_file():
        raise InputError(
            f"{path}: is a graph for other runtimes; give the .safetensors file it was made from, or write one with "
            "'quantsr export -m CKPT -o OUT.safetensors'"
        )


def shipped_file(name: str | Path) -> Path | None:
    """The file of a shipped network; None for any other name, and for any path with a folder."""
    file = ZOO / f"{name}{PACKED}"
    return file if Path(name).name == str(name) and file.is_file() else None


def shipped() -> list[str]:
    """Names of the networks that come with quantsr."""
    return sorted(file.stem for file in ZOO.glob(f"*{PACKED}"))
