"""ncnn's files and the engine: which layers are integer, what they compute, and the files
themselves. `test_operations.py` compares every operation with its definition."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from quantsr import cli
from quantsr.deploy.convert import convert
from quantsr.deploy.engines import ncnn_graph, ncnn_model, reference, select
from quantsr.deploy.engines.ncnn_operations import NcnnOps
from quantsr.deploy.folded import Quantize, Step
from quantsr.deploy.packed import packing
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.passes.fold import fold
from quantsr.errors import InputError
from quantsr.quant import Rule, calibrate, quantize_layers
from tests.deploy import quantsr_t
from tests.deploy.conftest import small_model
from tests.deploy.test_lower import FLOAT_NETWORKS

ncnn = pytest.importorskip("ncnn", reason="ncnn is not installed; pip install ncnn")

ZOO = sorted(path.stem for path in Path(packing.__file__).parents[2].glob("zoo/quantsr_c*.safetensors"))
QUANTIZED = {
    "EDSR": "body.*",
    "SRVGGNetCompact": "body.[24]",
    "MSRResNet": "body.*",
    "RRDBNet": "body.*",
    "RCAN": "body.*.rcab.[02]",
}


def difference(model: PackedModel, depth: int, image: np.ndarray) -> np.ndarray:
    found = select.create("ncnn", model, depth, threads=1).run(image[None])[0]
    assert found.dtype == np.uint8
    return np.abs(found.astype(int) - reference.run(model, image, depth))


def lines_of(kind: str, param: str) -> list[str]:
    return [line for line in param.splitlines() if line.startswith(f"{kind} ")]


def plain_ncnn(path: Path, image: np.ndarray) -> np.ndarray:
    """What an application does: RGB in 0..1 to RGB in 0..1, by names of blobs."""
    net = ncnn.Net()
    assert net.load_param(str(path)) == 0
    assert net.load_model(str(path.with_suffix(".bin"))) == 0
    extractor = net.create_extractor()
    pixels = np.ascontiguousarray(image.transpose(2, 0, 1)).astype(np.float32) / 255
    extractor.input("data", ncnn.Mat(pixels).clone())
    status, result = extractor.extract("output")
    assert status == 0
    return np.rint(np.clip(np.array(result).transpose(1, 2, 0), 0, 1) * 255).astype(int)


@pytest.mark.parametrize("name", ZOO)
def test_shipped_networks_are_within_1_of_the_reference(name, picture):
    """A code next to a tie may change, where the first convolution's float sum is rounded otherwise
    (docs/explanation/numerics.md)."""
    model = packing.load(Path(packing.__file__).parents[2] / "zoo" / f"{name}.safetensors")
    for depth in model.header.depths:
        gap = difference(model, depth, np.tile(picture, (2, 2, 1)))
        assert (gap <= 1).mean() >= 0.999
        assert (gap == 0).mean() >= 0.98


@pytest.mark.parametrize("name", ZOO)
def test_codes_of_shipped_networks_are_the_references(name, picture):
    """Those that floats are quantized to, in front of every block."""
    model = packing.load(Path(packing.__file__).parents[2] / "zoo" / f"{name}.safetensors")
    program = fold(model, wide_inputs=False)
    expected: dict[int, np.ndarray] = {}

    def observe(step: Step, value: torch.Tensor) -> None:
        if isinstance(step.op, Quantize):
            expected[step.output] = value[0].numpy().copy()

    reference.run_folded(program, picture, observe)
    assert len(expected) == model.depth_or_default(None)
    pixels = np.ascontiguousarray(picture.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)
    for value, codes in expected.items():
        graph = ncnn_graph.Graph()
        ops = NcnnOps(graph, program)
        for step in program.steps:
            if step.output <= value:
                ops.step(step)
        found = run_graph(*graph.finish(ops.blobs[value]), pixels)
        assert (found != codes).mean() <= 1e-4


@pytest.mark.parametrize("name", ZOO)
def test_every_convolution_of_codes_is_an_int8_convolution(name):
    model = packing.load(Path(packing.__file__).parents[2] / "zoo" / f"{name}.safetensors")
    for depth in model.header.depths:
        param = ncnn_model.build(model, depth).param
        integer = [line for line in lines_of("Convolution", param) if re.search(r" 8=(2|102)\b", line)]
        assert len(integer) == 2 * depth


@pytest.mark.parametrize("head_tail_bits", [8, 16, 32])
@pytest.mark.parametrize("size", [(1, 1), (2, 7), (3, 3), (9, 4)], ids=str)
def test_pictures_of_any_size(size, head_tail_bits, picture):
    """Below 3 pixels the tail stays its layers."""
    model = small_model(head_tail_bits=head_tail_bits)
    gap = difference(model, 4, np.ascontiguousarray(picture[: size[0], : size[1]]))
    assert gap.max() <= 1
    assert (gap == 0).mean() >= 0.9


@pytest.mark.parametrize("bits", [(2, 2), (3, 5), (8, 4), (4, 8), (8, 8)], ids=str)
def test_bits_of_weights_and_activations(bits, picture):
    gap = difference(small_model(bits_w=bits[0], bits_a=bits[1]), 4, picture)
    assert (gap <= 1).mean() >= 0.999


@pytest.mark.parametrize("weight", [3, 5])
def test_sums_beyond_what_winograd_keeps_exact_are_exact(weight):
    """ncnn's Winograd form divides sums by 576 in float32."""
    channels = 512
    codes = np.full((channels, 9, 10), 127, np.float32)
    sums = 127 * weight * channels * 9
    graph = ncnn_graph.Graph()
    y = graph.conv_of_codes(
        ncnn_graph.INPUT,
        "conv",
        np.full((16, channels, 3, 3), weight, np.int8),
        np.ones(16, np.float32),
        None,
        bound=sums,
    )
    param, weights = graph.finish(y)
    assert (" 31=64" in param) == (sums > ncnn_graph.WINOGRAD_EXACT)
    found = run_graph(param, weights, codes)
    assert (found[:, 1:-1, 1:-1] == sums).all()


