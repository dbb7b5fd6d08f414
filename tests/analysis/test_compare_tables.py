"""Means, spreads and paired differences, compared with numbers computed by hand."""

from __future__ import annotations

import math

import pytest

from quantsr.analysis.compare_tables import Spread, by_row, markdown, paired_difference, shown, table
from quantsr.engine.results import Record


def record(
    variant: str | None, seed: int | None, value: float, depth: int | None = 4, **more: object
) -> Record:
    fields = {"set": "S", "scale": 2, "network": "Q W2A2", "metric": "psnr", "pictures": 3, **more}
    return Record(depth=depth, value=value, variant=variant, seed=seed, **fields)  # type: ignore[arg-type]


def test_mean_and_sample_deviation() -> None:
    # mean 32; squares of the deviations 4 + 0 + 4 = 8, over n - 1 = 2: variance 4
    assert Spread.of([30.0, 32.0, 34.0]) == Spread(mean=32.0, deviation=2.0, n=3)
    assert Spread.of([31.5]) == Spread(mean=31.5, deviation=None, n=1)


def test_numbers_that_are_not_finite_have_no_spread() -> None:
    assert Spread.of([math.inf, 30.0]) == Spread(mean=math.inf, deviation=None, n=2)
    with pytest.raises(ValueError):
        Spread.of([])


def test_differences_are_paired_by_seed() -> None:
    # 1 - 0 and 5 - 2: mean 2, deviation sqrt(1 + 1); seeds that only one has do not count
    found = paired_difference({1: 1.0, 2: 5.0, 9: 100.0}, {2: 2.0, 1: 0.0, 8: -100.0})
    assert found is not None
    assert (found.mean, found.n) == (2.0, 2)
    assert found.deviation == pytest.approx(math.sqrt(2))
    assert paired_difference({1: 1.0}, {2: 1.0}) is None


def test_pairing_removes_the_spread_between_seeds() -> None:
    """Seeds that spread by 10 dB, a difference of exactly 0.5 in each: no spread of the
    difference."""
    found = paired_difference({1: 20.5, 2: 30.5}, {1: 20.0, 2: 30.0})
    assert found == Spread(mean=0.5, deviation=0.0, n=2)


def test_numbers_are_shown_with_deviation_and_count() -> None:
    assert shown(Spread(32.5, 0.25, 3), "psnr") == "32.500 ± 0.250"
    assert shown(Spread(0.5, None, 1), "ssim", signed=True, row_n=3) == "+0.50000 (n=1)"
    assert shown(None, "psnr") == "-"


RECORDS = [
    record(None, None, 30.0, depth=None, network="bicubic"),
    record("a", 1, 31.0),
    record("a", 2, 33.0),
    record("a", 1, 30.5, depth=2),
    record("bar", 1, 32.0, network="float Q"),
    record("bar", 2, 33.0, network="float Q"),
]


def test_the_table_of_a_set() -> None:
    assert table(RECORDS, "S", "bar").splitlines() == [
        "| variant | network | depth | n |           PSNR |     PSNR - bar |",
        "|---------|---------|------:|--:|---------------:|---------------:|",
        "| bicubic |         |       |   |         30.000 |                |",
        "| a       | Q W2A2  |     4 | 2 | 32.000 ± 1.414 | -0.500 ± 0.707 |",
        "| a       | Q W2A2  |     2 | 1 |         30.500 |              - |",
        "| bar     | float Q |     4 | 2 | 32.500 ± 0.707 |                |",
    ]


def test_rows_keep_sets_and_metrics_apart() -> None:
    more = [*RECORDS, record("a", 1, 0.9, metric="ssim"), record("a", 1, 28.0, set="T")]
    assert by_row(more, "S", "psnr") == by_row(RECORDS, "S", "psnr")
    assert by_row(more, "T", "psnr") == {("a", "Q W2A2", 4): {1: 28.0}}
    lines = table(more, "S", "bar").splitlines()
    assert lines[3].endswith("| 32.000 ± 1.414 | -0.500 ± 0.707 | 0.90000 |          - |")


def test_the_page_names_seeds_reference_and_unfinished_runs() -> None:
    page = markdown("try", RECORDS, reference="bar", about={"a": "4 iterations"}, missing=["bar_seed3"])
    assert page.startswith("# try\n")
    assert "over n seeds (1, 2)" in page
    assert "Differences to `bar`" in page
    assert "Not finished (1): bar_seed3." in page
    assert "## S, x2, 3 pictures" in page
    assert "- `a`: 4 iterations" in page
