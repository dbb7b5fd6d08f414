"""The header of a packed network: JSON in the metadata of its safetensors file. Its fields are in
docs/reference/formats.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from quantsr.errors import InputError

FORMAT_VERSION = 3
"""Newest version of packed files, which have ranges of codes and programs; readers refuse newer
ones."""
FORMAT_WITHOUT_RANGES = 2
"""Version of files whose input codes are all those of their bits and whose type says their
program."""


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file, open for reading.

    Raises:
        InputError: it is missing, truncated, no safetensors file, or has a data type that numpy
            does not have.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; give a network written by 'quantsr export'")
    try:
        path.open("rb").close()  # safetensors reports every failure as a missing file
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    try:
        with safe_open(str(path), framework="numpy") as file:
            yield file
    except (SafetensorError, OSError, TypeError, AttributeError) as error:
        # safetensors reports data types that numpy lacks (bfloat16) as AttributeError or TypeError.
        raise InputError(
            f"{path}: is not a readable safetensors file ({error}); fetch or export it again"
        ) from error


def parse(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The header in a file's metadata; only its version field is checked.

    Raises:
        InputError: the file is not a packed network, its header is damaged, or of a newer version.
    """
    if "quantsr" not in metadata:
        raise InputError(
            f"{path}: is not a packed quantsr network; write one with 'quantsr export -m CKPT -o OUT.safetensors'"
        )
    try:
        raw = json.loads(metadata["quantsr"])
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is corrupt: its header is not JSON; fetch or export it again") from error
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise InputError(f"{path}: is corrupt: its header has no format version; fetch or export it again")
    if version > FORMAT_VERSION:
        raise InputError(
            f"{path}: has format version {version}, this quantsr reads up to {FORMAT_VERSION}; update quantsr"
        )
    return dict(raw)


def read(path: Path) -> dict[str, Any]:
    """The header of a packed file, without its tensors.

    Raises:
        InputError: see `opened` and `parse`.
    """
    with opened(path) as file:
        return parse(path, file.metadata() or {})
