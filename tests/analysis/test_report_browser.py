"""The page of `quantsr report` in a browser without a window."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from quantsr.analysis.compare_tables import COSTS, Cost
from quantsr.cli import main
from quantsr.engine.results import Record, write_results
from tests.analysis.test_report import make_run, truth  # noqa: F401 (`truth` is a fixture)
from tests.browser import ENTER, RIGHT, drag, emulate, is_dark

pytestmark = pytest.mark.integration


@pytest.fixture
def page(
    browser: Any,
    truth: Path,  # noqa: F811
    tmp_path: Path,
    valid: dict[str, Any],
    write: Callable[..., Path],
) -> Any:
    """The report of a test run with pictures, and of a comparison with costs, in the browser."""
    run = make_run(tmp_path / "a", truth)
    file = write(valid)
    folder = tmp_path / "compare_try"
    records = [
        Record("S", 2, "Q", 2, "psnr", value, 1, variant=variant, seed=seed)
        for variant, value in (("rlq", 30.125), ("float", 9.5))
        for seed in (3, 7)
    ]
    write_results(records, folder)
    comparison = yaml.safe_load(file.read_text())
    (folder / "options.yml").write_text(yaml.safe_dump({**comparison, "base": str(tmp_path / "base.yml")}))
    costs = {
        "rlq": Cost("", 1000, {2: 1.0}, {2: 5.0}, "native", "a processor"),
        "float": Cost("", 90_000, {2: 64.0}, {2: 9.0}, "native", "a processor"),
    }
    (folder / COSTS).write_text(json.dumps({name: asdict(cost) for name, cost in costs.items()}))
    output = tmp_path / "report.html"
    assert main(["report", str(run), str(folder), "-o", str(output)]) == 0
    # on its own, so that whatever the page would load is missing
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.move(output, alone / "report.html")
    browser.execute_cdp_cmd("Network.enable", {})
    browser.get((alone / "report.html").as_uri())
    return browser


def column(page: Any, table: Any, index: int) -> list[str]:
    return [row.find_elements("css selector", "th, td")[index].text for row in rows(table)]


def rows(table: Any) -> list[Any]:
    return list(table.find_elements("css selector", "tbody tr"))


def test_a_header_sorts_its_table_by_pointer_and_keyboard(page: Any) -> None:
    table = next(
        t
        for t in page.find_elements("tag name", "table")
        if "variant" in t.find_element("tag name", "tr").text
    )
    heads = table.find_elements("css selector", "thead th")
    names = [head.text.split()[0] for head in heads]
    psnr = names.index("PSNR")
    original = column(page, table, 0)
    assert original == ["rlq", "float"]
    button = heads[psnr].find_element("tag name", "button")
    orders = []
    for press in (button.click, lambda: button.send_keys(ENTER), lambda: button.send_keys(" ")):
        press()
        orders.append((heads[psnr].get_attribute("aria-sort"), column(page, table, 0)))
    # 9.5 is below 30.125 as a number, above it as text
    assert orders == [
        ("descending", ["rlq", "float"]),
        ("ascending", ["float", "rlq"]),
        (None, original),
    ]
    assert page.get_log("browser") == []


def test_the_slider_moves_by_keyboard_and_pointer(page: Any) -> None:
    scene = page.find_element("css selector", ".scene")
    slider = scene.find_element("css selector", "input[type=range]")
    shown = [v for v in scene.find_elements("css selector", ".version") if v.is_displayed()]
    assert len(shown) == 2

    def clip() -> str:
        return str(shown[0].value_of_css_property("clip-path"))

    assert clip() == "inset(0px 50% 0px 0px)"
    slider.send_keys(RIGHT * 5)
    assert (slider.get_attribute("value"), clip()) == ("55", "inset(0px 45% 0px 0px)")
    stage = scene.find_element("css selector", ".stage")
    drag(page, stage, -(stage.rect["width"] // 4))
    assert abs(int(slider.get_attribute("value")) - 25) <= 1
    errors = scene.find_element("tag name", "details")
    assert not errors.find_element("tag name", "img").is_displayed()
    errors.find_element("tag name", "summary").send_keys(ENTER)
    assert errors.find_element("tag name", "img").is_displayed()
    assert page.get_log("browser") == []


def test_charts_of_costs_are_drawn(page: Any) -> None:
    titles = [c.text for c in page.find_elements("css selector", ".chart figcaption")]
    assert titles == [f"PSNR on S against {cost}" for cost in ("packed size", "operations", "time")]
    chart = page.find_element("css selector", ".chart")
    places = [mark.rect for mark in chart.find_elements("css selector", "svg[role=img] circle")]
    box = chart.find_element("css selector", "svg").rect
    assert len(places) == 2
    for place in places:
        assert box["x"] < place["x"] < box["x"] + box["width"]
        assert box["y"] < place["y"] < box["y"] + box["height"]
    assert places[0]["x"] < places[1]["x"]  # rlq is smaller,
    assert places[0]["y"] < places[1]["y"]  # and better, which is above


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_shows_it_without_scrolling_sideways(page: Any, dark: bool) -> None:
    emulate(page, width=360, dark=dark)
    assert page.execute_script("return document.documentElement.scrollWidth") <= 360
    assert is_dark(page) == dark


def test_no_request_leaves_the_page(page: Any) -> None:
    names = page.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in names if not name.startswith("data:")] == []
    assert page.get_log("browser") == []
