"""The file of ``quantsr queue``: trainings that follow each other, with a time budget for each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from quantsr.config.base import FolderName, Section
from quantsr.config.load import load_options
from quantsr.config.problems import Problems, did_you_mean
from quantsr.config.schema import Options
from quantsr.config.translate import add_validation_errors
from quantsr.config.yaml_file import read_yaml
from quantsr.errors import OptionsError

NETWORK_FILE = "network.pth"
"""Name of the network file in the folder of a finished entry; weights in half precision."""

ONLY_BY_TIME = 10**9
"""Iterations between checkpoints in a queue: practically never, as they are written by time."""


class QueueEntry(Section):
    """One training of a queue."""

    why: str = Field(min_length=1, description="Purpose of the training; shown when it starts.")
    opt: str = Field(min_length=1, description="A training option file.")
    set: dict[str, Any] = Field(
        default_factory=dict,
        description="Changes of its options by dotted key; null removes a key.",
    )
    start: dict[str, str] = Field(
        default_factory=dict,
        description="By option key, such as `path.fp_pretrain_network_g`, the earlier entry whose network is used there.",
    )
    budget: float | None = Field(
        default=None,
        gt=0,
        description="Seconds of training, all calls together: `train.total_iter` is lowered until it fits. Default: no limit, "
        "all iterations of the option file.",
    )

    @field_validator("budget", mode="before")
    @classmethod
    def _seconds(cls, value: object) -> object:
        return float(value) if type(value) is int else value


class QueueOptions(Section):
    """A queue: its entries by name, in the order of training."""

    entries: dict[FolderName, QueueEntry] = Field(min_length=1, description="The trainings by name.")

    @model_validator(mode="after")
    def _known_starts(self) -> QueueOptions:
        earlier: list[str] = []
        for name, entry in self.entries.items():
            for key, start in entry.start.items():
                if start not in earlier:
                    raise ValueError(
                        f"entries.{name}.start.{key}: no earlier entry {start!r}; {did_you_mean(start, earlier)}"
                    )
            earlier.append(name)
        return self


def load_queue(path: str) -> QueueOptions:
    """Reads a queue file, and checks the option file of every entry, except that its folders and
    files exist.

    Raises:
        InputError: the file cannot be read; `OptionsError` with every problem found.
    """
    content = read_yaml(path)
    problems = Problems(path)
    try:
        queue = QueueOptions.model_validate(content)
    except ValidationError as error:
        add_validation_errors(error, problems, QueueOptions)
        problems.raise_if_any()
        raise
    lines: list[str] = []
    for name in queue.entries:
        try:
            training_options(queue, name, Path("experiments"), check_paths=False)
        except OptionsError as error:
            lines += [f"{path}: entries.{name}: {problem}" for problem in error.problems]
    if lines:
        raise OptionsError(lines)
    return queue


def training_options(
    queue: QueueOptions,
    name: str,
    folder: Path,
    *,
    total_iter: int | None = None,
    check_paths: bool = True,
) -> Options:
    """The options of an entry's training, whose run folder is ``folder/NAME``.

    Args:
        queue: the queue.
        name: of the entry.
        folder: the folder of the queue, with one folder for each entry.
        total_iter: in place of the option file's.
        check_paths: whether the folders and files that the options name must exist.

    Raises:
        OptionsError: with every problem found.
    """
    entry = queue.entries[name]
    values = {
        **entry.set,
        **{key: str(folder / start / NETWORK_FILE) for key, start in entry.start.items()},
        "name": name,
        "path.experiments_root": str(folder),
        "logger.save_checkpoint_freq": ONLY_BY_TIME,
        "logger.keep_states": 1,
    }
    if total_iter is not None:
        values["train.total_iter"] = total_iter
    changes = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return load_options(entry.opt, changes, check_paths=check_paths)
