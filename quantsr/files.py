"""Files that are either complete or absent: written under a temporary name beside the target,
synced, then renamed; and reading of regular files, with a limit."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from quantsr.errors import InputError, WorkError
from quantsr.locks import mark_in_use
from quantsr.temporary import PREFIX, SUFFIX

_NO_SUCH_PLACE = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,  # of a folder: a file or a link to nothing has its name
    errno.ENAMETOOLONG,
    errno.ELOOP,
)


MAX_TEXT = 1 << 26
"""Default of the largest file that `read_text` reads, in bytes."""


def open_at_once(path: str | os.PathLike[str], flags: int) -> int:
    """An ``opener`` for `open` that does not wait for the writer of a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_bytes(path: Path, *, limit: int) -> bytes:
    """The content of a regular file of at most ``limit`` bytes.

    Raises:
        OSError: it cannot be read, is larger, or is a pipe or device.
    """
    with open(path, "rb", opener=open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        if status.st_size > limit:
            raise OSError(errno.EFBIG, f"it has {status.st_size:,} bytes, more than {limit:,}", str(path))
        return file.read(limit)


def read_text(path: Path, *, encoding: str = "utf-8") -> str:
    """The content of a regular text file of at most `MAX_TEXT` bytes.

    Raises:
        OSError: see `read_bytes`.
        UnicodeDecodeError: it is no text.
    """
    return read_bytes(path, limit=MAX_TEXT).decode(encoding)


def sync_folder(folder: Path) -> None:
    """Makes a rename in ``folder`` survive a power failure (a no-op where folders cannot be
    opened)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_impossible(error: OSError) -> bool:
    """Whether a path can never be written: its name is too long, a circle of links, that of a
    folder, or below a file."""
    return error.errno in _NO_SUCH_PLACE


@contextlib.contextmanager
def _work_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = f"{path}: cannot be written ({error.strerror or error})"
        if is_impossible(error):
            raise InputError(f"{what}; choose another name") from error
        raise WorkError(f"{what}; an earlier file of this name is intact") from error


@contextlib.contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A file to write, which replaces ``path`` at the end: readers see the old file or the complete
    new one.

    Without ``sync``, a power failure soon after may truncate the new file.

    Raises:
        OSError: the disk is full, the folder is missing or not writable, ``path`` is a device, pipe
            or socket ... An earlier ``path`` is unchanged then.
    """
    _refuse_special(path)
    handle, name = tempfile.mkstemp(prefix=PREFIX, suffix=SUFFIX, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            mark_in_use(handle)
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    if sync:
        sync_folder(path.parent)


def _refuse_special(path: Path) -> None:
    """Raises OSError where ``path`` is no file that may be replaced: root could rename a file over
    /dev/null or over the link /dev/stdout."""
    parent = os.path.realpath(path.parent)
    in_system = parent in ("/dev", "/dev/fd") or f"{parent}/".startswith(("/proc/", "/sys/"))
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            in_system = True
    if in_system:
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def replace_file(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Writes ``path`` atomically; see `replacing`."""
    with replacing(path, sync=sync) as file:
        file.write(content)


def write_bytes(path: Path, content: bytes, *, sync: bool = True) -> None:
    """`replace_file`, making the folder where it is missing.

    Raises:
        WorkError: names the file and the reason. An earlier ``path`` is unchanged then.
        InputError: the same, for a path that is impossible.
    """
    with _work_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content, sync=sync)


def write_text(path: Path, content: str) -> None:
    """`write_bytes` for text, as UTF-8; parts of file names that are not text appear as
    ``\\udce9``."""
    write_bytes(path, content.encode("utf-8", "backslashreplace"))


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def failures_named(path: Path) -> Iterator[None]:
    """Turns an OSError raised while `path` is written into one line that names the file.

    Raises:
        InputError: the path is impossible: its folder is missing, or see `is_impossible`.
        WorkError: the disk is full, the folder is not writable ...
    """
    try:
        yield
    except OSError as error:
        what = f"{path}: cannot be written ({error.strerror or error})"
        if is_impossible(error):
            raise InputError(f"{what}; create the folder or choose another name") from error
        raise WorkError(f"{what}; free some space or choose another folder") from error


def write_atomically(path: str | Path, data: bytes) -> None:
    """Write `data` to `path`: to a temporary file beside it, synced, then renamed over it.

    A reader sees the old file or the new one, never a part. Raises as `failures_named`.
    """
    path = Path(path)
    with failures_named(path):
        replace_file(path, data)
