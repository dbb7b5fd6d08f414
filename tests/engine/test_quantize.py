"""``quantsr quantize``: from a float network of any origin to a packed file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from quantsr import cli, loading
from quantsr.archs.constructors import build_network
from quantsr.commands import quantize as command
from quantsr.data.images import encode_png
from quantsr.deploy.engines import select
from quantsr.deploy.packed import packing
from quantsr.engine.network_file import network_file
from quantsr.trained_files import checkpoint
from tests.archs import ncnn_files

EDSR = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 2}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with two pictures in ``pictures`` and the checkpoint ``float.pth``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "_TIMED_SIZE", (18, 32))  # the times are not tested
    (tmp_path / "pictures").mkdir()
    rng = np.random.default_rng(1)
    for i in range(2):
        small = rng.integers(0, 256, (9, 8, 3), np.uint8)
        (tmp_path / "pictures" / f"{i}.png").write_bytes(
            encode_png(np.kron(small, np.ones((8, 8, 1), np.uint8)), 1)
        )
    checkpoint.save(tmp_path / "float.pth", network_file(edsr(), None, iteration=0))
    return tmp_path


def edsr() -> nn.Module:
    torch.manual_seed(3)
    return build_network("EDSR", EDSR)


def quantize(*words: str) -> int:
    return cli.main(["quantize", *words, "--data", "pictures", "--gt", "pictures"])


def test_a_checkpoint_becomes_a_packed_file_and_tables(folder: Path, capsys) -> None:
    assert quantize("float.pth", "-o", "net.safetensors", "--bits", "W4A8") == 0
    model = packing.load(folder / "net.safetensors")
    bits = {name: (layer.bits_w, layer.bits_a) for name, layer in model.layers.items()}
    assert bits["body.0.conv1"] == bits["conv_after_body"] == (4, 8)
    assert bits["upsample.0"] == bits["conv_last"] == (8, 16)
    assert bits["conv_first"] == (32, 32)
    assert model.header.provenance["quantized"] == "after training"
    output = capsys.readouterr().out
    size = (folder / "net.safetensors").stat().st_size
    values = sum(parameter.numel() for parameter in edsr().parameters())
    assert "net.safetensors: 1 layers float, 5 layers W4A8, 2 layers W8A16" in output
    assert f"| float32 | {4 * values:,} | " in output
    assert f"| net.safetensors | {size:,} | " in output
    for row in ("float ", "integer ", "onnxruntime ", "openvino "):
        assert f"| pictures | {row}" in output
    (result,) = select.create("onnxruntime", model).run(np.zeros((1, 5, 6, 3), np.uint8))
    assert result.shape == (10, 12, 3)


def test_a_file_of_several_depths_has_a_row_and_a_table_for_each(folder: Path, capsys) -> None:
    assert quantize("float.pth", "-o", "net.safetensors", "--depths", "2", "1", "--trunk", "body") == 0
    model = packing.load(folder / "net.safetensors")
    assert (model.header.depths, model.header.num_block) == ((2, 1), 2)
    assert model.header.arch["trunk"] == "body"
    output = capsys.readouterr().out
    size = (folder / "net.safetensors").stat().st_size
    for depth in (2, 1):
        assert f"| net.safetensors, depth {depth} | {size:,} | " in output
        assert f" dB at depth {depth}" in output
        assert f"\nDepth {depth}\n\n| set" in output


@pytest.mark.integration
def test_the_file_says_its_method(folder: Path) -> None:
    words = ["--method", "2dquant", "--iterations", "1", "--rectifier", "2", "--mixed", "0.2"]
    assert quantize("float.pth", "-o", "net.safetensors", *words) == 0
    model = packing.load(folder / "net.safetensors")
    assert model.header.provenance["method"] == " ".join(words)
    assert sorted(layer.bits_w for layer in model.layers.values()) == [3, 4, 4, 4, 5, 8, 8, 32]
    assert model.header.arch["quantizer"] == "Bounds"


def test_rules_choose_bits_of_layers(folder: Path) -> None:
    words = [
        "--bits",
        "4",
        "--rule",
        "body.0.*=8",
        "--rule",
        "conv_after_body=float",
        "--rule",
        "conv_last=W8A8",
    ]
    assert quantize("float.pth", "-o", "net.safetensors", *words) == 0
    layers = packing.load(folder / "net.safetensors").layers
    assert (layers["body.0.conv2"].bits_w, layers["body.1.conv2"].bits_w) == (8, 4)
    assert (layers["conv_after_body"].bits_a, layers["conv_last"].bits_a) == (16, 8)


def test_an_option_file_with_network_g_only_describes_a_checkpoint(folder: Path) -> None:
    torch.save({"params": edsr().state_dict()}, folder / "plain.pth")
    section = ", ".join(f"{name}: {value}" for name, value in {"type": "EDSR", **EDSR}.items())
    (folder / "edsr.yml").write_text(f"network_g: {{{section}}}\n", encoding="utf-8")
    assert quantize("plain.pth", "-opt", "edsr.yml", "-o", "net.safetensors") == 0
    assert packing.load(folder / "net.safetensors").header.scale == 2


def test_ncnn_files_are_quantized(folder: Path) -> None:
    path = ncnn_files.compact(folder)
    assert quantize(str(path), "-o", "net.safetensors", "--rule", "conv_1=W8A8") == 0
    model = packing.load(folder / "net.safetensors")
    assert (model.header.scale, model.layers["conv_1"].bits_w) == (2, 8)


def test_networks_that_spandrel_recognizes_are_quantized(folder: Path) -> None:
    pytest.importorskip("spandrel")
    torch.manual_seed(2)
    net = build_network("SRVGGNetCompact", {"num_feat": 8, "num_conv": 3, "upscale": 2, "act_type": "prelu"})
    torch.save({"params": net.state_dict()}, folder / "compact.pth")
    assert quantize("compact.pth", "-o", "net.safetensors") == 0
    model = packing.load(folder / "net.safetensors")
    assert model.header.arch["network"]["type"] == "Spandrel"
    assert sorted({layer.bits_w for layer in model.layers.values()}) == [4, 8, 32]


def test_networks_that_enlarge_nothing_are_quantized_but_not_trained(folder: Path, capsys) -> None:
    lines = [
        "Input data 0 1 data",
        "Convolution first 1 1 data a 0=4 1=3 4=1 5=1 6=108",
        "Convolution body 1 1 a b 0=4 1=3 4=1 5=1 6=144 9=1",
        "Convolution last 1 1 b output 0=3 1=3 4=1 5=1 6=108",
    ]
    rng = np.random.default_rng(4)
    data = []
    for outputs, count in ((4, 108), (4, 144), (3, 108)):
        data.append(ncnn_files.weight(rng.normal(size=count).astype(np.float32) / 4))
        data.append(rng.uniform(size=outputs).astype(np.float32).tobytes())
    path = str(ncnn_files.write(folder, lines, data))
    assert quantize(path, "-o", "net.safetensors") == 0
    model = packing.load(folder / "net.safetensors")
    assert (model.header.scale, model.layers["body"].bits_w) == (1, 4)
    (result,) = select.create("onnxruntime", model).run(np.zeros((1, 5, 6, 3), np.uint8))
    assert result.shape == (5, 6, 3)
    capsys.readouterr()
    assert quantize(path, "-o", "other.safetensors", "--minutes", "1") == 2
    assert "--minutes: networks of x2, x3 and x4 are trained" in capsys.readouterr().err


WRONG = {
    "net.onnx": (["float.pth", "-o", "net.onnx"], "net.onnx: is no name of a packed file"),
    "absent": (["absent.pth", "-o", "net.safetensors"], "absent.pth: no such checkpoint"),
    "bits": (["float.pth", "-o", "net.safetensors", "--bits", "9"], "'9': bits are 2 to 8"),
    "rule": (["float.pth", "-o", "net.safetensors", "--rule", "body"], "'body' is not PATTERN=BITS"),
    "no layer": (["float.pth", "-o", "net.safetensors", "--rule", "tail=4"], "'tail' matches no layer"),
    "quantizer": (["float.pth", "-o", "net.safetensors", "--quantizer", "None"], "'None' is not registered"),
    "other quantizer": (
        ["float.pth", "-o", "net.safetensors", "--method", "mse", "--quantizer", "RLQ"],
        "--quantizer: method mse has its own; omit it",
    ),
    "minutes": (["float.pth", "-o", "net.safetensors", "--minutes", "0"], "a number of minutes above 0"),
    "depths": (["float.pth", "-o", "net.safetensors", "--depths", "1"], "must contain the full depth 2"),
    "trunk": (
        ["float.pth", "-o", "net.safetensors", "--depths", "2", "1", "--trunk", "bodies"],
        "--trunk: 'bodies' names no run of 2 or more units of one class; did you mean 'body'?",
    ),
    "method": (["float.pth", "-o", "net.safetensors", "--method", "max"], "invalid choice: 'max'"),
    "iterations": (["float.pth", "-o", "net.safetensors", "--iterations", "-1"], "'-1' is no number from 0"),
    "rectifier": (["float.pth", "-o", "net.safetensors", "--rectifier", "8"], "--rectifier: is trained with"),
    "mixed": (["float.pth", "-o", "net.safetensors", "--mixed", "0.6"], "'0.6' is no share from 0 to 0.5"),
    "attention": (
        ["float.pth", "-o", "net.safetensors", "--attention", "4"],
        "--attention: EDSR multiplies no values that both depend on the picture",
    ),
    "folder": (["float.pth", "-o", "absent/net.safetensors"], "absent"),
    "packed": (["quantsr_c_x2_w4a4", "-o", "net.safetensors"], "is a packed network"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_one_line_and_exit_code_2(folder: Path, capsys, words, message: str) -> None:
    try:
        code = quantize(*words)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("error:")]
    assert message in line
    assert "Traceback" not in error
    assert not (folder / "net.safetensors").exists()


def test_a_checkpoint_that_nothing_describes_names_the_ways(folder: Path, capsys, monkeypatch) -> None:
    torch.save({"params": edsr().state_dict()}, folder / "plain.pth")
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    assert quantize("plain.pth", "-o", "net.safetensors") == 2
    error = capsys.readouterr().err
    assert (
        "plain.pth: has no description of its network; give an option file with network_g by -opt FILE"
        in error
    )
    assert "pip install spandrel" in error


@pytest.mark.integration
def test_distillation_is_kept_and_not_begun_anew(folder: Path, capsys, caplog) -> None:
    words = ["float.pth", "-o", "net.safetensors", "--bits", "2", "--minutes", "0.25"]
    assert quantize(*words) == 0
    run = folder / "experiments" / "quantize_net"
    trained = (run / "network" / "network.pth").read_bytes()
    model = packing.load(folder / "net.safetensors")
    assert model.header.provenance["quantized"] == "0.25 minutes of distillation"
    assert quantize(*words) == 0  # trains no more
    assert "network.pth: trained already; remove" in caplog.text
    assert (run / "network" / "network.pth").read_bytes() == trained
    capsys.readouterr()
    assert quantize(*words[:4], "3", *words[5:]) == 2
    assert (
        "quantize_net: is of another quantization; remove it, or name another -o" in capsys.readouterr().err
    )


@pytest.mark.integration
def test_distillation_trains_all_depths_and_keeps_the_ranking(folder: Path) -> None:
    words = ["float.pth", "-o", "net.safetensors", "--depths", "2", "1"]
    assert quantize(*words) == 0
    before = packing.load(folder / "net.safetensors")
    assert quantize(*words, "--minutes", "0.25") == 0
    after = packing.load(folder / "net.safetensors")
    assert after.header.ranking == before.header.ranking
    assert after.header.depths == (2, 1)
    # a log for each call of the training, which is cut to its time
    logs = (folder / "experiments/quantize_net/network/log").iterdir()
    assert any("iteration 0: stage 2, depths [2, 1]" in log.read_text(encoding="utf-8") for log in logs)


@pytest.mark.integration
def test_distillation_brings_the_network_nearer_to_the_float_one(folder: Path) -> None:
    assert quantize("float.pth", "-o", "before.safetensors", "--bits", "2") == 0
    assert quantize("float.pth", "-o", "after.safetensors", "--bits", "2", "--minutes", "0.5") == 0
    net = edsr().eval()
    image = np.kron(
        np.random.default_rng(5).integers(0, 256, (6, 6, 3), np.uint8), np.ones((4, 4, 1), np.uint8)
    )
    with torch.inference_mode():
        wanted = (
            net(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0).clamp(0, 1) * 255
        )
    errors = []
    for name in ("before", "after"):
        model = packing.load(folder / f"{name}.safetensors")
        (got,) = select.create("onnxruntime", model).run(image[None])
        errors.append(float(np.square(got - wanted.numpy()).mean()))
    assert errors[1] < errors[0]
