"""Checkpoints: written atomically, read without running code; errors name the file.

A checkpoint ``net_g_*.pth`` is ``{"params", "params_ema"?, "quantsr"}``: BasicSR's tools read the
first two keys, ``quantsr`` describes the network (`quantsr.engine.network_file`).
"""

from __future__ import annotations

import io
import logging
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quantsr.errors import InputError
from quantsr.files import write_bytes
from quantsr.trained_files.foreign import unwrapped

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Version of the ``quantsr`` entry of a network file. Newer versions are refused."""


def plain(value: Any) -> Any:
    """``value`` converted to dicts, lists, tensors, strings, numbers, bools and None only (tuples
    become lists)."""
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
        InputError: the file is absent, truncated, of another format, or needs code to be read.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a checkpoint")
    try:
        _refuse_compressed(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        structure = path.with_suffix(".param")
        if structure != path and structure.is_file():
            raise InputError(f"{path}: not a checkpoint; it seems to be of ncnn: name {structure}") from error
        raise InputError(
            f"{path}: not a checkpoint, or one with objects other than tensors, which are never unpickled; "
            "save its state dict alone"
        ) from error
    except InputError:
        raise
    except PermissionError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except MemoryError as error:
        raise InputError(f"{path}: needs more memory than there is; use another one") from error
    # torch's reader of old files can raise anything for a damaged file
    except Exception as error:
        raise InputError(f"{path}: truncated or not a checkpoint; use an earlier one") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a state dict")
    for key in content:
        if not isinstance(key, str):
            raise InputError(f"{path}: the entry {shown(key)} has no name; {_DAMAGED}")
    return content


_DAMAGED = "the file is damaged, use another one"


def shown(value: Any) -> str:
    """A short description of any value in a file, for messages."""
    if isinstance(value, (bool, int, float, str)):
        text = repr(value)
        return text if len(text) <= 40 else f"{text[:37]}..."
    return f"a {type(value).__name__}"


def _refuse_compressed(path: Path) -> None:
    """Refuses compressed archives, which may unpack to more than the memory; torch writes
    uncompressed ones.

    Raises:
        InputError: the archive is compressed.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise InputError(
                    f"{path}: is a compressed archive, which torch does not write; save it with torch"
                )


_PARAMETERS = ("params", "params_ema")


def parameters(
    content: Mapping[str, Any], path: str | Path, param_key: str | None = None
) -> dict[str, Tensor]:
    """The state dict in a loaded network file, without the prefixes that wrappers of torch add to
    its names.

    ``param_key`` None takes ``params_ema`` where present, else ``params``, else the root (a bare
    state dict), else the only entry that is a state dict, as of ``{"state_dict": ..., "epoch":
    ...}``. As in BasicSR an absent ``params_ema`` falls back to ``params``.

    Raises:
        InputError: no state dict under ``param_key``, or an entry of it is no tensor of numbers.
    """
    if param_key is None:
        key = next((name for name in reversed(_PARAMETERS) if name in content), None)
    elif param_key in content:
        key = param_key
    elif param_key == "params_ema" and "params" in content:
        key = "params"
    else:
        key = None
    if key is None and not (content and all(isinstance(value, Tensor) for value in content.values())):
        several = [name for name, value in content.items() if _is_state_dict(value)]
        if param_key not in (None, *_PARAMETERS) or len(several) != 1:
            keys = ", ".join(key[:40] for key in sorted(content)[:8]) or "nothing"
            wanted = param_key or "params"
            raise InputError(f"{path}: no entry {wanted!r}, only {keys}; set path.param_key_g")
        key = several[0]
        logger.info("%s: taking the state dict under %r", path, key)
    found = content if key is None else content[key]
    where = "" if key is None else f"{key}: "
    if not isinstance(found, Mapping):
        raise InputError(f"{path}: the entry {key!r} is {shown(found)}, not a state dict of tensors")
    for name, value in found.items():
        if fault := _fault(name, value):
            raise InputError(f"{path}: {where}{shown(name)} is {fault}, not a tensor of numbers; {_DAMAGED}")
    try:
        return unwrapped(found)
    except ValueError as error:
        raise InputError(f"{path}: {where}{error}; save the network alone") from error


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(v, Tensor) for v in value.values())


def _fault(name: Any, value: Any) -> str | None:
    """The reason why an entry cannot be a parameter or buffer; None where it can."""
    if not isinstance(name, str):
        return f"no name, but {type(name).__name__}"
    if not isinstance(value, Tensor):
        return shown(value)
    if value.layout != torch.strided or value.is_quantized or value.is_meta or value.is_nested:
        return f"a tensor of layout {value.layout}, quantized or without values"
    if value.is_complex():
        return "a tensor of complex numbers"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"a tensor of {value.numel():,} numbers of which most are not in the file"
    return None


_ENTRIES: dict[str, type] = {
    "arch": dict,
    "options": dict,
    "ranking": list,
    "iteration": int,
    "version": str,
}


def metadata(content: Mapping[str, Any], path: str | Path) -> dict[str, Any] | None:
    """The ``quantsr`` entry, None where the file is not one of quantsr.

    Raises:
        InputError: written by a newer quantsr, or with values of wrong types.
    """
    entry = content.get("quantsr")
    if not isinstance(entry, dict):
        return None
    version = entry.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise InputError(
            f"{path}: checkpoint format {shown(version)}, this quantsr reads up to {FORMAT_VERSION}; upgrade"
        )
    for name, kind in _ENTRIES.items():
        value = entry.get(name)
        if value is not None and (
            not isinstance(value, kind) or isinstance(value, bool) or not _is_plain(value)
        ):
            raise InputError(
                f"{path}: quantsr.{name} is {shown(value)}, not the {kind.__name__} that quantsr writes; {_DAMAGED}"
            )
    arch, ranking = entry.get("arch"), entry.get("ranking")
    if arch and not isinstance(arch.get("type"), str):
        raise InputError(f"{path}: quantsr.arch.type is {shown(arch.get('type'))}, not a name; {_DAMAGED}")
    if ranking is not None and not all(type(index) is int for index in ranking):
        raise InputError(f"{path}: quantsr.ranking is not a list of whole numbers; {_DAMAGED}")
    return entry


def _is_plain(value: Any, limit: int = 100_000) -> bool:
    """Whether it consists of dicts with string keys, lists, strings, numbers, bools and None only,
    at most ``limit`` of them."""
    todo = [value]
    for _ in range(limit):
        if not todo:
            return True
        item = todo.pop()
        if isinstance(item, dict):
            if not all(isinstance(key, str) for key in item):
                return False
            todo += item.values()
        elif isinstance(item, list):
            todo += item
        elif not (item is None or isinstance(item, (bool, int, float, str))):
            return False
        if len(todo) > limit:
            return False
    return False
