"""Temporary files and folders beside their targets, and removal of those that killed processes
leave.

Their names begin with `PREFIX` and are short, even where the target's name is long.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from quantsr.locks import FolderLockedError, is_unlocked, locked

PREFIX, SUFFIX = ".quantsr.", ".tmp"

_CONTENT = "content"
_OPTIONS = "options.yml"  # a folder with this file is the folder of a run
_LEVELS = 3  # the depth of run folders and prepared data; a user may name any folder, even /
_NAME_BYTES = 255  # longest file name, where the system does not tell


def remove_leftovers(folder: Path, *, below: bool = True) -> None:
    """Removes temporary files and folders of killed processes in ``folder``, but none that a
    process is writing.

    ``below``: in `_LEVELS` levels of folders below it too, except those of other runs, which have
    their own locks.
    """
    top = len(folder.parts)
    for parent, folders, files in os.walk(folder):
        deeper = below and len(Path(parent).parts) - top < _LEVELS
        for name in filter(_is_temporary, folders):
            path = Path(parent, name)
            with contextlib.suppress(FolderLockedError, OSError):
                with locked(path):
                    shutil.rmtree(path / _CONTENT, ignore_errors=True)
                path.rmdir()
        for name in filter(_is_temporary, files):
            path = Path(parent, name)
            if is_unlocked(path):
                with contextlib.suppress(OSError):
                    path.unlink()
        folders[:] = [
            name
            for name in folders
            if deeper and not _is_temporary(name) and not os.path.exists(Path(parent, name, _OPTIONS))
        ]


def _is_temporary(name: str) -> bool:
    return name.startswith(PREFIX) and name.endswith(SUFFIX)


@contextlib.contextmanager
def folder_beside(target: Path, *, make_parent: bool = True) -> Iterator[Path]:
    """An empty temporary folder beside ``target``, for content that is then renamed to ``target``;
    removed at the end.

    Its name is derived from ``target``, so that the content of a killed process is removed when the
    same target is made again.

    Raises:
        FolderLockedError: another process is making ``target``.
        OSError: the folder cannot be made, or without ``make_parent`` that of ``target`` is
            missing.
    """
    if make_parent:
        target.parent.mkdir(parents=True, exist_ok=True)
    os.stat(target.parent)
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    work = target.parent / f"{PREFIX}{digest}{SUFFIX}"
    try:
        with locked(work, target):
            content = work / _CONTENT
            shutil.rmtree(content, ignore_errors=True)
            content.mkdir()
            try:
                yield content
            finally:
                shutil.rmtree(content, ignore_errors=True)
    finally:
        with contextlib.suppress(OSError):  # not empty: the folder of another process
            work.rmdir()


def replace_folder(made: Path, target: Path) -> None:
    """Renames ``made``, in a folder of `folder_beside`, to ``target``; an earlier ``target`` is
    moved into the folder of `folder_beside`.

    Raises:
        OSError: it cannot be renamed; ``target`` is unchanged.
    """
    old = made.with_name("replaced")
    target.parent.mkdir(parents=True, exist_ok=True)
    replaced = target.exists()
    if replaced:
        target.rename(old)
    try:
        made.rename(target)
    except OSError:
        if replaced:
            old.rename(target)
        raise


def fitting_name(name: str, folder: Path, *, reserve: int = 0) -> str:
    """``name``, shortened where it and ``reserve`` more bytes are too long for a file name in
    ``folder``.

    A shortened name keeps the beginning, and ends in a digest of the whole name.
    """
    limit = _NAME_BYTES
    with contextlib.suppress(OSError, AttributeError, ValueError):
        limit = os.pathconf(folder, "PC_NAME_MAX")
    limit -= reserve
    content = os.fsencode(name)
    if len(content) <= limit:
        return name
    digest = hashlib.sha256(content).hexdigest()[:12]
    begin = content[: max(limit - 13, 0)].decode("utf-8", "ignore")
    return f"{begin}~{digest}"
