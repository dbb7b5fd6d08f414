"""The networks that come with quantsr: they load by name, and have the results of their cards."""

import csv
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

import quantsr
from quantsr.analysis.evaluation import evaluate_options
from quantsr.commands.upscale import DEFAULT_MODEL
from quantsr.config import load_options
from quantsr.deploy.convert import convert
from quantsr.deploy.engines import select
from quantsr.deploy.export import calibration_pictures, evaluation_set
from quantsr.deploy.packed import packing
from quantsr.deploy.parity import INTEGER, NETWORK, parity
from quantsr.engine.results import read_results
from quantsr.errors import InputError
from quantsr.trained_files.names import ZOO
from tests.scripts import load_script

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "options" / "test" / "shipped.yml"
NAMES = sorted(file.stem for file in ZOO.glob("*.safetensors"))

model_card = load_script("model_card")


def test_the_default_network_is_shipped():
    assert DEFAULT_MODEL in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_is_small(name):
    assert (ZOO / f"{name}.safetensors").stat().st_size < 1_000_000


@pytest.mark.parametrize("name", NAMES)
def test_each_loads_by_name_as_module_and_as_upscaler(name):
    picture = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    upscaler = quantsr.Upscaler(name)
    assert upscaler(picture).shape == (9 * upscaler.scale, 11 * upscaler.scale, 3)
    net = quantsr.load(name)
    assert tuple(net.depths) == upscaler.depths


@pytest.mark.parametrize("name", NAMES)
def test_each_card_agrees_with_its_file_and_its_records(name):
    """After a new file or new records: ``python scripts/model_card.py NAME [RESULTS.json ...]``."""
    card = (ZOO / f"{name}.md").read_text(encoding="utf-8")
    part = model_card.measured(ZOO / f"{name}.safetensors", read_results(ZOO / f"{name}.json"))
    assert model_card.with_measured(card, part, name) == card


@pytest.mark.parametrize("name", NAMES)
def test_each_card_has_the_terms_of_its_sources(name):
    training, terms = (ZOO / f"{name}.md").read_text().split("\n## Terms\n")
    sources = {"wallpaper packages": "wallpaper packages", "BSDS500": "BSDS500", "outputs? of SPAN": "SPAN"}
    for mention, row in sources.items():
        used = re.search(mention, training.replace("\n", " ")) is not None
        assert used == any(row in line for line in terms.splitlines() if line.startswith("| ")), row
    assert "non-commercial research" in terms


@pytest.mark.parametrize("name", NAMES)
def test_the_records_cover_every_depth_and_set(name):
    records = read_results(ZOO / f"{name}.json")
    header = packing.load(ZOO / f"{name}.safetensors").header
    for depth in header.depths:
        own = {(r.set, r.metric) for r in records if r.depth == depth and r.engine in select.ENGINES[1:3]}
        assert own >= {(s, m) for s in ("skimage", "Set5", "Set14", "B100") for m in ("psnr", "ssim")}
    assert {record.scale for record in records} == {header.scale}


def psnr(name: str) -> dict[tuple[str, int | None], str]:
    """PSNR of a packed network and of bicubic by set and depth, also where measured elsewhere."""
    file = ZOO / f"{name}.safetensors"
    elsewhere = model_card.measured_elsewhere(hashlib.sha256(file.read_bytes()).hexdigest())
    found = {(row["set"], int(row["depth"]) if row["depth"] else None): row["psnr"] for row in elsewhere}
    for record in read_results(ZOO / f"{name}.json"):
        if record.metric == "psnr" and "float" not in record.row:
            found[record.set, record.depth] = f"{record.value:.2f}"
    return found


def test_figures_measured_elsewhere_are_of_the_shipped_files():
    with model_card.ELSEWHERE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 10
    for row in rows:
        content = (ZOO / f"{row['network']}.safetensors").read_bytes()
        assert hashlib.sha256(content).hexdigest().startswith(row["sha256"]), row["network"]
        assert len(row["sha256"]) == 16


