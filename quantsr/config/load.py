"""Reading an option file: :class:`Options`, or a list of all its problems."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from pydantic import ValidationError

from quantsr.config.folders import check_checkpoints, check_dataset, expand_paths
from quantsr.config.from_checkpoint import fill_network
from quantsr.config.layers import apply_overrides, drop_nulls, read_layers
from quantsr.config.problems import Problems
from quantsr.config.references import References
from quantsr.config.rules import check_rules, keys_in_use
from quantsr.config.schema import Options
from quantsr.config.translate import add_validation_errors
from quantsr.errors import InputError, OptionsError


def load_options(
    path: str,
    overrides: Sequence[str] = (),
    force_yml: Sequence[str] = (),
    is_train: bool = True,
    check_paths: bool = True,
    read: tuple[dict[str, Any], Problems] | None = None,
) -> Options:
    """Read, merge and check an option file.

    Args:
        path: the file; it may inherit from others under ``_base_``.
        overrides: ``a.b=value`` each, from ``--set``; they override the file.
        force_yml: ``a:b=value`` each, from BasicSR's ``--force_yml``.
        is_train: whether the options are for training (the section ``train`` and the training set
            are needed, test sets are not checked) or for a test (vice versa; ``network_g`` and
            ``scale`` may come from the checkpoint).
        check_paths: whether the folders and files it names must exist.
        read: the result of `read_options` where the file was read before: a pipe cannot be read
            twice.

    Raises:
        OptionsError: with one line ``FILE: key: problem; remedy`` for every problem, all at once.
    """
    options, problems = read or read_options(path)
    if "variants" in options and "network_g" not in options:
        problems.add((), "is a comparison; run it with: quantsr compare -opt FILE")
        problems.raise_if_any()
    apply_overrides(options, force_yml, "--force_yml", ":", problems)
    apply_overrides(options, overrides, "--set", ".", problems)
    options = drop_nulls(options)
    references = References(options, problems)
    if not is_train:
        section = references.under("path")
        expand_paths({"path": section})
        fill_network(options, section, problems)
    options = references.options()
    expand_paths(options)
    checked = check_options(options, problems, is_train=is_train, check_paths=check_paths)
    problems.raise_if_any()
    assert checked is not None  # no problem was noted, so it was valid
    return checked


def check_options(
    options: dict[str, Any],
    problems: Problems,
    *,
    is_train: bool,
    check_paths: bool,
    awaited: Collection[str] = (),
) -> Options | None:
    """Note every problem of merged options: types, rules between keys and, with ``check_paths``,
    absent folders and files.

    Args:
        options: in the layout of an option file, without nulls.
        problems: receives the problems.
        is_train, check_paths: see :func:`load_options`.
        awaited: checkpoints that earlier runs will write; they need not exist.

    Returns:
        The options, None where types are wrong.
    """
    checked = _validate(options, problems)
    check_rules(options, is_train, problems)
    datasets = options.get("datasets")
    if check_paths and isinstance(datasets, dict):
        for key in keys_in_use(datasets, is_train):
            if isinstance(datasets[key], dict):
                check_dataset(key, datasets[key], problems)
    if check_paths:
        check_checkpoints(options.get("path"), is_train, problems, awaited)
    return checked


def read_options(path: str) -> tuple[dict[str, Any], Problems]:
    """Read a file and the files that it inherits from, and merge them, unchecked; with an empty
    list of problems.

    Raises:
        OptionsError: the file cannot be read.
    """
    try:
        options, origins = read_layers(path)
    except OptionsError:
        raise
    except InputError as error:
        raise OptionsError([str(error)]) from None
    return options, Problems(path, origins)


def _validate(options: dict[str, Any], problems: Problems) -> Options | None:
    try:
        return Options.model_validate(options)
    except ValidationError as error:
        add_validation_errors(error, problems)
        return None
