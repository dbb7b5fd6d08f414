"""``quantsr report``: the content of the page, that it is self-contained, and that names are
escaped."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from quantsr.analysis.compare_tables import Cost
from quantsr.analysis.report import curves, pareto
from quantsr.analysis.report.pictures import FULL_ERROR, error_map, find_saved, scenes, strongest_edges
from quantsr.analysis.report.runs import Source, read_runs
from quantsr.cli import main
from quantsr.config import Options
from quantsr.data.evaluation import EvalDataset
from quantsr.data.resize import imresize_uint8
from quantsr.deploy.packed import packing
from quantsr.deploy.stand_ins.convolutional import random_model
from quantsr.engine.results import Record, write_results

EVIL = "<img src=x onerror=alert(1)>&\"'"
NETWORK = {"type": "QuantSR_C", "num_feat": 4, "num_block": 2, "upscale": 2}


class Page(HTMLParser):
    """Collects tags with their attributes, and the text of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[list[str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
            self._open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("td", "th"):
            self.cells[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def record(value: float, network: str = "QuantSR_C W4A4", depth: int | None = 2, **more: Any) -> Record:
    fields = {
        "set": "S",
        "scale": 2,
        "metric": "psnr",
        "pictures": 1,
        "config_hash": "0123abc",
        "commit": "fed",
    }
    return Record(network=network, depth=depth, value=value, **{**fields, **more})


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    """A set of one picture with all its edges in one corner."""
    picture = np.full((64, 80, 3), 90, np.uint8)
    picture[40:, 50:] = np.random.default_rng(0).integers(0, 256, (24, 30, 3))
    (tmp_path / "truth").mkdir()
    cv2.imwrite(str(tmp_path / "truth" / "one two.png"), picture)
    return tmp_path / "truth"


def make_run(
    folder: Path, truth: Path, *, set_name: str = "S", name: str = "net", train: bool = False
) -> Path:
    """A run folder as ``quantsr test`` (or ``train``) writes it, with one picture at depths 2 and
    1."""
    options = Options.model_validate(
        {
            "name": name,
            "scale": 2,
            "network_g": NETWORK,
            "datasets": {
                "test_1": {"name": set_name, "type": "CroppedImageDataset", "dataroot_gt": str(truth)}
            },
        }
    )
    write_results([record(30.0, "bicubic", None, set=set_name), record(32.5, set=set_name)], folder)
    (folder / "options.yml").write_text(yaml.safe_dump(options.dump()))
    pictures = folder / "visualization" / set_name
    pictures.mkdir(parents=True)
    for depth, gray in ((2, 20), (1, 200)):
        for iteration in ("_9", "_10") if train else ("",):
            shade = gray + (5 if iteration == "_10" else 0)
            path = pictures / f"one-two_{name}{iteration}_depth{depth}.png"
            cv2.imwrite(str(path), np.full((64, 80, 3), shade, np.uint8))
    if train:
        (folder / "models").mkdir()
    return folder


def report(tmp_path: Path, *words: str) -> Page:
    output = tmp_path / "out" / "report.html"
    assert main(["report", *words, "-o", str(output)]) == 0
    return Page(output.read_text(encoding="utf-8"))


def test_tables_of_several_runs_with_the_baseline_once(tmp_path: Path, truth: Path) -> None:
    for name in ("a", "b"):
        make_run(tmp_path / name, truth)
    page = report(tmp_path, str(tmp_path / "a"), str(tmp_path / "b" / "results.json"))
    assert page.cells[:4] == [
        ["run", "network", "PSNR"],
        ["a", "bicubic", "30.00"],
        ["a", "QuantSR_C W4A4, depth 2", "32.50"],
        ["b", "QuantSR_C W4A4, depth 2", "32.50"],
    ]
    assert ["a", "test", "", "0123abc", "fed", "", str(tmp_path / "a")] in page.cells


def test_the_page_is_self_contained(tmp_path: Path, truth: Path) -> None:
    page = report(tmp_path, str(make_run(tmp_path / "a", truth)))
    text = (tmp_path / "out" / "report.html").read_text()
    assert {tag for tag, _ in page.tags}.isdisjoint({"link", "iframe", "object", "base", "form"})
    for _, attributes in page.tags:
        assert "href" not in attributes
        assert attributes.get("src", "data:").startswith("data:image/png;base64,") or "src" not in attributes
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"url\(|@import|fetch\(|https?://", re.sub(r"base64,[^\"]*", "", text))
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:")


def test_names_are_escaped(tmp_path: Path, truth: Path) -> None:
    """Tags in the names of sets, networks, runs and in the title are shown as text."""
    plain = report(tmp_path, str(make_run(tmp_path / "plain", truth)))
    folder = make_run(tmp_path / "run", truth, set_name=EVIL.replace("/", ""), name="x<b>&'y\"")
    write_results([record(31.0, EVIL, None, set=EVIL, metric=EVIL, commit=EVIL)], folder)
    folder = folder.rename(tmp_path / EVIL)
    page = report(tmp_path, str(folder), "--title", EVIL)
    assert [tag for tag, _ in page.tags if tag in ("script", "b", "style")] == ["script", "style"][::-1]
    assert len(page.all("img")) == len(plain.all("img")) == 7
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert EVIL in [cell for line in page.cells for cell in line]
    assert any(a.get("alt", "").startswith(f"{EVIL} / one-two: bicubic") for a in page.all("img"))  # type: ignore[union-attr]


def crops(page: Page) -> dict[str, np.ndarray]:
    """The embedded pictures by the last part of their description, ``(H, W, 3)`` RGB."""
    found = {}
    for image in page.all("img"):
        source, label = image["src"], image["alt"]
        assert source is not None
        assert label is not None
        if ": error of " in label:
            continue
        content = base64.b64decode(source.partition("base64,")[2], validate=True)
        found[label.rpartition(": ")[2]] = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[
            ..., ::-1
        ]
    return found


def test_the_embedded_pictures_are_crops_of_the_saved_ones(tmp_path: Path, truth: Path) -> None:
    folder = make_run(tmp_path / "a", truth)
    page = report(tmp_path, str(folder), "--crop", "24")
    found = crops(page)
    assert list(found) == ["bicubic", "a, depth 2", "a, depth 1", "ground truth"]
    item = EvalDataset("S", 2, ((truth / "one two.png", None),))[0]
    top, left, height, width = strongest_edges(item["gt"], 24)
    place = np.s_[top : top + height, left : left + width]
    assert np.array_equal(found["ground truth"], item["gt"][place])
    assert np.array_equal(found["bicubic"], imresize_uint8(item["lq"], 2)[place])
    assert np.array_equal(found["a, depth 1"], np.full((24, 24, 3), 200))
    assert top >= 36
    assert left >= 46


def test_the_slider_can_be_used_from_the_keyboard(tmp_path: Path, truth: Path) -> None:
    page = report(tmp_path, str(make_run(tmp_path / "a", truth)))
    labelled = {a["for"] for a in page.all("label")}
    controls = page.all("select") + [a for a in page.all("input") if a["type"] == "range"]
    assert len(controls) == 3
    assert all(control["id"] in labelled and "tabindex" not in control for control in controls)
    assert all(image["alt"] for image in page.all("img"))
    assert all(a["tabindex"] == "0" for a in page.all("div") if a.get("class") == "scroll")
    assert sum("selected" in option for option in page.all("option")) == 2


def test_the_newest_pictures_of_a_training_are_shown(tmp_path: Path, truth: Path) -> None:
    make_run(tmp_path / "a", truth, train=True)
    found = crops(report(tmp_path, str(tmp_path / "a")))
    assert found["a, depth 2"].max() == 25
    assert found["a, depth 1"].max() == 205


def test_without_the_data_set_only_saved_pictures_are_shown(tmp_path: Path, truth: Path) -> None:
    make_run(tmp_path / "a", truth)
    (truth / "one two.png").unlink()
    assert list(crops(report(tmp_path, str(tmp_path / "a")))) == ["a, depth 2", "a, depth 1"]


def test_names_that_begin_alike_are_kept_apart(tmp_path: Path, truth: Path) -> None:
    folder = tmp_path / "a"
    make_run(folder, truth)
    (run,) = read_runs([str(folder)])
    pictures = folder / "visualization" / "S"
    (pictures / "one-two_net_depth2.png").rename(pictures / "one-two_net_net_depth2.png")
    (pictures / "other_suffix_depth2.png").write_bytes(b"")
    found = find_saved(run.sources)
    assert {name: [s.label for s in saved] for name, saved in found["S", 2].items()} == {
        "one-two": ["a, depth 1"],
        "one-two_net": ["a, depth 2"],
    }


def test_pictures_of_another_size_are_left_out(tmp_path: Path, truth: Path) -> None:
    folder = make_run(tmp_path / "a", truth)
    cv2.imwrite(str(folder / "visualization" / "S" / "one-two_net_depth1.png"), np.zeros((8, 8, 3), np.uint8))
    (run,) = read_runs([str(folder)])
    (scene,) = scenes(run.sources, per_set=3, side=16)
    assert [label for label, _ in scene.versions] == ["bicubic", "a, depth 2", "ground truth"]
    assert scenes([Source("x", tmp_path / "gone", "x", run.sources[0].options)], per_set=3, side=16) == []


def test_the_square_with_the_strongest_edges_is_that_of_a_search() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    gray = picture.astype(float).mean(axis=2)
    edges = np.zeros_like(gray)
    for i in range(9):
        for j in range(12):
            edges[i, j] += abs(gray[i, j] - gray[i, j - 1]) if j else 0
            edges[i, j] += abs(gray[i, j] - gray[i - 1, j]) if i else 0
    squares = {(i, j): edges[i : i + 4, j : j + 4].sum() for i in range(6) for j in range(9)}
    assert strongest_edges(picture, 4) == (*max(squares, key=squares.__getitem__), 4, 4)
    assert strongest_edges(picture, 100) == (0, 0, 9, 12)


def test_curves_come_from_the_tensorboard_log(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    folder = tmp_path / "run" / "tb_logger"
    with SummaryWriter(str(folder)) as writer:
        for step, loss in ((1, 0.5), (2, 0.25), (3, 9.0)):
            writer.add_scalar("train/loss", loss, step)
        writer.add_scalar("val/S/psnr/depth4", 31.5, 2)
        writer.add_scalar("val/S/psnr/depth4", float("nan"), 3)
        writer.add_scalar("quantizers/a", 1.0, 1)
    with SummaryWriter(str(folder), purge_step=3) as writer:  # resumed after an interruption
        writer.add_scalar("train/loss", 0.125, 3)
    found = curves.read_scalars(folder)
    assert found["train/loss"] == ((1, 0.5), (2, 0.25), (3, 0.125))
    assert found["val/S/psnr/depth4"] == ((2, 31.5),)
    assert curves.read_scalars(tmp_path / "gone") == {}

    page = report(tmp_path, str(tmp_path / "run"))  # a training without results yet
    assert len(page.all("polyline")) == 2
    text = (tmp_path / "out" / "report.html").read_text()
    assert text.index("training loss") < text.index("PSNR on S")
    assert "run, depth 4: 31.5" in text
    assert "quantizers" not in text


def test_a_pipe_in_a_log_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """TensorBoard would wait for its writer."""
    (tmp_path / "tb_logger").mkdir()
    os.mkfifo(tmp_path / "tb_logger" / "events.out.tfevents.1")
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "a.html")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("events.out.tfevents.1: is no regular file; remove it from the log")


def test_a_chart_places_points_on_its_axes() -> None:
    """Linear from 0 to 10 over 100 iterations: the middle in the middle. Logarithmic from 0.01 to
    1: 0.1 in the middle."""
    for values, log_scale in (((0.0, 5.0, 10.0), False), ((0.01, 0.1, 1.0), True)):
        line = curves.Line("a", tuple(zip((0, 50, 100), values, strict=True)))
        text = curves.chart("t", [line], log_scale=log_scale)
        places = re.search(r'<polyline class="line0" points="([^"]*)"', text)
        assert places is not None
        (x0, y0), (x1, y1), (x2, y2) = ([float(v) for v in p.split(",")] for p in places[1].split())
        assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
        assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
        assert y0 > y2


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (31.9, 32.4, [31.9, 32.0, 32.1, 32.2, 32.3, 32.4]), (5, 5, [5, 6])],
)
def test_axes_have_round_numbers(low: float, high: float, expected: list[float]) -> None:
    found = curves.ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high
    assert 2 <= len(found) <= 8
    if low < high:
        assert found == pytest.approx(expected)


