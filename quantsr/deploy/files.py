"""Writing files whole or not at all, for the commands that write where the user says."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from quantsr.engine.atomic import replace_file
from quantsr.errors import InputError, WorkError

_NO_SUCH_PLACE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)


@contextlib.contextmanager
def failures_named(path: Path) -> Iterator[None]:
    """What goes wrong while `path` is written, as one line that names it.

    Raises:
        InputError: there can be no such file: its folder is missing, or its name is that of a folder or too long.
        WorkError: the disk is full, the folder is not writable ...
    """
    try:
        yield
    except OSError as error:
        what = f"{path}: cannot be written ({error.strerror or error})"
        if error.errno in _NO_SUCH_PLACE:
            raise InputError(f"{what}; create the folder or choose another name") from error
        raise WorkError(f"{what}; free some space or choose another folder") from error


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`: to a temporary file beside it, synced, then renamed over it.

    A reader sees the old file or the new one, never a part. Raises as `failures_named`.
    """
    path = Path(path)
    with failures_named(path):
        replace_file(path, data)
