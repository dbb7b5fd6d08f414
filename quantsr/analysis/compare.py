"""Comparisons: every variant is trained with every seed and evaluated; tables have mean, spread and
paired differences.

The folder ``experiments/compare_NAME/`` has a run folder per variant and seed, ``results.json``,
``results.md``, ``options.yml`` (the comparison in one file), and ``runs.json`` with hashes of the
options of each run. Finished runs are kept, an interrupted one is resumed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from quantsr.analysis.compare_tables import about_variants, markdown
from quantsr.analysis.evaluation import evaluate_options
from quantsr.analysis.runs import Ledger
from quantsr.config.comparison import Comparison, Run
from quantsr.engine.evaluate import Provenance, bicubic, build_sets
from quantsr.engine.results import Record, aligned, write_results
from quantsr.engine.run_folder import StopRequest, owned, write_options
from quantsr.engine.trainer import Trainer
from quantsr.engine.validation import metric_arguments
from quantsr.errors import InputError, StopError, WorkError
from quantsr.hardware import processes

logger = logging.getLogger(__name__)


def compare(
    comparison: Comparison, ledger: Ledger, *, resume_command: str, retrain: bool = False
) -> list[Record]:
    """Trains and evaluates the runs that are not finished, and returns the records of all runs;
    ``results.json`` and ``results.md`` are written after each run.

    Args:
        comparison: the runs.
        ledger: the state of each run.
        resume_command: the command that resumes after an interruption, for the message.
        retrain: train runs again that were made with other options.

    Raises:
        InputError: there are such runs, and ``retrain`` is off; or several processes were started.
        StopError: stopped by a signal; finished runs are kept.
        FolderLockedError: another process runs this comparison.
        WorkError: runs failed; the others are finished.
    """
    if processes.detect("none").size > 1:
        raise InputError(
            "quantsr compare: trains one run after the other in one process; start it without torchrun"
        )
    with owned(ledger.folder):
        ledger.read()
        return _compare(comparison, ledger, resume_command=resume_command, retrain=retrain)


def _compare(comparison: Comparison, ledger: Ledger, *, resume_command: str, retrain: bool) -> list[Record]:
    """`compare`, with its folder locked."""
    for folder in filter(Path.exists, (Path(run.training.experiment_folder) for run in comparison.runs)):
        # removes incomplete files of killed trainings, also for runs that are finished
        with owned(folder):
            pass
    differing = [run.name for run in comparison.runs if ledger.state(run).other_options]
    if differing and not retrain:
        raise InputError(
            f"{ledger.folder}: made with other options: {', '.join(differing)}; give the comparison another name, or "
            "add --retrain to set these runs aside and train them again"
        )
    write_options(comparison.dump(), ledger.folder)
    failed: dict[str, str] = {}
    for number, run in enumerate(comparison.runs, start=1):
        unmet = [name for name in run.after if name in failed]
        if unmet:
            failed[run.name] = f"starts from {unmet[0]}, which failed"
            continue
        state = ledger.state(run)
        logger.info("run %d of %d, %s: %s", number, len(comparison.runs), run.name, state)
        try:
            if not state.trained:
                ledger.begin(run)
                _train(run, resume_command)
            if not state.evaluated:
                ledger.finish(run, _evaluate(run, resume_command))
                _write(comparison, ledger)
        except StopError as error:
            raise StopError(f"{run.name}: {error}") from error
        except InputError as error:
            raise InputError(f"{run.name}: {error}") from error
        except WorkError as error:
            logger.error("%s: %s", run.name, error)
            failed[run.name] = str(error)
    if comparison.baseline:
        ledger.add_baseline(_baseline(comparison))
    records = _write(comparison, ledger)
    if failed:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise WorkError(
            f"{len(failed)} of {len(comparison.runs)} runs failed, the others are finished; {reasons}"
        )
    return records


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
    write_results(records, ledger.folder, page(comparison, records))
    return records


def page(comparison: Comparison, records: Sequence[Record]) -> str:
    """The Markdown page of the records so far."""
    finished = {(record.variant, record.seed) for record in records}
    return markdown(
        comparison.options.name,
        records,
        reference=comparison.options.difference_to,
        about=about_variants(comparison),
        missing=[run.name for run in comparison.runs if (run.variant, run.seed) not in finished],
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
