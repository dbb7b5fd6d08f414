"""Option files that other files with changed keys have replaced: their former names go on
working.

``moved.yml`` lists them: ``train/old.yml: train/new.yml --set scale=2``, with paths relative to the
list. It stands in the folder of the former file or in one of the next folders above it.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from quantsr.config.yaml_file import Allowance, read_yaml
from quantsr.errors import InputError

LIST = "moved.yml"
_LEVELS = 3
"""Folders in which the list is looked for: ``options/train/NETWORK``, and two above it."""


@dataclass(frozen=True)
class Moved:
    """What a former option file is now.

    Attributes:
        path: the file to read.
        changes: of its keys, as ``--set`` takes them.
        listed: the list that says so.
    """

    path: str
    changes: list[str]
    listed: str

    @property
    def command(self) -> str:
        """The arguments of a command that name the file now."""
        return shlex.join([self.path, *(["--set", *self.changes] if self.changes else [])])


def moved(path: str, allowance: Allowance) -> Moved | None:
    """What has replaced an option file; None where the file exists, or no list names it.

    Raises:
        InputError: the list cannot be read, or its line cannot be understood.
    """
    if os.path.lexists(path):
        return None
    for level, folder in enumerate(Path(os.path.abspath(path)).parents[:_LEVELS]):
        written = os.path.normpath(os.path.join(os.path.dirname(path), *[os.pardir] * level, LIST))
        if not os.path.isfile(folder / LIST):
            continue
        entry = read_yaml(written, allowance).get(Path(os.path.abspath(path)).relative_to(folder).as_posix())
        if entry is None:
            return None
        words = shlex.split(entry) if isinstance(entry, str) else []
        if not words or words[1:2] not in ([], ["--set"]):
            raise InputError(f"{written}: {entry!r} is not understood; write 'FILE.yml --set KEY=VALUE'")
        return Moved(os.path.normpath(os.path.join(os.path.dirname(written), words[0])), words[2:], written)
    return None
