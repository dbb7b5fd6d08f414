"""The architecture of the network in a trained file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantsr.errors import InputError
from quantsr.trained_files import checkpoint, packed_header
from quantsr.trained_files.names import PACKED, resolve


def architecture(name_or_path: str | Path) -> dict[str, Any]:
    """The section ``network_g`` of the network: its ``type`` and the constructor's arguments.

    Args:
        name_or_path: see `quantsr.load`.

    Raises:
        InputError: no such file or run, or a file without a description of its network.
    """
    path = resolve(name_or_path)
    if path.suffix == PACKED:
        arch = packed_header.read(path).get("arch")
        if not isinstance(arch, dict):
            raise InputError(f"{path}: is corrupt: its header names no network; fetch or export it again")
        return arch
    return in_checkpoint(checkpoint.load(path), path)


def in_checkpoint(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """As `architecture`, for a checkpoint that was read before.

    Raises:
        InputError: the content has no description of its network.
    """
    ours = checkpoint.metadata(content, path)
    if ours is None or not ours.get("arch"):
        raise InputError(
            f"{path}: has no description of its network; use `quantsr test -opt FILE` with network_g and "
            "path.pretrain_network_g"
        )
    return dict(ours["arch"])
