"""Locks on folders: one process at a time writes into a run, and a lock ends with its process."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from quantsr.errors import WorkError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCKS_EXIST = fcntl is not None
"""Whether this system has file locks; `locked` then locks nothing."""

LOCK_NAME = ".quantsr.lock"
"""The lock file in a locked folder. It names the process with the lock, and is removed at the
end."""

# A link of this name in a folder of others must not make this process overwrite another file.
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
_TAKEN = (errno.EACCES, errno.EAGAIN)
_WAIT_S = 0.05  # between two attempts to take a lock
_held: set[tuple[int, int]] = set()  # device and inode of the lock files that this process holds


class FolderLockedError(WorkError):
    """Another process, or another part of this one, has locked the folder."""


@contextlib.contextmanager
def locked(folder: Path, shown: Path | None = None) -> Iterator[None]:
    """Holds the lock of ``folder``, which is made where it is missing, while entered; messages name
    ``shown`` instead.

    The lock is a POSIX record lock on an open file: the system releases it when the process ends,
    even if it is killed, and child processes do not inherit it. On file systems without such locks
    a warning is logged, and nothing is locked.

    Raises:
        FolderLockedError: the lock is taken; names the host and the process that holds it.
        OSError: the folder cannot be made, or nothing can be written there.
    """
    handle = _take(folder, shown or folder)
    if handle is None:
        yield
        return
    identity = _identity(os.fstat(handle))
    _held.add(identity)
    try:
        yield
    finally:
        _remove(folder / LOCK_NAME, identity)
        _held.discard(identity)
        with contextlib.suppress(OSError):
            os.close(handle)


@contextlib.contextmanager
def locked_in_turn(folder: Path) -> Iterator[None]:
    """As `locked`, but waits until the other process releases its lock: for work of moments.

    Raises:
        FolderLockedError: this process itself holds the lock.
        OSError: as `locked`.
    """
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(folder))
                break
            except FolderLockedError:
                if _is_held(folder):
                    raise
                time.sleep(_WAIT_S)
        yield


def _is_held(folder: Path) -> bool:
    """Whether this process itself holds the lock of ``folder``. Opening the lock file again and
    closing it would release that lock."""
    with contextlib.suppress(FileNotFoundError):
        return _identity((folder / LOCK_NAME).stat()) in _held
    return False


def _take(folder: Path, shown: Path) -> int | None:
    """An open lock file with the lock on it; None where the file system has no locks."""
    path = folder / LOCK_NAME
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        if _is_held(folder):
            raise FolderLockedError(_message(shown, f"process {os.getpid()}, which is this one"))
        try:
            handle = os.open(path, _FLAGS, 0o666)
        except FileNotFoundError:  # the folder was renamed meanwhile
            continue
        try:
            if not _lock(handle, shown):
                os.close(handle)
                return None
            # The last holder may have removed the file after it was opened here; then another file
            # has become the lock file.
            if _is_at(path, _identity(os.fstat(handle))):
                # on a full disk the file is empty, but locked
                with contextlib.suppress(OSError):
                    os.ftruncate(handle, 0)
                    os.pwrite(handle, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int, folder: Path) -> bool:
    """Whether the file is locked now; false where that is impossible here.

    Raises:
        FolderLockedError: another process holds it.
    """
    if fcntl is None:
        logger.warning("%s: no file locks on this system; start no second run of this name", folder)
        return False
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            raise FolderLockedError(_message(folder, _holder(handle))) from None
        logger.warning(
            "%s: this file system has no locks (%s); start no second run of this name",
            folder,
            error.strerror,
        )
        return False
    return True


def mark_in_use(handle: int) -> None:
    """Locks an open temporary file of this process for as long as it is open, where that is
    possible."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_unlocked(path: Path) -> bool:
    """Whether no other process has `mark_in_use` on the file; true as well where there are no
    locks."""
    try:
        handle = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False
    try:
        if fcntl is not None:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _TAKEN
    finally:
        os.close(handle)
    return True


def _holder(handle: int) -> str:
    """The process that has the lock, from the content of the lock file."""
    pid, _, host = os.pread(handle, 1000, 0).decode("utf-8", "replace").strip().partition(" ")
    if not pid.isdecimal():
        return "another process"
    return f"process {pid} on {''.join(c for c in host if c.isprintable()) or 'an unknown host'}"


def _message(folder: Path, holder: str) -> str:
    return f"{folder}: in use by {holder}; wait until it ends, stop it, or use another name"


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _is_at(path: Path, identity: tuple[int, int]) -> bool:
    try:
        return _identity(path.stat()) == identity
    except OSError:
        return False


def _remove(path: Path, identity: tuple[int, int]) -> None:
    """Removes this process's lock file; where the folder was renamed meanwhile, the file stays."""
    if _is_at(path, identity):
        with contextlib.suppress(OSError):
            path.unlink()
