"""Training states ``*.state``: network, moving average, optimizers, schedulers, random states,
position in the data."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from quantsr.errors import InputError
from quantsr.trained_files import checkpoint

STATE_VERSION = 2
"""Other versions are refused: a state is for resuming, not for archiving."""


def random_states() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's generators (all CUDA devices included), as plain
    values."""
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
    """Restores the states of `random_states`; those of CUDA devices that this machine does not have
    are ignored."""
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    name, words, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if torch.cuda.is_available():
        for device, state in enumerate(states.get("cuda", [])[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, device)


def load_state(path: str | Path) -> dict[str, Any]:
    """Reads a training state; the path of the file is added under ``path``.

    Raises:
        InputError: not a training state of this version of quantsr, or an entry has a wrong type.
    """
    content = checkpoint.load(path)
    version = content.get("state_version")
    if type(version) is not int or version != STATE_VERSION:
        raise InputError(
            f"{path}: not a training state of this quantsr; train with path.pretrain_network_g instead"
        )
    if "best" not in content or (type(content.get("iteration")) is int and content["iteration"] < 0):
        raise InputError(f"{path}: lacks 'best', or has an iteration below 0; use an earlier state")
    best = content["best"]
    entries = {**content, **({f"best.{k}": v for k, v in best.items()} if isinstance(best, dict) else {})}
    wanted = {**_STATE_ENTRIES, **(_BEST_ENTRIES if best is not None else {})}
    for name, kind in wanted.items():
        value = entries.get(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise InputError(
                f"{path}: {name} is {checkpoint.shown(value)}, not what quantsr writes; use an earlier state"
            )
    return {**content, "path": str(path)}


_STATE_ENTRIES: dict[str, Any] = {
    "iteration": int,
    "model": dict,
    "loader": dict,
    "random": dict,
    "validation_due": bool,
    "config_hash": str,
}
_BEST_ENTRIES: dict[str, Any] = {
    "best": dict,
    "best.metric": str,
    "best.value": (int, float),
    "best.iteration": int,
    "best.stage": int,
}


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
