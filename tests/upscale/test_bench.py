"""`quantsr bench` reports every depth, and the timing helpers are fair."""

from __future__ import annotations

import json

import pytest

from quantsr import cli, timing


def test_json_has_every_depth(network_file, capsys) -> None:
    words = ["--size", "8x9", "--runs", "2", "--engine", "openvino", "--json"]
    assert cli.main(["bench", "-m", str(network_file), *words]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["engine"].startswith("openvino")
    assert record["size"] == [8, 9]
    assert [row["depth"] for row in record["depths"]] == [3, 2, 1]
    assert all(0 < row["fastest_ms"] <= row["median_ms"] for row in record["depths"])


def test_one_depth_as_a_table(network_file, capsys) -> None:
    assert cli.main(["bench", "-m", str(network_file), "--size", "8x9", "--runs", "1", "--depth", "2"]) == 0
    out = capsys.readouterr().out
    assert "| 2 |" in out
    assert "| 3 |" not in out


def test_bad_runs_are_named(network_file, capsys) -> None:
    assert cli.main(["bench", "-m", str(network_file), "--runs", "0"]) == 2
    assert "--runs: must be at least 1" in capsys.readouterr().err


def test_contenders_take_turns() -> None:
    order: list[str] = []
    contenders = {name: (lambda name=name: order.append(name)) for name in "ab"}
    results = timing.interleaved(contenders, rounds=2, warm_up=1)
    assert "".join(order) == "ab" + "abab"
    assert [len(result.times) for result in results] == [2, 2]


def test_median_and_quartile_distance() -> None:
    result = timing.Timing("a", (1.0, 2.0, 3.0, 4.0, 100.0))
    assert result.median == 3.0
    assert result.fastest == 1.0
    assert timing.Timing("b", (5.0,)).spread == 0.0
    assert result.spread == pytest.approx(50.5)