def test_long_curves_are_thinned_and_keep_their_end() -> None:
    points = [(i, float(i)) for i in range(10_001)]
    found = curves.thinned(points)
    assert len(found) <= curves.MOST_POINTS + 1
    assert (found[0], found[-1]) == (points[0], points[-1])
    assert curves.thinned(points[:5]) == points[:5]


def test_the_page_of_a_comparison_has_its_tables(tmp_path: Path, valid: dict[str, Any], load: Any) -> None:
    folder = tmp_path / "compare_try"
    records = [record(30.0, "bicubic", None)] + [
        record(value, "Q", 2, variant=variant, seed=seed)
        for variant, seed, value in (
            ("rlq", 3, 31.0),
            ("rlq", 7, 33.0),
            ("float", 3, 32.0),
            ("float", 7, 33.0),
        )
    ]
    write_results(records, folder)
    comparison = load({**valid, "reference": "float"})
    (folder / "options.yml").write_text(yaml.safe_dump(comparison.dump(), sort_keys=False))
    (tmp_path / "base.yml").unlink()  # the file in the folder is self-contained
    page = report(tmp_path, str(folder))
    assert ["variant", "network", "depth", "n", "PSNR", "PSNR - float"] in page.cells
    assert ["rlq", "Q", "2", "2", "32.000 ± 1.414", "-0.500 ± 0.707"] in page.cells
    assert ["compare_try", "comparison", "", "", "fed", "", str(folder)] in page.cells


