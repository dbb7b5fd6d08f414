"""Reading a comparison file: its runs, checked and in order, or a list of all its problems."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from quantsr.config.comparison import CompareOptions, Comparison, Run, run_name
from quantsr.config.folders import expand_paths
from quantsr.config.layers import (
    BASE_KEY,
    apply_overrides,
    drop_nulls,
    merge,
    note_origins,
    read_layers,
)
from quantsr.config.load import check_options, read_options
from quantsr.config.placeholders import Filled, check_starts, fill, in_order
from quantsr.config.problems import KeyPath, Problems
from quantsr.config.references import References
from quantsr.config.schema import dataset_phase
from quantsr.config.translate import add_validation_errors, show
from quantsr.config.yaml_file import MAX_LEVELS
from quantsr.errors import InputError

RESERVED = ("name", "manual_seed", "auto_resume", "path.experiments_root", "path.resume_state")
"""Options that the comparison sets for every run."""


def load_comparison(
    path: str,
    overrides: Sequence[str] = (),
    force_yml: Sequence[str] = (),
    check_paths: bool = True,
    read: tuple[dict[str, Any], Problems] | None = None,
) -> Comparison:
    """Read a comparison file, put the options of all its runs together and check them.

    Args:
        path, overrides, force_yml, check_paths, read: see `quantsr.config.load_options`; keys of
            the training that all variants share are set as ``base.key=value``, those of one variant
            as ``variants.NAME.key=value``.

    Raises:
        OptionsError: with one line for every problem, all at once.
    """
    raw, problems = read or read_options(path)
    _sections_of_dotted_keys(raw, problems)
    apply_overrides(raw, force_yml, "--force_yml", ":", problems)
    apply_overrides(raw, overrides, "--set", ".", problems)
    _sections_of_dotted_keys(raw, problems)
    raw = {key: value for key, value in raw.items() if value is not None}
    if isinstance(raw.get("variants"), dict):
        raw["variants"] = {name: value for name, value in raw["variants"].items() if value is not None}
    options = _validate(raw, problems)
    if options is None:
        problems.raise_if_any()
    assert options is not None
    comparison = _Assembly(options, problems, check_paths).comparison()
    problems.raise_if_any()
    return comparison


def _validate(raw: dict[str, Any], problems: Problems) -> CompareOptions | None:
    if "variants" not in raw and "network_g" in raw:
        problems.add((), "is no comparison but a training or test file; run quantsr train or test with it")
        return None
    try:
        return CompareOptions.model_validate(raw)
    except ValidationError as error:
        add_validation_errors(error, problems, CompareOptions)
        return None


def _sections_of_dotted_keys(raw: dict[str, Any], problems: Problems) -> None:
    """Turn ``base: FILE`` and dotted keys of ``base`` and ``variants`` into sections, in place."""
    if isinstance(raw.get("base"), str):
        raw["base"] = {BASE_KEY: raw["base"]}
        problems.origins["base", BASE_KEY] = problems.origin(("base",))
    variants = raw.get("variants")
    places: list[tuple[KeyPath, dict[str, Any]]] = [(("base",), raw)]
    if isinstance(variants, dict):
        places += [(("variants", name), variants) for name in variants]
    for key, parent in places:
        section = parent.get(key[-1])
        if isinstance(section, dict) and any("." in word for word in section):
            parent[key[-1]] = _expanded(section, key, problems)


def _expanded(section: dict[str, Any], key: KeyPath, problems: Problems) -> dict[str, Any]:
    result = {word: value for word, value in section.items() if "." not in word}
    for dotted, value in section.items():
        if "." not in dotted:
            continue
        *parents, last = dotted.split(".")
        if len(parents) > MAX_LEVELS:
            problems.add((*key, show(dotted)), f"has more than {MAX_LEVELS} parts; check the key")
            continue
        inner: Any = result
        for word in parents:
            inner = inner.setdefault(word, {}) if isinstance(inner, dict) else None
        if not isinstance(inner, dict) or last in inner:
            problems.add((*key, dotted), "is given twice, as a dotted key and as a section; keep one")
        else:
            inner[last] = value
            source = problems.origin((*key, dotted))
            note_origins({last: value}, source, problems.origins, (*key, *parents))
    return result


class _Assembly:
    """Assembles the runs of a comparison, noting every problem."""

    def __init__(self, options: CompareOptions, problems: Problems, check_paths: bool) -> None:
        self.options = options
        self.problems = problems
        self.check_paths = check_paths
        self.changes = {name: flat(value) for name, value in options.variants.items()}
        self._check_own_sections()

    def _check_own_sections(self) -> None:
        for key in self.options.datasets or {}:
            if dataset_phase(key) != "test":
                self.problems.add(
                    ("datasets", key), "no test set; use test or test_1, and base.datasets for training"
                )
        if "val_freq" in (self.options.val or {}):
            self.problems.add(("val", "val_freq"), "belongs to the training; write base.val.val_freq")
        for name, changes in self.changes.items():
            for key in RESERVED:
                if key in changes:
                    self.problems.add(
                        ("variants", name, *key.split(".")), "the comparison sets this; remove it"
                    )

    def comparison(self) -> Comparison:
        base, origins = self._base()
        merged = {}
        for name, changes in self.options.variants.items():
            merged[name] = copy.deepcopy(base)
            merge(merged[name], changes)
        filled = {
            (name, seed): self._filled(name, seed, options, self._problems_of(name, origins))
            for seed in self.options.seeds
            for name, options in merged.items()
        }
        first = self.options.seeds[0]
        self._validating = {name for name in merged if _has_val_set(filled[name, first].options)}
        order = in_order({name: filled[name, first].starts_from for name in merged}, self.problems)
        runs = []
        for seed in self.options.seeds:
            for name in order:
                run = self._run(name, seed, filled[name, seed], origins)
                if run is not None:
                    runs.append(run)
        self._check_together(runs)
        return Comparison(self.options, tuple(runs), self.changes, self._baseline(base), base)

    def _base(self) -> tuple[dict[str, Any], dict[KeyPath, str]]:
        """The base's options and where each key comes from."""
        section = copy.deepcopy(self.options.base)
        files = section.pop(BASE_KEY, None)
        written = self.problems.origin(("base", BASE_KEY))
        folder = os.path.dirname(written) if not written.startswith("--") else ""
        result: dict[str, Any] = {}
        origins: dict[KeyPath, str] = {}
        for file in [files] if isinstance(files, str) else files or []:
            path = os.path.normpath(os.path.join(folder, os.path.expanduser(str(file))))
            try:
                options, found = read_layers(path)
            except InputError as error:
                self.problems.add_line(f"{written}: base: {error}")
                self.problems.raise_if_any()  # further problems would follow from this one
                raise
            merge(result, options)
            origins.update(found)
        merge(result, section)
        for key, source in self.problems.origins.items():
            if key[0] == "base" and len(key) > 1:
                origins[key[1:]] = f"{source}: base"
        return result, origins

    def _problems_of(self, variant: str, base: dict[KeyPath, str]) -> Problems:
        """For the problems of a variant's runs, where a key comes from its changes or the base."""
        where = f"{self.problems.origin(('variants', variant))}: variants.{variant}"
        origins = dict(base)
        note_origins(self.options.variants[variant], where, origins)
        problems = Problems(where, origins)
        problems.lines = self.problems.lines
        return problems

    def _filled(self, name: str, seed: int, options: dict[str, Any], problems: Problems) -> Filled:
        """The options of one run with references and placeholders replaced, unchecked."""
        options = drop_nulls(copy.deepcopy(options))
        options |= {"name": run_name(name, seed), "manual_seed": seed}
        section = options.setdefault("path", {})
        if isinstance(section, dict):  # else the schema reports the problem
            section["experiments_root"] = self.options.folder
            section.pop("resume_state", None)
        options.pop("auto_resume", None)
        options = References(options, problems).options()
        folders = {
            other: os.path.join(self.options.folder, run_name(other, seed)) for other in self.options.variants
        }
        found = fill(options, name, seed, folders, self.problems)
        expand_paths(options)
        return found

    def _run(self, name: str, seed: int, filled: Filled, base: dict[KeyPath, str]) -> Run | None:
        """Check the options of a run; None where they have problems."""
        problems = self._problems_of(name, base)
        training = check_options(
            filled.options,
            problems,
            is_train=True,
            check_paths=self.check_paths,
            awaited=filled.awaited,
        )
        for section in ("datasets", "val"):
            for key, source in self.problems.origins.items():
                if key[0] == section:
                    problems.origins[key] = source
        tested = self._evaluation(filled.options, problems)
        checkpoint = tested["path"]["pretrain_network_g"]
        evaluation = check_options(
            tested, problems, is_train=False, check_paths=self.check_paths, awaited={checkpoint}
        )
        check_starts(filled, self._validating, problems)
        if training is None or evaluation is None:
            return None
        after = tuple(run_name(other, seed) for other in filled.starts_from)
        return Run(name, seed, training, evaluation, after)

    def _evaluation(self, training: dict[str, Any], problems: Problems) -> dict[str, Any]:
        """The options that evaluate a run's network, the averaged one where the run keeps it."""
        options = copy.deepcopy(training)
        options.pop("network_teacher", None)
        sets = options.get("datasets")
        sets = sets if isinstance(sets, dict) else {}
        by_phase = {
            phase: {k: v for k, v in sets.items() if dataset_phase(k) == phase} for phase in ("test", "val")
        }
        own = {"datasets": drop_nulls(self.options.datasets or {}), "val": self.options.val or {}}
        references = References({**training, **own}, problems)
        own_sets = references.under("datasets")
        expand_paths({"datasets": own_sets})
        options["datasets"] = own_sets or by_phase["test"] or by_phase["val"]
        val = options.get("val")
        options["val"] = val if isinstance(val, dict) else {}
        merge(options["val"], references.under("val"))
        options["val"] = {**drop_nulls(options["val"]), "baseline": False}
        train = options.get("train")
        averaged = isinstance(train, dict) and bool(train.get("ema_decay"))
        folder = os.path.join(self.options.folder, options["name"])
        options["path"] = {
            "experiments_root": self.options.folder,
            "results_root": self.options.folder,
            "pretrain_network_g": os.path.join(folder, "models", "net_g_latest.pth"),
            "param_key_g": "params_ema" if averaged else "params",
        }
        return options

    def _baseline(self, base: dict[str, Any]) -> bool:
        section = base.get("val")
        default = section.get("baseline", True) if isinstance(section, dict) else True
        return bool((self.options.val or {}).get("baseline", default))

    def _check_together(self, runs: Sequence[Run]) -> None:
        """Note runs at another scale than the first: results at different scales cannot be
        compared."""
        for run in runs:
            if run.training.scale != runs[0].training.scale:
                self.problems.add(
                    ("variants", run.variant, "scale"),
                    f"{run.training.scale} but {runs[0].training.scale} for {runs[0].variant}; compare one scale",
                )


def _has_val_set(options: dict[str, Any]) -> bool:
    datasets = options.get("datasets")
    return isinstance(datasets, dict) and any(dataset_phase(key) == "val" for key in datasets)


def flat(section: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested section by dotted key."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict) and value:
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found
