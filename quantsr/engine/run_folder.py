"""The folder of a training run, its log file, and the signals that stop it."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from quantsr.config import Options
from quantsr.errors import InputError, WorkError
from quantsr.files import is_impossible, write_text
from quantsr.locks import LOCK_NAME, locked
from quantsr.temporary import fitting_name, remove_leftovers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFolder:
    """``experiments/NAME`` and the folders in it."""

    root: Path

    @property
    def models(self) -> Path:
        """Network files ``net_g_*.pth``."""
        return self.root / "models"

    @property
    def states(self) -> Path:
        """Training states ``ITERATION.state``."""
        return self.root / "training_states"

    @property
    def tensorboard(self) -> Path:
        """The TensorBoard log."""
        return self.root / "tb_logger"

    @property
    def pictures(self) -> Path:
        """Upscaled validation pictures."""
        return self.root / "visualization"

    @property
    def log(self) -> Path:
        """Log files."""
        return self.root / "log"

    def create(self, options: Options) -> None:
        """Makes the folders and writes ``options.yml``.

        Raises:
            WorkError: a folder cannot be made; InputError where its name is impossible.
        """
        with folder_failures(self.root):
            for folder in (self.models, self.states, self.log):
                folder.mkdir(parents=True, exist_ok=True)
        write_options(options.dump(), self.root)

    def log_path(self, name: str) -> Path:
        """The path of a log file with the current time, for the run of that name."""
        return dated_log(self.log, "train", name)


@contextlib.contextmanager
def folder_failures(folder: Path) -> Iterator[None]:
    """Turns an `OSError` into a message that names ``folder``.

    Raises:
        WorkError: the folder cannot be made or written; InputError where its name is impossible.
    """
    try:
        yield
    except OSError as error:
        kind = InputError if is_impossible(error) else WorkError
        raise kind(
            f"{folder}: cannot be used ({error.strerror or error}); choose another folder or name"
        ) from error


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Locks ``folder`` while entered; incomplete files of killed processes are removed first.

    Raises:
        FolderLockedError: another process has locked it.
        WorkError: the folder cannot be made or written.
    """
    with contextlib.ExitStack() as stack:
        with folder_failures(folder):
            stack.enter_context(locked(folder))
            remove_leftovers(folder)
        yield


@contextlib.contextmanager
def owned_anew(folder: Path) -> Iterator[None]:
    """As `owned`, for an empty folder: the folder of an earlier run is renamed. Entered inside
    `owned`.

    Raises:
        FolderLockedError: another process has locked the new folder.
        WorkError: the folder cannot be renamed or made.
    """
    with contextlib.ExitStack() as stack:
        with folder_failures(folder):
            if any(entry.name != LOCK_NAME for entry in folder.iterdir()):
                set_aside(folder)
                stack.enter_context(locked(folder))
        yield


def dated_log(folder: Path, command: str, name: str) -> Path:
    """``folder/COMMAND_NAME_TIME.log``, the name shortened where it is too long for a file."""
    ending = f"_{time.strftime('%Y%m%d_%H%M%S')}.log"
    return folder / (fitting_name(f"{command}_{name}", folder, reserve=len(ending)) + ending)


def write_options(options: Mapping[str, Any], folder: Path) -> None:
    """Writes ``folder/options.yml``, a complete option file from which the folder's content was
    made.

    Raises:
        WorkError: it cannot be written.
    """
    write_text(folder / "options.yml", yaml.safe_dump(dict(options), sort_keys=False, allow_unicode=True))


def set_aside(folder: Path) -> None:
    """Renames the folder of an earlier run to ``NAME_archived_TIME``.

    Raises:
        OSError: it cannot be renamed.
    """
    ending = f"_archived_{time.strftime('%Y%m%d_%H%M%S')}"
    archive = first = folder.with_name(
        fitting_name(folder.name, folder.parent, reserve=len(ending) + 4) + ending
    )
    number = 1
    while archive.exists():
        number += 1
        archive = first.with_name(f"{first.name}~{number}")
    folder.rename(archive)
    (archive / LOCK_NAME).unlink(missing_ok=True)
    logger.info("%s: an earlier run, renamed to %s", folder, archive.name)


class _LogFile(logging.FileHandler):
    """A log file whose failure does not stop the run: when it cannot be written, a warning is
    logged, and it is no longer used."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Called by `logging` while the exception is handled."""
        logging.getLogger("quantsr").removeHandler(self)
        logger.warning(
            "%s: cannot be written (%s); the log goes on without it", self.baseFilename, sys.exc_info()[1]
        )


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """While entered, the project's log messages also go to ``path``.

    Raises:
        WorkError: it cannot be made.
    """
    with folder_failures(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    project = logging.getLogger("quantsr")
    level = project.level
    if not project.isEnabledFor(logging.INFO):
        project.setLevel(logging.INFO)
    project.addHandler(handler)
    try:
        yield
    finally:
        project.removeHandler(handler)
        project.setLevel(level)
        with contextlib.suppress(OSError):  # a full disk, of which `_LogFile` has warned
            handler.close()


class StopRequest:
    """Notes the first SIGINT or SIGTERM while entered; a second one is handled by the previous
    handlers.

    Attributes:
        name: of the signal, None before one came.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            # ValueError outside the main thread, where no handler can be set
            with contextlib.suppress(ValueError):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}

    def __exit__(self, *exc_info: object) -> None:
        self._restore()
