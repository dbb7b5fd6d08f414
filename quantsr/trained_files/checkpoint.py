"""Checkpoints: written atomically, read without running code; errors name the file.

A checkpoint ``net_g_*.pth`` is ``{"params", "params_ema"?, "quantsr"}``: BasicSR's tools read the first two keys,
``quantsr`` says how the network is built (`quantsr.engine.network_file`).
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantsr.errors import InputError
from quantsr.files import write_bytes

FORMAT_VERSION = 1
"""Of the ``quantsr`` entry of a network file. A reader refuses newer ones."""


def plain(value: Any) -> Any:
    """``value`` with only dicts, lists, tensors, strings, numbers, bools and None in it (tuples become lists)."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str, Tensor)):
        return value
    return str(value)


def cpu_state(net: nn.Module) -> dict[str, Tensor]:
    """The state dict of ``net`` on the CPU."""
    return {name: tensor.detach().cpu() for name, tensor in net.state_dict().items()}


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Writes ``content`` atomically.

    Raises:
        WorkError: it could not be written; an earlier file of that name is intact.
    """
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_bytes(path, buffer.getvalue())


def load(path: str | Path) -> dict[str, Any]:
    """Reads a file of `save` (or of BasicSR) onto the CPU, never running code that is in it.

    Raises:
        InputError: the file is absent, truncated, foreign or needs code to be read.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: not a checkpoint, or one with objects other than tensors, which are never unpickled; "
            "save its state dict alone"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # torch's reader of old files fails by whatever the damage leads it to
        raise InputError(f"{path}: truncated or not a checkpoint; use an earlier one") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a state dict")
    return content


def parameters(
    content: Mapping[str, Any], path: str | Path, param_key: str | None = None
) -> dict[str, Tensor]:
    """The state dict in a loaded network file, with DataParallel's ``module.`` removed.

    ``param_key`` None takes ``params_ema`` where present, else ``params``, else the root (a bare state dict). As in
    BasicSR an absent ``params_ema`` falls back to ``params``.

    Raises:
        InputError: no state dict under ``param_key``.
    """
    if param_key is None:
        found: Any = content.get("params_ema", content.get("params", content))
    elif param_key in content:
        found = content[param_key]
    elif param_key == "params_ema" and "params" in content:
        found = content["params"]
    elif all(isinstance(value, Tensor) for value in content.values()):
        found = content
    else:
        keys = ", ".join(sorted(content))
        raise InputError(f"{path}: no entry {param_key!r}, only {keys}; set path.param_key_g")
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"{path}: the entry {param_key or 'params'!r} is not a state dict of tensors")
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def metadata(content: Mapping[str, Any], path: str | Path) -> dict[str, Any] | None:
    """The ``quantsr`` entry, None where the file is not ours.

    Raises:
        InputError: written by a newer quantsr.
    """
    entry = content.get("quantsr")
    if not isinstance(entry, dict):
        return None
    version = entry.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise InputError(
            f"{path}: checkpoint format {version}, this quantsr reads up to {FORMAT_VERSION}; upgrade"
        )
    return entry
