"""The folder of a training run, its log file, and the signals that ask it to stop."""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from quantsr.config import Options
from quantsr.errors import WorkError
from quantsr.files import write_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFolder:
    """``experiments/NAME`` and what lies in it."""

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

    def create(self, options: Options, *, fresh: bool) -> None:
        """Makes the folders and writes ``options.yml``; an older run of that name is set aside if ``fresh``.

        Raises:
            WorkError: a folder cannot be made.
        """
        try:
            if fresh and self.root.exists():
                set_aside(self.root)
            for folder in (self.models, self.states, self.log):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkError(
                f"{self.root}: cannot be made ({error.strerror}); check path.experiments_root"
            ) from error
        write_options(options.dump(), self.root)


def write_options(options: Mapping[str, Any], folder: Path) -> None:
    """Writes ``folder/options.yml``, an option file of its own that says how what lies beside it was made.

    Raises:
        WorkError: it cannot be written.
    """
    write_text(folder / "options.yml", yaml.safe_dump(dict(options), sort_keys=False, allow_unicode=True))


def set_aside(folder: Path) -> None:
    """Renames the folder of an earlier run to ``NAME_archived_TIME``.

    Raises:
        OSError: it cannot be renamed.
    """
    archive = folder.with_name(f"{folder.name}_archived_{time.strftime('%Y%m%d_%H%M%S')}")
    number = 1
    while archive.exists():
        number += 1
        archive = archive.with_name(f"{archive.name.partition('~')[0]}~{number}")
    folder.rename(archive)
    logger.info("%s: an earlier run, renamed to %s", folder, archive.name)


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """While entered, the project's log messages also go to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
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
        handler.close()


class StopRequest:
    """Remembers the first SIGINT or SIGTERM while entered; a second one acts as if this were not here.

    Attributes:
        name: of the signal, None before one came.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # not in the main thread: signals are somebody else's
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