def run_graph(param: str, weights: bytes, values: np.ndarray) -> np.ndarray:
    from quantsr.deploy.engines.ncnn import load

    extractor = load(ncnn_model.NcnnModel(param, weights), 1).create_extractor()
    extractor.input(ncnn_graph.INPUT, ncnn.Mat(values).clone())
    status, result = extractor.extract(ncnn_graph.OUTPUT)
    assert status == 0
    return np.array(result)


def test_ncnn_reads_back_every_float(picture):
    numbers = np.float32([1 / 3, -1.1754944e-38, 3.4028235e38, 16777217, 0.1, -1e-30, 255, 1e10])
    for number in numbers:
        graph = ncnn_graph.Graph()
        param, weights = graph.finish(graph.with_constant(ncnn_graph.ADD, ncnn_graph.INPUT, number))
        assert run_graph(param, weights, np.zeros((1, 2, 2), np.float32))[0, 0, 0] == number
        assert max(len(word.split("=")[1]) for word in param.split() if word.startswith("2=")) <= 15


def test_multipliers_are_those_that_ncnn_computes(picture):
    """Where no reciprocal is the multiplier, a layer of its own multiplies."""
    rng = np.random.default_rng(1)
    multipliers = rng.uniform(0.01, 0.02, 1000).astype(np.float32)
    reachable = [ncnn_graph.reachable(multipliers[i : i + 1]) for i in range(len(multipliers))]
    assert 0.5 < np.mean(reachable) < 1
    values = np.arange(16, dtype=np.float32).reshape(1, 4, 4)
    for multiplier in multipliers[np.flatnonzero(reachable)[:50]]:
        graph = ncnn_graph.Graph()
        y = graph.conv_of_codes(
            ncnn_graph.INPUT,
            "conv",
            np.ones((1, 1, 1, 1), np.int8),
            np.array([multiplier]),
            None,
            bound=16,
        )
        np.testing.assert_array_equal(run_graph(*graph.finish(y), values), values * multiplier)


