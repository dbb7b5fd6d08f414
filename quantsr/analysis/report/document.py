"""The page of `quantsr report`: tables, pictures and training curves of several runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quantsr.analysis.compare_tables import about_costs, about_variants, table_cells
from quantsr.analysis.report import curves, html, layers, pareto
from quantsr.analysis.report.pictures import scenes
from quantsr.analysis.report.runs import ReportRun
from quantsr.engine.results import Record, number


def report(runs: Sequence[ReportRun], *, title: str = "Results", per_set: int = 3, side: int = 192) -> str:
    """The page as HTML.

    Args:
        runs: in the order of the tables.
        title: of the page.
        per_set: pictures shown of each set.
        side: of the crops.
    """
    sources = [source for entry in runs for source in entry.sources]
    shown = scenes(sources, per_set=per_set, side=side) if per_set else []
    drawn = curves.charts([(entry.label, curves.read_scalars(entry.tensorboard)) for entry in runs])
    sections = [("Results", _results(runs))]
    sections += [(f"Comparison {entry.label}", _comparison(entry)) for entry in runs if entry.comparison]
    sections += [
        ("Pictures", "".join(html.scene(scene, number) for number, scene in enumerate(shown))),
        ("Training", f'<div class="charts">{"".join(drawn)}</div>\n' if drawn else ""),
        ("Layers", "".join(map(_layers, runs))),
        ("Runs", _provenance(runs)),
    ]
    return html.page(title, f"{len(runs)} runs" if len(runs) > 1 else runs[0].label, sections)


def _results(runs: Sequence[ReportRun]) -> str:
    """A table per set with the rows of all tests and trainings; equal baselines are shown once, for
    the first run."""
    rows = [(entry.label, record) for entry in runs if not entry.comparison for record in entry.records]
    tables = []
    for key in dict.fromkeys((record.set, record.scale, record.pictures) for _, record in rows):
        name, scale, pictures = key
        chosen = [(label, r) for label, r in rows if (r.set, r.scale, r.pictures) == key]
        tables.append(html.table(f"{name}, x{scale}, {pictures} pictures", _cells(chosen), left=2))
    return "".join(tables)


def _cells(rows: Sequence[tuple[str, Record]]) -> list[list[str]]:
    metrics = list(dict.fromkeys(record.metric for _, record in rows))
    values: dict[tuple[str, str], dict[str, float]] = {}
    for label, record in rows:
        values.setdefault((label, record.row), {})[record.metric] = record.value
    cells = [["run", "network", *(metric.upper() for metric in metrics)]]
    baselines = []
    for (label, network), found in values.items():
        if network == "bicubic":
            if found in baselines:
                continue
            baselines.append(found)
        cells.append([label, network, *(number(found.get(metric), metric) for metric in metrics)])
    return cells


def _comparison(entry: ReportRun) -> str:
    """The tables of a comparison: mean and spread over seeds, differences paired by seed."""
    assert entry.comparison is not None
    reference = entry.comparison.options.difference_to
    text = (
        "Mean ± sample standard deviation over n seeds. Differences are counted from the same depth of "
        f"{reference} and paired by seed."
    )
    parts = [html.paragraph(text)]
    for name in dict.fromkeys(record.set for record in entry.records):
        first = next(record for record in entry.records if record.set == name)
        caption = f"{name}, x{first.scale}, {first.pictures} pictures"
        parts.append(html.table(caption, table_cells(entry.records, name, reference, entry.costs), left=2))
        if entry.costs:
            drawn = _quality_against_costs(entry, name)
            parts.append(f'<div class="charts">{"".join(drawn)}</div>\n' if drawn else "")
    if entry.costs:
        parts.append(html.paragraph(about_costs(entry.costs)))
    about = about_variants(entry.comparison)
    parts.append(html.bullets([(variant, what.replace("`", "")) for variant, what in about.items()]))
    return "".join(parts)


def _quality_against_costs(entry: ReportRun, set_name: str) -> list[str]:
    """The charts of the first metric of a set of which more is better; none without one."""
    assert entry.comparison is not None
    val = entry.comparison.runs[0].evaluation.val
    lower = {name for name, metric in val.metrics.items() if metric.better == "lower"} if val else set()
    for record in entry.records:
        if record.set == set_name and record.metric not in lower:
            return pareto.charts(entry.records, set_name, record.metric, entry.costs)
    return []


def _layers(entry: ReportRun) -> str:
    """Steps and codes of the layers of a run's networks."""
    parts = []
    for label, model in layers.networks(entry):
        table = html.table("Quantized layers", layers.cells(model), left=1, drawn=True)
        parts.append(html.folded(label, table))
    return "".join(parts)


def _provenance(runs: Sequence[ReportRun]) -> str:
    """The table of iterations, options, commits and folders of the runs."""
    cells = [["run", "kind", "iteration", "options", "commit", "quantsr", "folder"]]
    for entry in runs:
        trained = [record for record in entry.records if record.network != "bicubic"]
        cells.append(
            [
                entry.label,
                entry.kind,
                _one_of(record.iteration for record in trained),
                "" if entry.comparison else _one_of(record.config_hash for record in trained),
                _one_of(record.commit for record in trained),
                _one_of(record.version for record in trained),
                str(entry.folder),
            ]
        )
    return html.table("Where the numbers come from", cells, left=len(cells[0]))


def _one_of(values: Iterable[object]) -> str:
    """The distinct values that are not None, as text."""
    return ", ".join(dict.fromkeys(str(value) for value in values if value is not None))
