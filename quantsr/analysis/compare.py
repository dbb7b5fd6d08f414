"""Comparisons: every variant is trained with every seed and evaluated; tables have mean, spread,
paired differences and costs.

The folder ``experiments/compare_NAME/`` has a run folder per variant and seed, ``results.json``,
``results.md``, ``results.csv``, ``results.tex``, ``options.yml`` (the comparison in one file), and
``runs.json`` with the state of each run. Finished runs are kept, an interrupted one is resumed.

Any number of processes may work on one comparison, on one machine or on several with a common
folder: each one claims a run, trains and evaluates it, and takes the next one that is left.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from quantsr.analysis import compare_costs
from quantsr.analysis.compare_formats import csv_text, latex
from quantsr.analysis.compare_tables import Cost, about_variants, markdown, read_costs
from quantsr.analysis.evaluation import evaluate_options
from quantsr.analysis.runs import Ledger
from quantsr.config.comparison import Comparison, Run
from quantsr.engine.evaluate import Provenance, bicubic, build_sets
from quantsr.engine.results import Record, aligned, write_results
from quantsr.engine.run_folder import StopRequest, owned, write_options
from quantsr.engine.trainer import Trainer
from quantsr.engine.validation import metric_arguments
from quantsr.errors import InputError, StopError, WorkError
from quantsr.files import write_text
from quantsr.locks import FolderLockedError

logger = logging.getLogger(__name__)

_POLL_S = 1.0  # between two looks for a run that other processes have left


def prepare(comparison: Comparison, ledger: Ledger, *, retrain: bool = False, again: bool = True) -> None:
    """Checks earlier runs, before a process begins to `work`.

    Args:
        comparison: the runs.
        ledger: the state of each run.
        retrain: train runs again that were made with other options.
        again: try runs again that failed.

    Raises:
        InputError: there are such runs, and ``retrain`` is off.
        WorkError: the folder cannot be written.
    """
    with ledger.exclusive():
        for folder in filter(Path.exists, (Path(run.training.experiment_folder) for run in comparison.runs)):
            # removes incomplete files of killed trainings, also for runs that are finished
            with contextlib.suppress(FolderLockedError), owned(folder):
                pass
        differing = [run.name for run in comparison.runs if ledger.state(run).other_options]
        if differing and not retrain:
            raise InputError(
                f"{ledger.folder}: made with other options: {', '.join(differing)}; give the comparison another "
                "name, or add --retrain to set these runs aside and train them again"
            )
        write_options(comparison.dump(), ledger.folder)
        if again:
            ledger.forget_failures()


def work(comparison: Comparison, ledger: Ledger, *, resume_command: str) -> None:
    """Trains and evaluates the runs that nobody has claimed, one after the other, until every run
    is finished or has failed; results are written after each run.

    Args:
        comparison, ledger: see `prepare`.
        resume_command: the command that resumes after an interruption, for the message.

    Raises:
        StopError: stopped by a signal; finished runs are kept.
        WorkError: the folder cannot be written.
    """
    waiting = False
    while left := _left(comparison, ledger):
        if any(_attempt(comparison, ledger, run, resume_command) for run in left if _is_ready(ledger, run)):
            waiting = False
            continue
        if not waiting:
            logger.info("other processes work on the runs that are left: %s", ", ".join(r.name for r in left))
        waiting = True
        with StopRequest() as stop:
            time.sleep(_POLL_S)
        if stop.name is not None:
            raise StopError(
                f"stopped by {stop.name}, waiting for other processes; go on with: {resume_command}"
            )


def finish(comparison: Comparison, ledger: Ledger) -> list[Record]:
    """Writes and returns the records of all runs, with the baseline and the costs.

    Raises:
        WorkError: runs failed, InputError where the reason was bad input; the others are finished.
    """
    with ledger.exclusive():
        if comparison.baseline:
            ledger.add_baseline(_baseline(comparison))
        if comparison.options.costs:
            compare_costs.update(comparison, ledger)
        records = _write(comparison, ledger)
        failures = {run.name: failure for run in comparison.runs if (failure := ledger.failure(run))}
    if failures:
        reasons = "; ".join(f"{name}: {message}" for name, (message, _) in failures.items())
        kind = InputError if any(bad_input for _, bad_input in failures.values()) else WorkError
        raise kind(
            f"{len(failures)} of {len(comparison.runs)} runs failed, the others are finished; {reasons}"
        )
    return records


def _left(comparison: Comparison, ledger: Ledger) -> list[Run]:
    """The runs that are neither finished nor failed."""
    with ledger.exclusive():
        return [run for run in comparison.runs if not ledger.is_done(run)]


def _is_ready(ledger: Ledger, run: Run) -> bool:
    """Whether the networks that ``run`` starts from are trained."""
    return all(ledger.state(ledger.runs[name]).trained for name in run.after)


def _attempt(comparison: Comparison, ledger: Ledger, run: Run, resume_command: str) -> bool:
    """Whether this process claimed ``run``, and finished it or noted its failure."""
    with ledger.claimed(run) as mine:
        if not mine:
            return False
        with ledger.exclusive():
            if ledger.is_done(run):
                return True  # by another process, meanwhile
            state = ledger.begin(run)
        if state.failed:
            return True
        number = comparison.runs.index(run) + 1
        logger.info("run %d of %d, %s: %s", number, len(comparison.runs), run.name, state)
        try:
            if not state.trained:
                _train(run, resume_command)
            records = _evaluate(run, resume_command)
        except StopError as error:
            with ledger.exclusive():
                ledger.release(run)
            raise StopError(f"{run.name}: {error}") from error
        except (InputError, WorkError) as error:
            logger.error("%s: %s", run.name, error)
            with ledger.exclusive():
                ledger.fail(run, str(error), bad_input=isinstance(error, InputError))
            return True
        with ledger.exclusive():
            ledger.finish(run, records)
            _write(comparison, ledger)
        return True


def _train(run: Run, resume_command: str) -> None:
    Trainer(run.training, auto_resume=True, resume_command=resume_command).run()


def _evaluate(run: Run, resume_command: str) -> list[Record]:
    with StopRequest() as stop:

        def stop_if_signalled(line: str) -> None:
            if stop.name is not None:
                raise StopError(
                    f"stopped by {stop.name} at {line}; finished runs are kept; go on with: {resume_command}"
                )

        return evaluate_options(run.evaluation, stop_if_signalled)


def _baseline(comparison: Comparison) -> list[Record]:
    options = comparison.runs[0].evaluation
    metrics = metric_arguments(options)
    sets = build_sets(options.evaluation_sets(), options.scale, metrics)
    return bicubic(sets, metrics=metrics, provenance=Provenance(options.config_hash()))


def _write(comparison: Comparison, ledger: Ledger) -> list[Record]:
    records = ledger.results()
    reference = comparison.options.difference_to
    costs = read_costs(ledger.folder)
    write_results(records, ledger.folder, page(comparison, records, costs))
    write_text(ledger.folder / "results.csv", csv_text(records, reference, costs))
    write_text(ledger.folder / "results.tex", latex(records, reference, costs))
    return records


def page(comparison: Comparison, records: Sequence[Record], costs: Mapping[str, Cost]) -> str:
    """The Markdown page of the records so far, with the known costs by variant."""
    finished = {(record.variant, record.seed) for record in records}
    return markdown(
        comparison.options.name,
        records,
        reference=comparison.options.difference_to,
        about=about_variants(comparison),
        missing=[run.name for run in comparison.runs if (run.variant, run.seed) not in finished],
        costs=costs,
    )


def dry_run(comparison: Comparison, ledger: Ledger) -> str:
    """A table of the runs with their states, in order, and the number of iterations left."""
    cells = [["run", "starts from", "state", "iterations"]]
    left = 0
    for run in comparison.runs:
        state = ledger.state(run)
        train = run.training.train
        assert train is not None
        left += train.total_iter - (0 if state.other_options else state.iteration)
        cells.append([run.name, ", ".join(run.after) or "", str(state), str(train.total_iter)])
    total = f"{len(comparison.runs)} runs, {left} iterations left; folder {ledger.folder}"
    return f"{aligned(cells, left=3)}\n\n{total}\n"
