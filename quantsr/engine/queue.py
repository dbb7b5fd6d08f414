"""Trainings one after the other in leased time: each call resumes where the previous one
stopped."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quantsr.config import TrainOptions
from quantsr.config.queue import NETWORK_FILE, QueueEntry, QueueOptions, training_options
from quantsr.data.store import keep_decoded
from quantsr.engine.run_folder import owned
from quantsr.engine.time_limit import FEWEST_STEPS, TimeLimit
from quantsr.engine.trainer import Trainer
from quantsr.errors import InputError, StopError, WorkError
from quantsr.files import read_text, write_text
from quantsr.trained_files import checkpoint

logger = logging.getLogger(__name__)

RECORD_FILE = "queue.json"
"""The file in the folder of a queue with state, seconds and iterations of every entry."""

MEASURED_SECONDS = 10.0
"""Seconds of training before the number of its iterations is fitted to the time."""

RESERVED_SHARE, RESERVED_AT_MOST = 0.1, 20.0
"""Share of a call's time that is reserved for the last checkpoint, and its limit in seconds."""

FITTED_AGAIN_ABOVE = 120.0
"""Seconds left of a training above which its iterations are fitted again at the half of them or of
the time: the machine may have become faster or slower."""

USED_SHARE = 0.95
"""Share of the time left that iterations may take; the rest is for validations and restarts."""


def fitted_iterations(
    train: TrainOptions, *, done: int, speeds: Mapping[int, float], all_depths: float, seconds: float
) -> int:
    """The largest ``total_iter``, at most that of the options, whose iterations after ``done`` take
    at most ``seconds``.

    Args:
        train: the options of the training.
        done: completed iterations.
        speeds: measured iterations per second by stage; at least one.
        all_depths: time of an iteration of stage 2 relative to one of stage 1, used where only one
            is measured.
        seconds: time left, > 0.
    """
    first = speeds.get(1) or speeds[2] * all_depths
    second = speeds.get(2) or first / all_depths

    def needed(total: int) -> float:
        end = round(total * train.stage1_fraction)
        return max(0, end - done) / first + max(0, total - max(end, done)) / second

    low, high = min(done, train.total_iter), train.total_iter
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(middle) <= seconds else (low, middle - 1)
    return max(low, 1)


