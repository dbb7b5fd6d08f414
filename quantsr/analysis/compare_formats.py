"""The results of a comparison for other programs: CSV for plots, LaTeX for papers. No torch."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence

from quantsr.analysis.compare_tables import Cost, Spread, by_row, paired_difference, table_cells
from quantsr.engine.results import Record

COLUMNS = (
    "set", "scale", "variant", "network", "depth", "metric", "n", "mean", "deviation",
    "difference", "difference_deviation", "packed_bytes", "gbitops", "ms",
)  # fmt: skip

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{",
    "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
}  # fmt: skip


def csv_text(records: Sequence[Record], reference: str, costs: Mapping[str, Cost]) -> str:
    """One line for each set, variant, depth and metric, with `COLUMNS`; unknown values are empty.

    ``mean``, ``deviation`` and the paired differences to ``reference`` are as in the Markdown
    table, with all digits.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    kinds = dict.fromkeys((record.set, record.scale, record.metric) for record in records)
    for name, scale, metric in kinds:
        rows = by_row(records, name, metric)
        references = {depth: values for (variant, _, depth), values in rows.items() if variant == reference}
        for (variant, network, depth), values in rows.items():
            own = Spread.of(list(values.values()))
            other = paired_difference(values, references.get(depth, {})) if variant != reference else None
            cost = costs.get(variant)
            line = [name, scale, variant, network, depth, metric, own.n, own.mean, own.deviation]
            line += [None, None] if other is None else [other.mean, other.deviation]
            line += [None] * 3 if cost is None else [
                cost.packed_bytes, cost.at(depth, cost.gbitops), cost.at(depth, cost.ms)
            ]  # fmt: skip
            writer.writerow(line)
    return text.getvalue()


def latex(records: Sequence[Record], reference: str, costs: Mapping[str, Cost]) -> str:
    """One ``tabular`` for each set, with the cells of the Markdown table; it needs the package
    booktabs."""
    parts = []
    for name in dict.fromkeys(record.set for record in records):
        head, *rows = table_cells(records, name, reference, costs)
        body = [rf"\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}", r"\toprule", _line(head), r"\midrule"]
        body += [*map(_line, rows), r"\bottomrule", r"\end{tabular}"]
        parts.append(f"% {name}\n" + "\n".join(body) + "\n")
    return "\n".join(parts)


def _line(cells: Sequence[str]) -> str:
    return " & ".join(map(escaped, cells)) + r" \\"


def escaped(text: str) -> str:
    """``text`` with the characters that LaTeX reads as commands, and signs in mathematics."""
    text = "".join(_LATEX.get(character, character) for character in text)
    return re.sub(r"^([+-][0-9.]+)", r"$\1$", text)