def test_equal_variants_of_two_comparisons_are_told_apart(
    tmp_path: Path, truth: Path, valid: dict[str, Any], load: Any
) -> None:
    for name in ("one", "two"):
        folder = tmp_path / f"compare_{name}"
        make_run(folder / "rlq_seed3", truth, set_name="skimage", name="rlq_seed3")
        write_results([record(31.0, "Q", 2, set="skimage", variant="rlq", seed=3)], folder)
        comparison = load({**valid, "name": name})
        (folder / "options.yml").write_text(yaml.safe_dump(comparison.dump(), sort_keys=False))
    found = crops(report(tmp_path, str(tmp_path / "compare_one"), str(tmp_path / "compare_two")))
    assert [label for label in found if label.endswith("depth 2")] == [
        "compare_one/rlq_seed3, depth 2",
        "compare_two/rlq_seed3, depth 2",
    ]


@pytest.mark.parametrize(
    ("prepare", "words", "message"),
    [
        ("none", ["gone"], "gone: no such folder; give a run"),
        ("empty", ["a"], "neither results.json nor a TensorBoard log"),
        ("damaged", ["a"], "results.json: damaged"),
        ("set=['S']", ["a"], "results.json: damaged (set is ['S'])"),
        ("pictures={}", ["a"], "results.json: damaged (pictures is {})"),
        ("foreign", ["a"], "options.yml: "),
        ("valid", ["a", "a/results.json"], "a run is given twice"),
        ("valid", ["a", "--crop", "3"], "--crop: must be 16 or more, got 3"),
        ("valid", ["a", "-o", "a"], "-o a: is a folder"),
    ],
)
def test_bad_input_is_one_line(
    prepare: str,
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "a"
    if prepare != "none":
        folder.mkdir()
    if prepare == "damaged":
        (folder / "results.json").write_text(json.dumps([{"psnr": 1}]))
    if "=" in prepare:
        name, _, value = prepare.partition("=")
        rows = [asdict(record(30.0)) | {name: yaml.safe_load(value)}]
        (folder / "results.json").write_text(json.dumps(rows))
    if prepare in ("valid", "foreign"):
        (folder / "results.json").write_text(json.dumps([asdict(record(30.0))]))
    if prepare == "foreign":
        (folder / "options.yml").write_text("name: x\n")
    assert main(["report", *words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "report.html").exists()


def test_runs_of_one_name_are_told_apart(tmp_path: Path, truth: Path) -> None:
    for parent in ("results", "experiments"):
        make_run(tmp_path / parent / "net", truth)
    runs = read_runs([str(tmp_path / "results" / "net"), str(tmp_path / "experiments" / "net")])
    assert [run.label for run in runs] == ["results/net", "experiments/net"]


def test_error_maps_show_the_largest_difference_of_the_channels(tmp_path: Path, truth: Path) -> None:
    black = np.zeros((2, 3, 3), np.uint8)
    picture = black.copy()
    picture[0, 0, 1] = FULL_ERROR  # at least white
    picture[1, 2] = (3, FULL_ERROR // 2, 1)
    found = error_map(picture, black)
    scale = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_INFERNO)[0, :, ::-1]
    wanted = np.broadcast_to(scale[0], (2, 3, 3)).copy()
    wanted[0, 0] = scale[255]
    wanted[1, 2] = scale[int(FULL_ERROR // 2 * 255 / FULL_ERROR)]
    assert np.array_equal(found, wanted)
    page = report(tmp_path, str(make_run(tmp_path / "a", truth)))
    labels = [a["alt"] for a in page.all("img") if "error of" in (a["alt"] or "")]
    assert labels == [f"S / one-two: error of {name}" for name in ("bicubic", "a, depth 2", "a, depth 1")]


def test_the_front_has_what_no_other_point_surpasses() -> None:
    values = {"a": (1.0, 30.0), "b": (2.0, 29.0), "c": (2.0, 31.0), "d": (3.0, 31.0), "e": (4.0, 32.0)}
    points = [pareto.Point(name, 0, cost, quality) for name, (cost, quality) in values.items()]
    assert [p.label for p in pareto.front(points)] == ["a", "c", "e"]

    def surpassed(p: pareto.Point) -> bool:
        """By the definition, for every pair."""
        return any(
            q.cost <= p.cost and q.quality >= p.quality and (q.cost, q.quality) != (p.cost, p.quality)
            for q in points
        )

    assert pareto.front(points) == [p for p in points if not surpassed(p)]


def test_pareto_charts_place_points_by_the_logarithm_of_the_cost() -> None:
    records = [record(v, variant=n, seed=1) for n, v in (("x", 30.0), ("y", 31.0), ("z", 32.0))]
    costs = {
        name: Cost("", size, {2: 1.0}, {} if name == "z" else {2: size / 1e4})
        for name, size in (("x", 10_000), ("y", 100_000), ("z", 1_000_000))
    }
    texts = pareto.charts(records, "S", "psnr", costs)
    assert [re.findall("<figcaption>PSNR on S against (.*?)</figcaption>", text) for text in texts] == [
        ["packed size"],
        ["operations"],
        ["time"],
    ]
    circles = [re.findall(r'<circle class="line\d mark" cx="([\d.]+)"', t.split("</svg>")[0]) for t in texts]
    x, y, z = map(float, circles[0])
    assert y - x == pytest.approx(z - y, abs=0.11)
    assert len(circles[2]) == 2  # z was not timed


def test_layers_show_steps_and_codes(tmp_path: Path, truth: Path) -> None:
    model = random_model(num_feat=4, num_block=1, depths=(1,))
    file = tmp_path / "net.safetensors"
    packing.save(model, file)
    folder = make_run(tmp_path / "a", truth)
    options = yaml.safe_load((folder / "options.yml").read_text())
    options["path"] = {"pretrain_network_g": str(file)}
    (folder / "options.yml").write_text(yaml.safe_dump(options))
    page = report(tmp_path, str(folder))
    name, layer = next((n, part) for n, part in model.layers.items() if part.bits_w == 4)
    assert layer.weight_step is not None
    assert layer.act_step is not None
    (row,) = (cells for cells in page.cells if cells[0] == name)
    assert row[1:3] == ["4", "4"]
    assert row[4] == f"{layer.act_step[0]:.3g}"
    labels = [a["aria-label"] for a in page.all("svg") if a.get("class") == "bars"]
    counts = [int((layer.weight == code).sum()) for code in range(-8, 8)]
    assert f"{layer.weight.size} codes from -8 to 7: {' '.join(map(str, counts))}" in labels


@pytest.mark.parametrize(("better", "titles"), [("higher", 2), ("lower", 0)])
def test_charts_of_costs_are_of_a_metric_of_which_more_is_better(
    better: str,
    titles: int,
    tmp_path: Path,
    valid: dict[str, Any],
    training: dict[str, Any],
    write: Callable[..., Path],
) -> None:
    training["val"]["metrics"] = {"psnr": {"type": "calculate_psnr", "better": better}}
    comparison = yaml.safe_load(write(valid, training).read_text())
    folder = tmp_path / "compare_try"
    records = [record(v, variant=name, seed=3) for name, v in (("rlq", 30.0), ("float", 31.0))]
    write_results(records, folder)
    (folder / "options.yml").write_text(yaml.safe_dump({**comparison, "base": str(tmp_path / "base.yml")}))
    costs = {name: asdict(Cost("", size, {2: 1.0 * size}, {})) for name, size in (("rlq", 10), ("float", 90))}
    (folder / "costs.json").write_text(json.dumps(costs))
    page = report(tmp_path, str(folder))
    drawn = [a for a in page.all("svg") if "against" in (a.get("aria-label") or "")]
    assert len(drawn) == titles
