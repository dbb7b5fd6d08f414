"""The state of every run of a comparison, and the records of the finished ones, shared by all
processes that work on it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from quantsr.config.comparison import Comparison, Run
from quantsr.engine import training_state
from quantsr.engine.results import Record, read_results
from quantsr.engine.run_folder import RunFolder, folder_failures, owned, set_aside
from quantsr.errors import InputError
from quantsr.files import read_text, write_text
from quantsr.locks import FolderLockedError, locked, locked_in_turn
from quantsr.trained_files import checkpoint

logger = logging.getLogger(__name__)

MOST_DEATHS = 10
"""A run whose process ends so often without a message and without progress counts as failed."""


@dataclasses.dataclass(frozen=True)
class State:
    """The progress of a run.

    Attributes:
        iteration: of the newest training state or of the finished network.
        trained: whether the training is finished.
        evaluated: whether it is evaluated on the sets, depths and metrics of the comparison.
        other_options: whether the folder holds a run with other options, or one that started from
            such a run.
        failed: the message of the failure that ended it; empty where there was none.
    """

    iteration: int = 0
    trained: bool = False
    evaluated: bool = False
    other_options: bool = False
    failed: str = ""

    def __str__(self) -> str:
        if self.other_options:
            return "made with other options"
        if self.failed:
            return "failed"
        if self.evaluated:
            return "finished"
        if self.trained:
            return "to evaluate"
        return f"goes on at iteration {self.iteration}" if self.iteration else "to train"


class Ledger:
    """Reads and writes ``runs.json``, and has the records of ``results.json``.

    ``runs.json`` has for each run the *identity* of its training, a hash of its options and of the
    runs that it starts from, the hash of the options of its evaluation, and, while or after a
    process works on it, that process, how often processes died there, and how it failed.

    Several processes may use the same files. Each changes them, and whatever is derived from them,
    inside `exclusive`; a run is worked on inside `claimed`.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.folder = Path(comparison.options.folder)
        self._variants = list(comparison.options.variants)
        self.runs = {run.name: run for run in comparison.runs}
        self.read()

    def read(self) -> None:
        """Reads the files again, since another process may have changed them.

        Raises:
            InputError: ``runs.json`` is damaged.
        """
        self._entries = self._read_entries()
        self._records = self._read_records()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """While entered no other process changes the files, which were read at the beginning.

        Raises:
            InputError: ``runs.json`` is damaged.
            WorkError: the folder cannot be written.
        """
        with folder_failures(self.folder), locked_in_turn(self.folder):
            self.read()
            yield

    @contextlib.contextmanager
    def claimed(self, run: Run) -> Iterator[bool]:
        """While entered with True, no other process works on ``run``; False where one does.

        The claim is a lock, so it ends with its process, even if that is killed.
        """
        place = self.folder / "claims" / run.name
        with contextlib.ExitStack() as stack:
            stack.callback(_remove_if_empty, place)
            try:
                with folder_failures(place):
                    stack.enter_context(locked(place))
            except FolderLockedError:
                yield False
                return
            yield True

    def state(self, run: Run) -> State:
        """The state of a run, from its folder and the files."""
        folder = RunFolder(Path(run.training.experiment_folder))
        entry = self._entries.get(run.name, {})
        current = entry.get("training") == self.identity(run)
        failed = entry.get("failed", "") if current else ""
        if not folder.root.exists():
            return State(failed=failed)
        if not current:
            return State(other_options=True)
        train = run.training.train
        assert train is not None
        states = training_state.states_in(folder.states)
        iteration = int(states[0].stem) if states else _iteration(folder.models / "net_g_latest.pth")
        trained = iteration >= train.total_iter
        if trained and "evaluation" not in entry:
            trained = _is_validated(states, folder, run)
        known = trained and entry.get("evaluation") == run.evaluation.config_hash()
        return State(iteration, trained, known and run.name in self._records, failed=failed)

    def entry(self, run: Run) -> dict[str, str]:
        """What ``runs.json`` has for a run."""
        return dict(self._entries.get(run.name, {}))

    def identity(self, run: Run) -> str:
        """Twelve hexadecimal digits that change with the options of the run and of every run that
        it starts from."""
        parts = [run.training.config_hash(), *(self.identity(self.runs[name]) for name in run.after)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]

    def blocked_by(self, run: Run) -> str | None:
        """The run that ``run`` starts from, directly or through others, and that failed."""
        for name in run.after:
            if self.state(self.runs[name]).failed:
                return name
            if self.blocked_by(self.runs[name]):
                return name
        return None

    def failure(self, run: Run) -> tuple[str, bool] | None:
        """The message of a run that failed or starts from one that did, and whether bad input was
        the reason; None for other runs."""
        if message := self.state(run).failed:
            return message, self._entries[run.name].get("failure") == "input"
        blocking = self.blocked_by(run)
        return None if blocking is None else (f"starts from {blocking}, which failed", False)

    def is_done(self, run: Run) -> bool:
        """Whether nothing is left to do for a run: it is evaluated, or `failure` says why not."""
        return self.state(run).evaluated or self.failure(run) is not None

    def forget_failures(self) -> None:
        """Lets runs that failed be tried again."""
        kept = ("training", "evaluation", "worker")
        entries = {n: {k: v for k, v in entry.items() if k in kept} for n, entry in self._entries.items()}
        if entries != self._entries:
            self._entries = entries
            self._write_entries()

    def begin(self, run: Run) -> State:
        """Notes that this process works on a run, and returns the run's state; the folder of a run
        with other options is renamed.

        A run at which processes died `MOST_DEATHS` times without progress is marked as failed.
        """
        state = self.state(run)
        if state.other_options:
            folder = Path(run.training.experiment_folder)
            with owned(folder):
                set_aside(folder)
            state = State()
        before = self._entries.get(run.name, {})
        entry = {"training": self.identity(run), "worker": f"{os.getpid()} {socket.gethostname()}"}
        entry["iteration"] = str(state.iteration)
        if state.trained and "evaluation" in before:
            entry["evaluation"] = before["evaluation"]
        if not state.trained:
            self._records.pop(run.name, None)
        if "worker" in before and before.get("training") == entry["training"]:
            again = before.get("iteration") == entry["iteration"]
            deaths = 1 + (int(before.get("deaths", "0")) if again else 0)
            entry["deaths"] = str(deaths)
            if deaths >= MOST_DEATHS:
                self.fail(
                    run, f"its process ended {deaths} times at iteration {state.iteration} without a message"
                )
                return self.state(run)
        self._entries[run.name] = entry
        self._write_entries()
        return state

    def release(self, run: Run) -> None:
        """Notes that this process no longer works on a run, which another one may resume."""
        self._update(run, {})

    def fail(self, run: Run, message: str, *, bad_input: bool = False) -> None:
        """Notes that a run failed; it is not tried again until `forget_failures`."""
        self._update(run, {"failed": message, "failure": "input" if bad_input else "work"})

    def _update(self, run: Run, more: dict[str, str]) -> None:
        kept = {k: v for k, v in self._entries.get(run.name, {}).items() if k == "evaluation"}
        self._entries[run.name] = {"training": self.identity(run), **kept, **more}
        self._write_entries()

    def finish(self, run: Run, records: Sequence[Record]) -> None:
        """Notes the records of an evaluated run; the caller then writes `results`."""
        self._records[run.name] = [
            dataclasses.replace(record, variant=run.variant, seed=run.seed) for record in records
        ]
        self._update(run, {"evaluation": run.evaluation.config_hash()})

    def add_baseline(self, records: Sequence[Record]) -> None:
        """Puts the baseline's records first."""
        self._records[""] = list(records)

    def results(self) -> list[Record]:
        """The records of the baseline and of all evaluated runs, variant by variant in the order of
        the file."""
        done = {name: run for name, run in self.runs.items() if self.state(run).evaluated}
        ordered = sorted(done, key=lambda name: self._variants.index(done[name].variant))
        return [record for name in ["", *ordered] for record in self._records.get(name, [])]

    def _read_entries(self) -> dict[str, dict[str, str]]:
        path = self.folder / "runs.json"
        if not path.exists():
            return {}
        try:
            entries = json.loads(read_text(path))
            return {str(name): dict(entry) for name, entry in entries.items()}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{path}: damaged ({error}); give the comparison another name") from error

    def _read_records(self) -> dict[str, list[Record]]:
        path = self.folder / "results.json"
        found: dict[str, list[Record]] = {}
        if not path.exists():
            return found
        try:
            records = read_results(path)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("%s: damaged (%s); evaluating again", path, error)
            return found
        names = {(run.variant, run.seed): name for name, run in self.runs.items()}
        for record in records:
            if record.variant is not None and record.seed is not None:
                name = names.get((record.variant, record.seed))
                if name is not None:
                    found.setdefault(name, []).append(record)
        return found

    def _write_entries(self) -> None:
        write_text(self.folder / "runs.json", json.dumps(self._entries, indent=1) + "\n")


def _remove_if_empty(place: Path) -> None:
    """Removes the folder of a claim, and the folder of claims after the last one."""
    with contextlib.suppress(OSError):
        place.rmdir()
        place.parent.rmdir()


def _iteration(path: Path) -> int:
    """The iteration of a network file; 0 where it does not exist or cannot be read."""
    if not path.is_file():
        return 0
    try:
        ours = checkpoint.metadata(checkpoint.load(path), path)
    except InputError as error:
        logger.warning("%s", error)
        return 0
    return int(ours["iteration"]) if ours is not None and isinstance(ours.get("iteration"), int) else 0


def _is_validated(states: Sequence[Path], folder: RunFolder, run: Run) -> bool:
    """Whether the last validation of a trained run was done; its checkpoint is written before."""
    if not states:
        return not run.training.sets("val") or (folder.models / "net_g_best.pth").is_file()
    try:
        return not training_state.load_state(states[0])["validation_due"]
    except InputError as error:
        logger.warning("%s", error)
        return False