def test_the_readme_has_the_results_of_the_shipped_networks():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in readme.splitlines()]
    found = {(row[0], row[1]): row for row in rows if len(row) == 8}

    def of(name: str, title: str, bits: str, depth: int | None) -> None:
        figures = psnr(name)
        assert found[title, bits][3:5] == [figures["Set5", depth], figures["Urban100", depth]], (title, bits)

    def size(name: str) -> str:
        return f"{(ZOO / f'{name}.safetensors').stat().st_size / 1e6:.2f} MB"

    of(DEFAULT_MODEL, "bicubic", "", None)
    of(DEFAULT_MODEL, "QuantSR-C**, depth 16", "4", 16)
    of(DEFAULT_MODEL, "depth 8", "4", 8)
    of(DEFAULT_MODEL, "depth 4", "4", 4)
    of("quantsr_c_x4_w2a2", "QuantSR-C, depth 16", "2", 16)
    of("quantsr_t_x4_w4a4", "QuantSR-T** (a transformer), depth 4", "4", 4)
    assert readme.count(size(DEFAULT_MODEL)) >= 2  # in the first sentences and in the table
    for name in ("quantsr_c_x4_w2a2", "quantsr_t_x4_w4a4"):
        assert size(name) in readme


def test_the_page_of_networks_has_the_results_of_all():
    page = (ROOT / "docs" / "reference" / "networks.md").read_text(encoding="utf-8")
    rows = {name: line for name in NAMES for line in page.splitlines() if f"[{name}]" in line}
    assert set(rows) == set(NAMES)
    for name, line in rows.items():
        figures, depths = psnr(name), packing.load(ZOO / f"{name}.safetensors").header.depths
        _, _, _, size, listed, *measured, times = [cell.strip() for cell in line.split("|")[1:-1]]
        assert size == f"{(ZOO / f'{name}.safetensors').stat().st_size / 1e6:.2f} MB"
        assert listed == ", ".join(map(str, depths))
        for set_name, cell in zip(("Set5", "Urban100"), measured, strict=True):
            assert cell == ", ".join(figures[set_name, d] for d in depths if (set_name, d) in figures)
        with model_card.SPEED.open(encoding="utf-8", newline="") as file:
            timed = [float(row["median_ms"]) for row in csv.DictReader(file) if row["network"] == name]
        assert times == ", ".join(f"{ms:.0f}" for ms in timed)


def test_the_page_of_published_figures_has_the_results_of_the_shipped_networks():
    page = (ROOT / "docs" / "how-to" / "reproduce.md").read_text(encoding="utf-8")
    rows = {name: line for name in NAMES for line in page.splitlines() if f"[{name}]" in line}
    assert set(rows) == {name for name in NAMES if "_x4_" in name}
    for name, line in rows.items():
        depth = max(packing.load(ZOO / f"{name}.safetensors").header.depths)
        figures = psnr(name)
        assert f"| {' | '.join(figures[s, depth] for s in ('Set5', 'Set14', 'B100', 'Urban100'))} |" in line


def test_a_card_without_marks_is_an_error():
    with pytest.raises(InputError, match="no lines"):
        model_card.with_measured("# name\n", "tables", "name")


@pytest.mark.integration
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("engine", ["auto", "openvino", "torch"])
def test_each_has_the_results_of_its_card(name, engine, tmp_path):
    """At every depth, with the option file of ``sh test.sh``, on scikit-image's pictures, and on
    Set5 where it exists."""
    changes = [f"path.pretrain_network_g={name}", f"val.engine={engine}", "val.save_img=false", "num_gpu=0"]
    changes += [f"path.results_root={tmp_path}", "datasets.test_3=null", "datasets.test_4=null"]
    records = evaluate_options(load_options(str(SHIPPED), changes, is_train=False))
    stated = {
        (r.set, r.depth, r.metric): r.value
        for r in read_results(ZOO / f"{name}.json")
        if r.engine in ("numpy", *select.ENGINES[1:3])
    }
    assert {record.depth for record in records} == {None, *quantsr.load(name).depths}
    for record in records:
        expected = stated[record.set, record.depth, record.metric]
        assert record.value == pytest.approx(expected, abs=0.01 if record.metric == "psnr" else 0.0005)


@pytest.mark.integration
def test_an_exported_network_keeps_to_the_bounds():
    """The bounds of docs/explanation/numerics.md for the default network's checkpoint, converted on
    datasets/mini, on its default engine."""
    network = quantsr.load(ROOT / "experiments" / "starts" / "photos_w4a4_x4.pth")
    model = convert(network, head_tail_bits=8, calib=calibration_pictures(None, 4))
    engine = select.create("auto", model)
    rows = parity(
        model,
        [evaluation_set(None, 4)],
        network=network,
        engines=[("auto", lambda picture: engine.run(picture[None])[0])],
    )
    trained, *others = rows
    assert trained.engine == NETWORK
    assert [row.engine for row in others] == [INTEGER, "auto"]
    for row in others:
        assert abs(row.psnr - trained.psnr) <= 0.01, row.engine
        assert row.to_network.within_one >= 0.999, row.engine
