"""Paths as users write them: ``~`` and ``~USER`` stand for home folders."""

from __future__ import annotations

import os
from pathlib import Path

from quantsr.errors import InputError


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with ``~`` or ``~USER`` at its beginning replaced by the home folder.

    A file or folder in the working directory whose name begins with ``~USER`` is meant where there
    is no such user.

    Raises:
        InputError: there is no such home folder, and no file of this name either.
    """
    text = os.fspath(path)
    try:
        found = os.path.expanduser(text)
        unknown = found.startswith("~") and not os.path.lexists(found.partition(os.sep)[0])
    except ValueError as error:  # a null byte
        raise InputError(f"{text}: is no path ({error}); correct it") from error
    if unknown:
        home = found.partition(os.sep)[0]
        raise InputError(f"{text}: there is no home folder {home}; write the whole path, or ./{text}")
    return Path(found)
