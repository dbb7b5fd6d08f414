"""Reading the folders of test runs, training runs and comparisons."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from quantsr.analysis.compare_tables import Cost, read_costs
from quantsr.config.compare import load_comparison
from quantsr.config.comparison import Comparison
from quantsr.config.schema import Options
from quantsr.config.yaml_file import read_yaml
from quantsr.engine.results import Record, read_results
from quantsr.errors import InputError
from quantsr.paths import expanded


@dataclass(frozen=True)
class Source:
    """The saved pictures of a run: ``folder/SET/NAME_SUFFIX[_ITERATION][_depthN].png``.

    Attributes:
        label: of the network, in lists of pictures.
        folder: with a folder per set.
        suffix: see above.
        options: of the run, with the folders of LR and ground-truth pictures of the sets.
    """

    label: str
    folder: Path
    suffix: str
    options: Options


@dataclass(frozen=True)
class ReportRun:
    """The results of one run.

    Attributes:
        label: short and unique in a report.
        folder: of the run.
        kind: ``test``, ``training`` or ``comparison``.
        records: of ``results.json``; none where the run is not finished.
        comparison: the comparison file, for a comparison.
        costs: of its variants, where they are known.
        sources: saved pictures.
    """

    label: str
    folder: Path
    kind: str
    records: Sequence[Record] = ()
    comparison: Comparison | None = None
    sources: Sequence[Source] = ()
    costs: Mapping[str, Cost] = field(default_factory=dict)

    @property
    def tensorboard(self) -> Path:
        """The folder of the TensorBoard log; it may not exist."""
        return self.folder / "tb_logger"


def read_runs(paths: Sequence[str]) -> list[ReportRun]:
    """Reads run folders (or their ``results.json``).

    Raises:
        InputError: a path is not a run, damaged, or given twice.
    """
    folders = [_folder(path) for path in paths]
    labels = _labels(folders)
    return [_read(folder, label) for folder, label in zip(folders, labels, strict=True)]


def _folder(path: str) -> Path:
    folder = expanded(path)
    if folder.name == "results.json":
        folder = folder.parent
    if not folder.is_dir():
        raise InputError(f"{path}: no such folder; give a run, such as results/NAME or experiments/NAME")
    return folder


def _labels(folders: Sequence[Path]) -> list[str]:
    """The folders' names, with as many parent folders as needed to make them unique."""
    paths = [Path(os.path.abspath(folder)) for folder in folders]
    for count in range(1, max(len(path.parts) for path in paths) + 1):
        labels = ["/".join(path.parts[-count:]) for path in paths]
        if len(set(labels)) == len(labels):
            return labels
    raise InputError(f"{folders[0]}: a run is given twice; name each once")


def _read(folder: Path, label: str) -> ReportRun:
    results, options_file = folder / "results.json", folder / "options.yml"
    if not results.exists() and not (folder / "tb_logger").is_dir():
        raise InputError(
            f"{folder}: neither results.json nor a TensorBoard log in it; give the folder of a test, training or comparison"
        )
    records = _records(results) if results.exists() else []
    raw = read_yaml(str(options_file)) if options_file.exists() else {}
    if "variants" in raw:
        comparison = _comparison(options_file)
        sources = _sources_of(comparison, folder, label)
        return ReportRun(label, folder, "comparison", records, comparison, sources, read_costs(folder))
    kind = "training" if (folder / "models").is_dir() else "test"
    sources = []
    if raw:
        options = _options(options_file, raw)
        sources.append(Source(label, folder / "visualization", _suffix(options), options))
    return ReportRun(label, folder, kind, records, None, sources)


def _records(path: Path) -> list[Record]:
    try:
        return read_results(path)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path}: damaged ({error}); run the test or training again") from error


def _options(path: Path, raw: dict[str, object]) -> Options:
    try:
        return Options.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {key}: {first['msg']}; it is not what a run writes") from error


def _comparison(path: Path) -> Comparison:
    return load_comparison(str(path), check_paths=False)


def _sources_of(comparison: Comparison, folder: Path, label: str) -> list[Source]:
    """The saved pictures of the runs with the first seed."""
    first = comparison.options.seeds[0]
    return [
        Source(
            f"{label}/{run.name}",
            folder / run.name / "visualization",
            _suffix(run.evaluation),
            run.evaluation,
        )
        for run in comparison.runs
        if run.seed == first
    ]


def _suffix(options: Options) -> str:
    return (options.val.suffix if options.val is not None else None) or options.name
