"""``quantsr compare``: trains every variant with every seed, evaluates each, and tables mean, spread and paired differences.

Everything lies below ``experiments/compare_NAME/``: a run folder per variant and seed, ``results.json``, ``results.md``,
``options.yml``, the comparison in one file, and ``runs.json``, which says with which options each run was made. Finished runs are kept, an interrupted one goes on.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from quantsr.errors import InputError, StopError, WorkError

if TYPE_CHECKING:
    from quantsr.analysis.runs import Ledger
    from quantsr.config.comparison import Comparison, Run
    from quantsr.engine.results import Record

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``quantsr compare``."""
    from quantsr.config.arguments import add_option_arguments

    add_option_arguments(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would run, in order, and run nothing"
    )
    parser.add_argument(
        "--retrain",
        action="store_true",
        help="set runs that were made with other options aside, and train them again",
    )


def run(args: argparse.Namespace) -> int:
    """The command."""
    from quantsr.analysis.runs import Ledger
    from quantsr.config.arguments import typed_again
    from quantsr.config.compare import load_comparison

    comparison = load_comparison(args.opt, args.set, args.force_yml)
    ledger = Ledger(comparison)
    if args.dry_run:
        sys.stdout.write(plan(comparison, ledger))
        return 0
    go_on = typed_again("compare", args, *(["--retrain"] if args.retrain else []))
    records = compare(comparison, ledger, go_on=go_on, retrain=args.retrain)
    sys.stdout.write(page(comparison, records))
    return 0


def compare(comparison: Comparison, ledger: Ledger, *, go_on: str, retrain: bool = False) -> list[Record]:
    """Does what is not done yet and returns the records of all runs; ``results.json`` and ``results.md`` follow each run.

    Args:
        comparison: what to do.
        ledger: what is done.
        go_on: the command that goes on after an interruption, for the message.
        retrain: train runs that were made with other options again.

    Raises:
        InputError: there are such runs, and ``retrain`` is off; or several processes were started.
        StopError: a signal came; what is finished is kept.
        WorkError: runs failed; the others are finished.
    """
    from quantsr.engine import distributed
    from quantsr.engine.run_folder import write_options

    if distributed.detect("none").size > 1:
        raise InputError(
            "quantsr compare: trains one run after the other in one process; start it without torchrun"
        )
    foreign = [run.name for run in comparison.runs if ledger.state(run).foreign]
    if foreign and not retrain:
        raise InputError(
            f"{ledger.folder}: made with other options: {', '.join(foreign)}; give the comparison another name, or "
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
                _train(run, go_on)
            if not state.evaluated:
                ledger.finish(run, _evaluate(run, go_on))
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


def _train(run: Run, go_on: str) -> None:
    from quantsr.engine.trainer import Trainer

    Trainer(run.training, auto_resume=True, go_on=go_on).run()


def _evaluate(run: Run, go_on: str) -> list[Record]:
    from quantsr.engine.run_folder import StopRequest
    from quantsr.test import evaluate_options

    with StopRequest() as stop:

        def give_way(line: str) -> None:
            if stop.name is not None:
                raise StopError(
                    f"stopped by {stop.name} at {line}; finished runs are kept; go on with: {go_on}"
                )

        return evaluate_options(run.evaluation, give_way)


def _baseline(comparison: Comparison) -> list[Record]:
    from quantsr.engine.evaluate import Provenance, bicubic, build_sets
    from quantsr.engine.validation import metric_arguments

    options = comparison.runs[0].evaluation
    sets = build_sets(options.evaluation_sets(), options.scale)
    provenance = Provenance(options.config_hash())
    return bicubic(sets, metrics=metric_arguments(options), provenance=provenance)


def _write(comparison: Comparison, ledger: Ledger) -> list[Record]:
    from quantsr.engine.results import write_results

    records = ledger.results()
    write_results(records, ledger.folder, page(comparison, records))
    return records


def page(comparison: Comparison, records: Sequence[Record]) -> str:
    """The Markdown page of the records there are."""
    from quantsr.analysis.compare_tables import markdown

    finished = {(record.variant, record.seed) for record in records}
    return markdown(
        comparison.options.name,
        records,
        reference=comparison.options.difference_to,
        about=about_variants(comparison),
        missing=[run.name for run in comparison.runs if (run.variant, run.seed) not in finished],
    )


def about_variants(comparison: Comparison) -> dict[str, str]:
    """Per variant, in the order of the file: iterations and what it changes."""
    first = {run.variant: run for run in reversed(comparison.runs)}
    found = {}
    for variant, changes in comparison.changes.items():
        train = first[variant].training.train
        assert train is not None
        words = [
            f"{train.total_iter} iterations",
            *(f"`{key}={_shown(value)}`" for key, value in changes.items()),
        ]
        found[variant] = ", ".join(words)
    return found


def _shown(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def plan(comparison: Comparison, ledger: Ledger) -> str:
    """What would run, in order, and how many iterations are left."""
    from quantsr.engine.results import aligned

    cells = [["run", "starts from", "state", "iterations"]]
    left = 0
    for run in comparison.runs:
        state = ledger.state(run)
        train = run.training.train
        assert train is not None
        left += train.total_iter - (0 if state.foreign else state.iteration)
        cells.append([run.name, ", ".join(run.after) or "", str(state), str(train.total_iter)])
    total = f"{len(comparison.runs)} runs, {left} iterations left; folder {ledger.folder}"
    return f"{aligned(cells, left=3)}\n\n{total}\n"
