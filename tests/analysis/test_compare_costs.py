"""Costs of a comparison: measured from the trained networks, kept, and written as Markdown, CSV and
LaTeX."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import quantsr
from quantsr.analysis import compare_costs
from quantsr.analysis.compare_formats import csv_text, escaped, latex
from quantsr.analysis.compare_tables import COST_SIZE, COSTS, Cost, read_costs, table_cells
from quantsr.analysis.cost import cost_of_packed
from quantsr.analysis.runs import Ledger
from quantsr.config.comparison import Comparison
from quantsr.deploy.convert import convert
from quantsr.deploy.export import calibration_pictures
from quantsr.deploy.packed import packing
from quantsr.engine.results import Record, write_results
from quantsr.engine.trainer import Trainer

RECORDS = [
    Record("S", 2, "bicubic", None, "psnr", 30.0, 1),
    *(
        Record("S", 2, f"Q {variant}", depth, "psnr", value + seed / 10, 1, variant=variant, seed=seed)
        for variant, depth, value in (("a_1", 8, 32.0), ("a_1", 4, 31.5), ("b", 8, 32.4))
        for seed in (1, 2)
    ),
]
MEASURED = {
    "a_1": Cost("x", 12345, {8: 7.6, 4: 3.4}, {8: 12.34, 4: 6.0}, "native", "some processor"),
    "b": Cost("y", 50000, {8: 100.0}, {}, note="no codes"),
}


def test_a_table_has_three_columns_of_costs() -> None:
    head, bicubic, *rows = table_cells(RECORDS, "S", "b", MEASURED)
    assert head[-3:] == ["kB", "GBitOP", "ms"]
    assert bicubic[-3:] == ["", "", ""]
    assert [row[-3:] for row in rows] == [["12.3", "8", "12.3"], ["12.3", "3", "6.0"], ["50.0", "100", "-"]]
    assert [row[:-3] for row in [head, bicubic, *rows]] == table_cells(RECORDS, "S", "b")


def test_a_single_depth_has_its_costs_too() -> None:
    cost = Cost("x", 1, {16: 2.0}, {})
    assert (cost.at(None, cost.gbitops), cost.at(16, cost.gbitops)) == (2.0, 2.0)
    assert (cost.at(4, cost.gbitops), cost.at(None, cost.ms)) == (None, None)


def test_csv_has_all_digits() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(RECORDS, "b", MEASURED))))
    assert [(row["variant"], row["depth"]) for row in rows] == [("a_1", "8"), ("a_1", "4"), ("b", "8")]
    assert float(rows[0]["mean"]) == pytest.approx(32.15, abs=1e-12)
    assert float(rows[0]["deviation"]) == pytest.approx(0.1 / 2**0.5, abs=1e-12)
    assert float(rows[0]["difference"]) == pytest.approx(-0.4, abs=1e-12)
    assert rows[1]["difference"] == rows[2]["difference"] == ""  # no such depth; the reference itself
    assert [row["packed_bytes"] for row in rows] == ["12345", "12345", "50000"]
    assert [row["ms"] for row in rows] == ["12.34", "6.0", ""]


def test_latex_escapes_names_and_writes_signs_in_mathematics() -> None:
    text = latex(RECORDS, "b", MEASURED)
    assert text.startswith("% S\n\\begin{tabular}{llrrrrrrr}\n\\toprule\n")
    assert r"a\_1 & Q a\_1 & 8 & 2 & 32.150 $\pm$ 0.071 & $-0.400$ $\pm$ 0.000 & 12.3 & 8 & 12.3 \\" in text
    assert escaped("50 % of {x}") == r"50 \% of \{x\}"


def test_damaged_costs_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_costs(tmp_path) == {}
    (tmp_path / COSTS).write_text('{"a": {"identity": 1}}')
    assert read_costs(tmp_path) == {}
    assert "damaged" in caplog.text


def test_costs_are_those_of_the_trained_network_and_measured_once(
    load: Callable[..., Comparison],
    valid: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A variant whose quantizer has no integer codes is counted, with the reason."""
    valid["seeds"] = [3]
    valid["variants"] = {"w4": {}, "dorefa": {"network_g.quantizer": "DoReFa"}}
    comparison = load(valid)
    ledger = Ledger(comparison)
    for run in comparison.runs:
        with ledger.exclusive():
            ledger.begin(run)
        Trainer(run.training, auto_resume=True, resume_command="").run()
        with ledger.exclusive():
            ledger.finish(run, [Record("S", 2, "Q", 2, "psnr", 30.0, 1)])
            write_results(ledger.results(), ledger.folder)
    with ledger.exclusive():
        compare_costs.update(comparison, ledger)
    costs = read_costs(ledger.folder)
    trained = quantsr.load(ledger.folder / "w4_seed3" / "models" / "net_g_latest.pth")
    model = convert(trained.eval(), calib=calibration_pictures(None, 2))
    assert costs["w4"].packed_bytes == len(packing.to_bytes(model))
    wanted = {row["depth"]: row["sizes"][0]["bitops"] for row in cost_of_packed(model, [COST_SIZE])["depths"]}
    assert costs["w4"].gbitops == pytest.approx({d: v / 1e9 for d, v in wanted.items()}, abs=5e-4)
    assert set(costs["w4"].ms) == {2, 1}
    assert all(ms > 0 for ms in costs["w4"].ms.values())
    assert costs["w4"].note == ""

    def fail(*args: object) -> Cost:
        raise AssertionError("measured again")

    monkeypatch.setattr(compare_costs, "_cost", fail)
    with ledger.exclusive():
        compare_costs.update(comparison, ledger)
    rows = json.loads((ledger.folder / COSTS).read_text())
    rows["w4"]["identity"] = "of other options"
    (ledger.folder / COSTS).write_text(json.dumps(rows))
    with ledger.exclusive(), pytest.raises(AssertionError, match="measured again"):
        compare_costs.update(comparison, ledger)
