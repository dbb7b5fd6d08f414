"""Checks of sections with a ``type``, except networks: the type is registered, and accepts the
arguments of the section."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from quantsr.config import registries
from quantsr.config.base import Registered, section_at
from quantsr.config.binding import bind, parameters
from quantsr.config.problems import KeyPath, Problems, did_you_mean
from quantsr.config.sections import DatasetOptions, MetricOptions
from quantsr.config.training import LossOptions, OptimizerOptions, SchedulerOptions

OWN_DATASETS = ("PairedImageDataset", "CroppedImageDataset", "SkimageDataset")
"""Data sets whose keys are those of the schema."""

_PICTURES = ("img", "img2")
"""The arguments that a metric is called with."""


def check_arguments(options: Mapping[str, Any], problems: Problems) -> None:
    """Note the problems of the sections of losses, metrics, data sets, optimizer and schedule."""
    train, val = section_at(options, "train"), section_at(options, "val")
    if "losses" in train and "pixel_opt" in train:
        problems.add(("train", "pixel_opt"), "train.losses is given too; make it one of them, or remove it")
    path: KeyPath
    loss = ("pixel loss", registries.losses, LossOptions)
    _check(problems, ("train", "pixel_opt"), train.get("pixel_opt"), *loss)
    for name, section in section_at(train, "losses").items():
        path = ("train", "losses", str(name))
        if not str(name).isidentifier():
            problems.add(path, "must be a name of letters, digits and '_'")
        _check(problems, path, section, *loss)
    optimizer = section_at(train, "optim_g")
    # Muon's constructor takes no betas: they are those of the Adam for the other parameters.
    muon = ("betas",) if optimizer.get("type") == "Muon" else ()
    path, named = ("train", "optim_g"), ("optimizer", registries.optimizers, OptimizerOptions)
    _check(problems, path, optimizer, *named, supplied=("params",), section_only=muon)
    path, schedule = ("train", "scheduler"), ("schedule", registries.schedulers, SchedulerOptions)
    _check(problems, path, train.get("scheduler"), *schedule, supplied=("optimizer", "last_epoch"))
    metric = ("metric", registries.metrics, MetricOptions)
    for key, section in section_at(val, "metrics").items():
        # Keys of every metric's section; a metric gets those that it accepts (`metric_arguments`).
        only = ("better", "crop_border", *(("test_y_channel",) if _flag_is_off(section) else ()))
        path = ("val", "metrics", str(key))
        _check(problems, path, section, *metric, supplied=_PICTURES, section_only=only)
    for key, section in section_at(options, "datasets").items():
        _check_dataset(("datasets", str(key)), section, problems)


def _flag_is_off(section: Any) -> bool:
    return not (isinstance(section, dict) and section.get("test_y_channel"))


def _check(
    problems: Problems,
    key: KeyPath,
    section: Any,
    what: str,
    known: Callable[[], Mapping[str, Callable[..., Any]]],
    schema: type[Registered],
    *,
    supplied: Collection[str] = (),
    section_only: Collection[str] = (),
) -> None:
    """Note an unknown type and arguments that do not fit; `section_only` are keys that are not
    passed to the constructor."""
    if not isinstance(section, dict):
        return
    kind = section.get("type", schema.model_fields["type"].default)
    if not isinstance(kind, str):
        return  # a problem that the schema reports
    found = known()
    if kind not in found:
        problems.add((*key, "type"), f"no {what} {kind!r} is registered; {did_you_mean(kind, found)}")
        return
    given = {word: v for word, v in section.items() if word != "type" and word not in section_only}
    declared = [name for name in schema.model_fields if name != "type"]
    bind(key, kind, found[kind], given, problems, supplied=supplied, declared=declared)


def _check_dataset(key: KeyPath, section: Any, problems: Problems) -> None:
    """Note keys that a data set does not accept: by the schema for the project's data sets, by the
    keyword arguments of the class for others.

    A class that takes one dict of options, as BasicSR's do, is passed every key: which of them it
    reads cannot be checked.
    """
    if not isinstance(section, dict) or not isinstance(kind := section.get("type"), str):
        return
    declared = [name for name in DatasetOptions.model_fields if name != "phase"]
    more = [word for word in section if word not in DatasetOptions.model_fields]
    if kind in OWN_DATASETS:
        for word in more:
            problems.add((*key, word), f"unknown option; {did_you_mean(word, declared)}")
    elif more and (target := registries.datasets().get(kind)) is not None and not takes_dict(target):
        given = {word: section[word] for word in more}
        bind(key, kind, target, given, problems, declared=DatasetOptions.model_fields)


def takes_dict(target: Callable[..., Any]) -> bool:
    """Whether a data set's constructor takes one dict of options."""
    return list(parameters(target)) == ["opt"]
