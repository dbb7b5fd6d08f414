"""Checkpoints: written atomically, read without running code, errors that name the file.

Two kinds of file. A *network file* ``net_g_*.pth`` is ``{"params", "params_ema"?, "quantsr"}``: BasicSR's tools read
the first two keys, ``quantsr`` holds what is needed to rebuild the network (`describe`). A *training state*
``*.state`` is complete in itself: network, EMA, optimizer, scheduler, random states, position in the data.
"""

from __future__ import annotations

import io
import pickle
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantsr.engine.atomic import write_bytes
from quantsr.errors import InputError

FORMAT_VERSION = 1
"""Of the ``quantsr`` entry of a network file. A reader refuses newer ones."""

STATE_VERSION = 2
"""Of a training state. A reader refuses others: a state is for resuming, not for keeping."""


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


def describe(net: nn.Module, *, iteration: int, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The ``quantsr`` entry: architecture, ranking, depths, manifest, iteration, options and the version."""
    from quantsr import __version__
    from quantsr.quant import manifest

    options_of = getattr(net, "arch_options", None)
    return plain(
        {
            "format_version": FORMAT_VERSION,
            # BasicSR's networks do not know how they were built, but their options do.
            "arch": options_of() if options_of is not None else (options or {}).get("network_g"),
            "ranking": getattr(net, "ranking", None),
            "depths": getattr(net, "depths", None),
            "manifest": manifest(net),
            "iteration": iteration,
            "options": options,
            "version": __version__,
        }
    )


def network_file(
    net: nn.Module, ema: nn.Module | None, *, iteration: int, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a ``.pth`` holds: ``params``, ``params_ema`` where there is an EMA network, and ``quantsr``."""
    content: dict[str, Any] = {"params": cpu_state(net)}
    if ema is not None:
        content["params_ema"] = cpu_state(ema)
    content["quantsr"] = describe(net, iteration=iteration, options=options)
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


def random_states() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators (all CUDA devices included), as plain values."""
    version, keys, gauss = random.getstate()
    legacy: Any = np.random.get_state()  # noqa: NPY002 - this generator, since libraries draw from it
    name, words, position, has_gauss, cached = legacy
    states: dict[str, Any] = {
        "python": [version, list(keys), gauss],
        "numpy": [
            str(name),
            torch.from_numpy(words.astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Puts back what `random_states` read; states of CUDA devices that are not here are left out."""
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    name, words, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available():
        for device, state in enumerate(states.get("cuda", [])[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, device)


def load_state(path: str | Path) -> dict[str, Any]:
    """Reads a training state.

    Raises:
        InputError: not a training state of this version of quantsr.
    """
    content = load(path)
    if content.get("state_version") != STATE_VERSION:
        raise InputError(
            f"{path}: not a training state of this quantsr; train with path.pretrain_network_g instead"
        )
    return content


def states_in(folder: Path) -> list[Path]:
    """The training states in ``folder``, newest iteration first."""
    numbered = [
        (int(match[1]), path)
        for path in (folder.glob("*.state") if folder.is_dir() else ())
        if (match := re.fullmatch(r"(\d+)\.state", path.name))
    ]
    return [path for _, path in sorted(numbered, reverse=True)]


def keep_newest(folder: Path, count: int) -> None:
    """Removes all training states but the ``count`` of the highest iterations."""
    for path in states_in(folder)[count:]:
        path.unlink(missing_ok=True)
