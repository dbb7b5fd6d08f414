"""Writing files whole or not at all, for the commands that write where the user says."""

from __future__ import annotations

from pathlib import Path

from quantsr.engine.atomic import replace_file
from quantsr.errors import InputError


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`: to a temporary file beside it, synced, then renamed over it.

    A reader sees the old file or the new one, never a part. Raises InputError where the folder is missing or not writable.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(
            f"{path}: cannot be written (No such file or directory); create the folder or choose another"
        )
    try:
        replace_file(path, data)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); free some space or choose another"
        ) from error