class Queue:
    """One call of a queue.

    Args:
        queue: the trainings.
        folder: for networks, states and the record, kept from call to call.
        seconds: duration of this call.
        last: whether this is the last call, to whose time iterations are fitted too.
        resume_command: the command to resume, for the message of a call that a signal stopped.
        clock: a monotonic clock in seconds.
        save_every: seconds between checkpoints.
    """

    def __init__(
        self,
        queue: QueueOptions,
        folder: Path,
        *,
        seconds: float,
        last: bool = False,
        resume_command: str = "quantsr queue",
        clock: Callable[[], float] = time.monotonic,
        save_every: float = 45.0,
    ) -> None:
        self.queue, self.folder, self.last = queue, folder, last
        self.resume_command, self.clock, self.save_every = resume_command, clock, save_every
        self.stop_at = clock() + seconds - min(RESERVED_SHARE * seconds, RESERVED_AT_MOST)
        self.record: dict[str, Any] = {}

    def _read_record(self) -> dict[str, Any]:
        path = self.folder / RECORD_FILE
        if not path.is_file():
            return {}
        try:
            entries = json.loads(read_text(path))["entries"]
            return {str(name): dict(entry) for name, entry in entries.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path}: cannot be read ({error}); remove it, or choose another --out"
            ) from error

    def run(self) -> None:
        """Trains as many entries as the time allows.

        Raises:
            InputError: the record cannot be read.
            StopError: stopped by a signal.
            FolderLockedError: another call has locked the folder.
            WorkError: an entry failed; entries that do not depend on it were trained.
        """
        failed = []
        with owned(self.folder), keep_decoded():
            self.record = self._read_record()
            for name, entry in self.queue.entries.items():
                if self._state(name) == "done" or self.clock() >= self.stop_at:
                    continue
                absent = [start for start in entry.start.values() if self._state(start) != "done"]
                if absent:
                    logger.info("%s: not started, needs %s", name, ", ".join(absent))
                    continue
                logger.info("%s: %s", name, entry.why)
                try:
                    self._train(name, entry)
                except StopError:
                    raise
                except (InputError, WorkError) as error:
                    logger.error("%s: %s", name, error)
                    self._note(name, state="failed", error=str(error))
                    failed.append(name)
        if failed:
            raise WorkError(
                f"{', '.join(failed)}: failed; see the messages above and {self.folder / RECORD_FILE}"
            )

    def _state(self, name: str) -> str | None:
        return self.record.get(name, {}).get("state")

    def _train(self, name: str, entry: QueueEntry) -> None:
        """Trains an entry until it is done or the call's time is over, in parts; before each part
        the number of iterations is fitted to the time."""
        speeds: dict[int, float] = {}
        done = int(self.record.get(name, {}).get("iteration", 0))
        while self._state(name) != "done" and self.clock() < self.stop_at:
            total, limit = self._next_part(name, entry, done, speeds)
            options = training_options(self.queue, name, self.folder, total_iter=total)
            begin = self.clock()
            trainer = Trainer(options, auto_resume=True, resume_command=self.resume_command, limit=limit)
            state = "unfinished"
            try:
                trainer.run()
                state = "done"
            except StopError:
                if trainer.stop.name is not None:
                    raise
            finally:
                done = trainer.iteration
                speeds |= limit.speeds()
                spent = self.record.get(name, {}).get("seconds", 0.0) + self.clock() - begin
                if state == "done":
                    self._keep_network(name)
                self._note(
                    name,
                    state=state,
                    iteration=done,
                    total_iter=options.train.total_iter if options.train else None,
                    seconds=round(spent, 1),
                    it_per_s={str(stage): round(speed, 2) for stage, speed in speeds.items()},
                )
                self._remove_unneeded(name)

    def _next_part(
        self, name: str, entry: QueueEntry, done: int, speeds: Mapping[int, float]
    ) -> tuple[int | None, TimeLimit]:
        """``total_iter`` of the next part, None for that of the option file, and its limit."""
        left = math.inf
        if entry.budget is not None:
            left = entry.budget - self.record.get(name, {}).get("seconds", 0.0)
        if self.last:
            left = min(left, self.stop_at - self.clock())
        limit = TimeLimit(self.stop_at, save_every=self.save_every, clock=self.clock)
        if left == math.inf:
            return None, limit
        if not speeds:
            earlier = self.record.get(name, {}).get("total_iter")
            limit.part = min(MEASURED_SECONDS, max(left, 0.0) / 4)
            return earlier, limit
        options = training_options(self.queue, name, self.folder)
        train = options.train
        assert train is not None
        depths = (options.network_g.kwargs if options.network_g else {}).get("depths") or [4, 2, 1]
        all_depths = sum(depths) / max(depths)
        total = fitted_iterations(
            train, done=done, speeds=speeds, all_depths=all_depths, seconds=max(USED_SHARE * left, 0.0)
        )
        stage1 = round(total * train.stage1_fraction)
        logger.info("%s: %d iterations of %d fit into %.0f s", name, total, train.total_iter, left)
        if left > FITTED_AGAIN_ABOVE:
            limit.part, limit.steps = left / 2, max((total - done) // 2, FEWEST_STEPS)
        if 2 not in speeds and stage1 < total and len(depths) > 1:
            limit.part = min(limit.part, max(0, stage1 - done) / speeds[1] + MEASURED_SECONDS)
        return total, limit

    def _keep_network(self, name: str) -> None:
        """Writes the network of a finished run in half precision."""
        content = checkpoint.load(self.folder / name / "models" / "net_g_latest.pth")
        checkpoint.save(self.folder / name / NETWORK_FILE, halved(content))

    def _remove_unneeded(self, name: str) -> None:
        """Removes network files that are not needed to resume; for a finished run all network files
        and training states."""
        root = self.folder / name
        for path in (root / "models").glob("net_g_[0-9]*.pth"):
            path.unlink()
        if self._state(name) == "done":
            for part in ("models", "training_states"):
                shutil.rmtree(root / part, ignore_errors=True)

    def _note(self, name: str, **values: Any) -> None:
        self.record[name] = {**self.record.get(name, {}), **values}
        if values.get("state") != "failed":
            self.record[name].pop("error", None)
        write_text(self.folder / RECORD_FILE, json.dumps({"entries": self.record}, indent=2) + "\n")


def halved(content: Mapping[str, Any]) -> dict[str, Any]:
    """A network file with only the parameters that are evaluated (``params_ema`` where present):
    weights in half precision; steps and biases unchanged."""
    params = checkpoint.parameters(content, "network")
    half = {
        name: value.half() if name.endswith("weight") and value.is_floating_point() else value
        for name, value in params.items()
    }
    return {"params": half, **({"quantsr": content["quantsr"]} if "quantsr" in content else {})}
