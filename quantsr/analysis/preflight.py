"""The checks of `quantsr check` beyond the option file: all that a command does before its first
step, except decoding pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from quantsr.config import Options
from quantsr.data.loader import check_training_set
from quantsr.engine import build
from quantsr.engine.evaluate import build_sets
from quantsr.engine.run_folder import RunFolder
from quantsr.engine.saving import Saver
from quantsr.engine.validation import left_out, metric_arguments
from quantsr.errors import InputError
from quantsr.loading import trained_network


def problems_of(options: Options, is_train: bool) -> list[str]:
    """An error message for each part of the run that cannot start. Pictures that a training leaves
    out are named in the log."""
    checks = [_training_set, _validation_sets, _networks] if is_train else [_trained_network, _test_sets]
    found = []
    for check in checks:
        problem = _problem(check, options)
        if problem is not None and problem not in found:
            found.append(problem)
    if is_train and not found:
        problem = _problem(_resumption, options)
        found += [] if problem is None else [problem]
    return found


def _problem(check: Callable[[Options], None], options: Options) -> str | None:
    try:
        check(options)
    except InputError as error:
        return str(error)
    return None


def _training_set(options: Options) -> None:
    check_training_set(options.datasets["train"], options.scale)


def _validation_sets(options: Options) -> None:
    build_sets(options.sets("val"), options.scale, metric_arguments(options), left_out)


def _test_sets(options: Options) -> None:
    build_sets(options.evaluation_sets(), options.scale, metric_arguments(options))


def _trained_network(options: Options) -> None:
    net, _ = trained_network(options)
    build.depths_to_evaluate(net, options)
    build.build_teacher(options)


def _networks(options: Options) -> None:
    net = build.build_for_options(options)
    build.initialise(net, options)
    if options.train is not None and options.train.distill is not None:
        build.build_teacher(options)


def _resumption(options: Options) -> None:
    """Checks that the training state to resume from fits network, optimizers, schedule and seed."""
    folder = RunFolder(Path(options.experiment_folder))
    state = Saver(options, folder).find_state(options.auto_resume)
    if state is None or options.train is None:
        return
    where = f"training state of iteration {int(state['iteration'])}"
    net = build.build_for_options(options)
    teacher = build.build_teacher(options) if options.train.distill is not None else None
    kind = build.model_class(options.model_type)
    model = kind(options, net=net, device=torch.device("cpu"), teacher=teacher)
    try:
        model.load_state(state["model"])
    except (LookupError, RuntimeError, TypeError, ValueError) as error:
        first = [*str(error).strip().splitlines(), type(error).__name__][0]
        raise InputError(f"{where} does not fit these options ({first}); train under another name") from error
    seed = int(state["loader"]["seed"])
    if seed != options.manual_seed:
        raise InputError(
            f"manual_seed: {options.manual_seed}, but the {where} has {seed}; set it back, or start anew"
        )