@pytest.mark.parametrize("name", FLOAT_NETWORKS)
def test_float_networks_of_basicsr(name, picture):
    torch.manual_seed(0)
    model = convert(FLOAT_NETWORKS[name]().eval(), head_tail_bits=32)
    if name == "SwinIR":
        with pytest.raises(InputError, match="window_attention"):
            select.create("ncnn", model)
        return
    gap = difference(model, model.depth_or_default(None), picture)
    assert gap.max() <= 1
    assert (gap > 0).mean() < 0.001


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_networks_of_basicsr(name, picture):
    torch.manual_seed(0)
    net = quantize_layers(FLOAT_NETWORKS[name](), [Rule(QUANTIZED[name], 4, 4)]).eval()
    calibrate(net, [torch.rand(2, 3, 16, 16)])
    model = convert(net.eval(), head_tail_bits=32)
    param = ncnn_model.build(model).param
    quantized = [layer for layer in model.layers.values() if layer.integer]
    assert quantized
    assert len(re.findall(r" 8=(?:2|102)\b", param)) == len(quantized)
    gap = difference(model, model.depth_or_default(None), picture)
    assert (gap <= 1).mean() >= 0.999


def test_window_attention_is_refused_by_name(tmp_path, capsys):
    packing.save(quantsr_t.small_model(), tmp_path / "net.safetensors")
    words = ["export", "-m", str(tmp_path / "net.safetensors"), "-o", str(tmp_path / "net.param")]
    assert cli.main(words) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert "window_attention" in errors[0]
    assert not (tmp_path / "net.param").exists()


def test_vulkan_is_refused_without_a_device(monkeypatch):
    monkeypatch.setattr(ncnn, "get_gpu_count", lambda: 0)
    with pytest.raises(InputError, match="no Vulkan device"):
        select.create("ncnn", small_model(), vulkan=True)


def test_vulkan_gives_nearly_the_picture(picture):
    """Where there is a device; a software one will do (Debian: mesa-vulkan-drivers)."""
    if ncnn.get_gpu_count() < 1:
        pytest.skip("there is no Vulkan device")
    engine = select.create("ncnn", small_model(), vulkan=True)
    assert engine.name == "ncnn:vulkan"
    gap = np.abs(engine.run(picture[None])[0].astype(int) - reference.run(small_model(), picture))
    assert (gap <= 1).mean() >= 0.9


# --- files ----------------------------------------------------------------------------------------


def export(folder: Path, *words: str) -> str:
    packing.save(small_model(), folder / "net.safetensors")
    arguments = ["export", "-m", str(folder / "net.safetensors"), "-o", str(folder / "net.param"), *words]
    assert cli.main([*arguments, "--no-parity"]) == 0
    return (folder / "net.param").read_text()


@pytest.mark.parametrize("depth", [4, 2, 1])
def test_an_exported_network_runs_in_plain_ncnn(depth, tmp_path, picture):
    text = export(tmp_path, "--depth", str(depth))
    lines = text.splitlines()
    assert lines[0] == "7767517"
    assert int(lines[1].split()[0]) == len(lines) - 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.bin", "net.param", "net.safetensors"]
    gap = np.abs(plain_ncnn(tmp_path / "net.param", picture) - reference.run(small_model(), picture, depth))
    assert gap.max() <= 1


def test_no_blob_has_two_readers(tmp_path):
    """ncnn wants a Split there, and reads names up to a space."""
    readers: list[str] = []
    for line in export(tmp_path).splitlines()[2:]:
        _, _, inputs, outputs, *words = line.split()
        readers += words[: int(inputs)]
        assert len([word for word in words if "=" not in word]) == int(inputs) + int(outputs)
    assert len(readers) == len(set(readers))


def test_float16_weights_leave_codes_alone(tmp_path, picture):
    export(tmp_path)
    full = (tmp_path / "net.bin").stat().st_size
    export(tmp_path, "--fp16")
    assert (tmp_path / "net.bin").stat().st_size < 0.8 * full
    gap = np.abs(plain_ncnn(tmp_path / "net.param", picture) - reference.run(small_model(), picture))
    assert gap.max() <= 1


def test_parity_of_exported_files_names_them(tmp_path, capsys, picture):
    packing.save(small_model(), tmp_path / "net.safetensors")
    (tmp_path / "hr").mkdir()
    cv2.imwrite(str(tmp_path / "hr" / "0.png"), np.tile(picture, (2, 2, 1)))
    words = ["export", "-m", str(tmp_path / "net.safetensors"), "-o", str(tmp_path / "net.param")]
    words += ["--data", str(tmp_path / "hr")]
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert "| ncnn " in text
    assert "| net.param (ncnn)" in text
