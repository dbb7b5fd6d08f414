"""`quantsr export` and the parity table, on small networks and pictures."""

from __future__ import annotations

import re
import resource

import cv2
import numpy as np
import pytest

from quantsr import cli
from quantsr.deploy import export, parity
from quantsr.deploy.engines import reference as integer_reference
from quantsr.deploy.packed import packing
from quantsr.engine.evaluate import EvalSet
from quantsr.engine.network_file import network_file
from quantsr.errors import InputError
from quantsr.trained_files import checkpoint
from tests.deploy.conftest import small_model
from tests.deploy.test_convert import trained


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a checkpoint `net.pth` and pictures `hr/*.png`."""
    folder = tmp_path_factory.mktemp("export")
    net = trained()
    options = {"name": "tiny_run", "datasets": {"train": {"name": "photos"}}}
    checkpoint.save(folder / "net.pth", network_file(net, None, iteration=7, options=options))
    (folder / "hr").mkdir()
    y, x = np.mgrid[0:50, 0:42] / 20.0
    for k in range(2):
        waves = np.stack([np.sin(5 * x + k) * np.cos(4 * y - c) for c in range(3)], 2)
        cv2.imwrite(str(folder / "hr" / f"{k}.png"), np.clip(127 + 140 * waves, 0, 255).astype(np.uint8))
    return folder


def run(files, output: str, *words: str) -> int:
    arguments = ["export", "-m", str(files / "net.pth"), "-o", str(files / output)]
    return cli.main([*arguments, "--calib", str(files / "hr"), "--data", str(files / "hr"), *words])


def test_packed_file_at_a_depth(files, capsys):
    assert run(files, "half.safetensors", "--depth", "2") == 0
    text = capsys.readouterr().out
    model = packing.load(files / "half.safetensors")
    assert model.header.depths == (2, 1)
    assert model.header.num_block == 2
    assert model.header.head_tail_bits == 8
    expected = {
        "checkpoint": "net.pth",
        "run": "tiny_run",
        "iteration": 7,
        "trained_on": "photos",
        "calibrated_on": "hr",
    }
    assert expected.items() <= dict(model.header.provenance).items()
    size = (files / "half.safetensors").stat().st_size
    assert text.startswith(f"{files / 'half.safetensors'}: {size:,} bytes, depth 2, scale x2")
    for row in ("network", "integer", "half.safetensors (integer)"):
        assert f"| {row}" in text


@pytest.mark.integration
@pytest.mark.parametrize("suffix", ["onnx", "xml"])
def test_graphs(files, capsys, suffix):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("openvino")
    assert run(files, f"net.{suffix}", "--head-tail-bits", "32") == 0
    text = capsys.readouterr().out
    for row in ("network", "integer", "openvino", "onnxruntime", "torch", f"net.{suffix} ("):
        assert f"| {row}" in text
    assert (files / f"net.{suffix}").stat().st_size > 5000
    assert [p.name for p in files.iterdir() if p.name.startswith(".")] == []


def test_exporting_a_packed_file_again(files, tmp_path):
    packing.save(small_model(), tmp_path / "net.safetensors")
    words = [
        "export",
        "-m",
        str(tmp_path / "net.safetensors"),
        "-o",
        str(tmp_path / "net.onnx"),
        "--no-parity",
    ]
    assert cli.main(words) == 0
    assert (tmp_path / "net.onnx").stat().st_size > 5000
    assert cli.main([*words, "--head-tail-bits", "16"]) == 2


@pytest.mark.parametrize(
    ("option", "value"), [("first-bits", "8"), ("calib", "absent"), ("opt", "absent.yml")]
)
def test_a_packed_file_takes_no_options_of_conversion(tmp_path, capsys, option, value):
    packing.save(small_model(), tmp_path / "net.safetensors")
    words = ["export", "-m", str(tmp_path / "net.safetensors"), "-o", str(tmp_path / "net.onnx")]
    assert cli.main([*words, "--no-parity", f"--{option}", value]) == 2
    says = rf"--{option}: .*net\.safetensors is converted already; leave it out"
    assert re.search(says, capsys.readouterr().err)
    assert not (tmp_path / "net.onnx").exists()


def test_exporting_a_shipped_network_by_its_name(tmp_path):
    out = tmp_path / "net.onnx"
    assert cli.main(["export", "-m", "quantsr_c_small_x3_w4a6", "-o", str(out), "--no-parity"]) == 0
    assert out.stat().st_size > 5000


@pytest.mark.parametrize(
    ("output", "words", "message"),
    [
        ("net.pt", [], "ending in .safetensors"),
        ("net.xml", ["--int4"], "only ONNX"),
        ("net.param", ["--int4"], "only ONNX"),
        ("net.onnx", ["--fp16"], "only ncnn"),
        ("net", [], "ending in .safetensors"),
        ("net.onnx", ["--depth", "3"], r"choose one of \[4, 2, 1\]"),
        ("absent/net.onnx", ["--no-parity"], "cannot be written"),
        ("absent/net.safetensors", ["--no-parity"], "cannot be written"),
        ("absent/net.xml", ["--no-parity"], "cannot be written"),
        ("absent/net.param", ["--no-parity"], "cannot be written"),
    ],
)
def test_bad_requests_are_one_line(files, capsys, output, words, message):
    assert run(files, output, *words) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert re.search(message, errors[0])


@pytest.mark.parametrize(("first", "second"), [("xml", "param"), ("param", "xml")])
def test_weights_of_another_format_are_not_overwritten(tmp_path, capsys, first, second):
    packing.save(small_model(), tmp_path / "packed.safetensors")
    words = ["export", "-m", str(tmp_path / "packed.safetensors"), "--no-parity", "-o"]
    assert cli.main([*words, str(tmp_path / f"net.{first}")]) == 0
    weights = (tmp_path / "net.bin").read_bytes()
    assert cli.main([*words, str(tmp_path / f"net.{first}")]) == 0
    assert cli.main([*words, str(tmp_path / f"net.{second}")]) == 2
    assert f"net.bin, are those of net.{first}; choose another name" in capsys.readouterr().err
    assert (tmp_path / "net.bin").read_bytes() == weights
    assert not (tmp_path / f"net.{second}").exists()


@pytest.mark.parametrize("suffix", ["safetensors", "onnx", "xml", "param"])
def test_a_disk_that_takes_no_more_is_work_that_failed(tmp_path, capsys, suffix):
    """Exit code 1 and one line; an earlier file stays, and no part of the new one."""
    packing.save(small_model(), tmp_path / "packed.safetensors")
    out = tmp_path / "out" / f"net.{suffix}"
    words = ["export", "-m", str(tmp_path / "packed.safetensors"), "-o", str(out), "--no-parity"]
    out.parent.mkdir()
    out.write_text("earlier")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
    try:
        code = cli.main(words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert re.search(rf"net\.{suffix}: cannot be written \(.+\); free some space", errors[0])
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert out.read_text() == "earlier"


def test_calibration_pictures_are_small_and_shrunk(files, tmp_path):
    pictures = export.calibration_pictures(str(files / "hr"), 2)
    assert [p.shape for p in pictures] == [(25, 21, 3)] * 2
    cv2.imwrite(str(tmp_path / "dot.png"), np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(InputError, match="smaller than the scale"):
        export.calibration_pictures(str(tmp_path), 2)


def test_difference_counts():
    difference = parity.Difference()
    difference.add(np.array([0, 10, 255], np.uint8), np.array([0, 11, 250], np.uint8))
    difference.add(np.array([7], np.uint8), np.array([7], np.uint8))
    assert (difference.largest, difference.equal, difference.within_one) == (5, 0.5, 0.75)


def test_parity_of_an_engine_that_lies(picture):
    model = small_model()
    truth = integer_reference.run(model, picture)
    sets = [EvalSet("one", 2, [{"name": "a", "lq": picture, "gt": truth}])]
    off = lambda lq: integer_reference.run(model, lq) ^ 1  # noqa: E731
    rows = parity.parity(model, sets, engines=[("off by one", off)])
    assert [row.engine for row in rows] == ["integer", "off by one"]
    assert rows[0].psnr == float("inf")
    assert rows[0].to_integer is None
    lie = rows[1].to_integer
    assert (lie.largest, lie.equal, lie.within_one) == (1, 0, 1)
    lines = parity.table(rows).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
