"""The state of every run of a comparison, and the records of the finished ones."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from quantsr.config.comparison import Comparison, Run
from quantsr.engine import training_state
from quantsr.engine.results import Record, read_results
from quantsr.engine.run_folder import RunFolder, owned, set_aside
from quantsr.errors import InputError
from quantsr.files import read_text, write_text
from quantsr.trained_files import checkpoint

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class State:
    """The progress of a run.

    Attributes:
        iteration: of the newest training state or of the finished network.
        trained: whether the training is finished.
        evaluated: whether it is evaluated on the sets, depths and metrics of the comparison.
        other_options: whether the folder holds a run with other options, or one that started from
            such a run.
    """

    iteration: int = 0
    trained: bool = False
    evaluated: bool = False
    other_options: bool = False

    def __str__(self) -> str:
        if self.other_options:
            return "made with other options"
        if self.evaluated:
            return "finished"
        if self.trained:
            return "to evaluate"
        return f"goes on at iteration {self.iteration}" if self.iteration else "to train"


class Ledger:
    """Reads and writes ``runs.json``, and has the records of ``results.json``.

    ``runs.json`` has for each run the *identity* of its training, a hash of its options and of the
    runs that it starts from, and the hash of the options of its evaluation.
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

    def state(self, run: Run) -> State:
        """The state of a run, from its folder and the files."""
        folder = RunFolder(Path(run.training.experiment_folder))
        if not folder.root.exists():
            return State()
        entry = self._entries.get(run.name, {})
        if entry.get("training") != self.identity(run):
            return State(other_options=True)
        train = run.training.train
        assert train is not None
        states = training_state.states_in(folder.states)
        iteration = int(states[0].stem) if states else _iteration(folder.models / "net_g_latest.pth")
        trained = iteration >= train.total_iter
        if trained and "evaluation" not in entry:
            trained = _is_validated(states, folder, run)
        known = trained and entry.get("evaluation") == run.evaluation.config_hash()
        return State(iteration, trained, known and run.name in self._records)

    def identity(self, run: Run) -> str:
        """Twelve hexadecimal digits that change with the options of the run and of every run that
        it starts from."""
        parts = [run.training.config_hash(), *(self.identity(self.runs[name]) for name in run.after)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]

    def begin(self, run: Run) -> None:
        """Notes that the training of a run begins or is resumed; the folder of a run with other
        options is renamed."""
        if self.state(run).other_options:
            folder = Path(run.training.experiment_folder)
            with owned(folder):
                set_aside(folder)
        self._entries[run.name] = {"training": self.identity(run)}
        self._records.pop(run.name, None)
        self._write_entries()

    def finish(self, run: Run, records: Sequence[Record]) -> None:
        """Notes the records of an evaluated run; the caller then writes `results`."""
        self._records[run.name] = [
            dataclasses.replace(record, variant=run.variant, seed=run.seed) for record in records
        ]
        self._entries[run.name] = {"training": self.identity(run), "evaluation": run.evaluation.config_hash()}
        self._write_entries()

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
