"""QuantSR-T packed: conversion against the training network, the file and its damage, one depth as
a network, cost."""

from __future__ import annotations

import itertools
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from quantsr import cli, load
from quantsr.analysis import cost, module_cost
from quantsr.archs import windows
from quantsr.deploy import convert
from quantsr.deploy import windows as layout
from quantsr.deploy.engines import reference as integer_reference
from quantsr.deploy.module import to_module
from quantsr.deploy.native import library
from quantsr.deploy.packed import packing, restrict
from quantsr.deploy.packed.header import check_structure
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.passes.fold import fold, relative_positions
from quantsr.deploy.stand_ins.transformer import random_model
from quantsr.engine.network_file import network_file
from quantsr.errors import InputError
from quantsr.quant import manifest
from quantsr.trained_files import checkpoint
from tests.deploy.quantsr_t import PROTOCOLS, small_model, trained, upscaled
from tests.deploy.test_packing import assert_same, forged, load_bytes, refused

BITS = range(2, 9)


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    """The design's bound: at least 99.9 % of the values within 1 of 255."""
    difference = np.abs(got.astype(int) - expected)
    assert expected.std() > 5
    assert (difference <= 1).mean() >= 0.999, difference.max()


# --- integers against the training network --------------------------------------------------------


OPTIONS = [
    *({"nbits_w": bits, "nbits_a": bits} for bits in BITS),
    *({"nbits_w": b, "nbits_a": b, "quantize_attention": True, "quantize_conv": True} for b in BITS),
    {"quantize_attention": True},
    {"weight_granularity": "channel"},
    {"quantizer": "LSQ"},
    {"quantizer": "MinMax", "quantize_attention": True},
    {"quantizer": "MinMax", "quantize_conv": True},
    {"quantizer": "Percentile", "quantize_attention": True},
    {"quantizer": "LSQPlus"},
    {"img_range": 255.0},
    {"upscale": 3},
    {"nbits_w": 32},
    {"nbits_a": 32, "quantize_attention": True},
    {"nbits_w": 32, "nbits_a": 32},
    {"dqa_unit": "layer", "depths": [8, 5, 3]},
    {"upsampler": "pixelshuffle", "upscale": 4, "resi_connection": "3conv", "quantize_conv": True},
    {"window_size": 5, "mlp_ratio": 1.5},
]
EVERY_DEPTH = ({"quantize_attention": True}, {"dqa_unit": "layer", "depths": [8, 5, 3]}, {"nbits_w": 32})
"""Those of a unit test at the lower depths, where only the kept blocks are others."""


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_integers_give_the_training_networks_picture(picture, options):
    net = trained(**options)
    same_picture(net, convert.convert(net, head_tail_bits=32), picture, net.depths[0])


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(options, marks=[] if options in EVERY_DEPTH else [pytest.mark.integration])
        for options in OPTIONS
    ],
    ids=str,
)
def test_integers_give_the_training_networks_picture_at_every_depth(picture, options):
    net = trained(**options)
    model = convert.convert(net, head_tail_bits=32)
    pictures = [same_picture(net, model, picture, depth) for depth in model.header.depths]
    assert len(pictures) > 1
    assert all((a != b).mean() > 0.01 for a, b in itertools.pairwise(pictures))


def same_picture(net, model: PackedModel, picture: np.ndarray, depth: int) -> np.ndarray:
    """The network's picture, which the integers and the module of the file give as well."""
    assert model.header.blocks_kept(depth) == net.blocks_kept(depth)
    expected = upscaled(net, picture, depth)
    assert_close(integer_reference.run(model, picture, depth), expected)
    assert_close(upscaled(to_module(model), picture, depth), expected)
    return expected


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (4, 8), (5, 2), (3, 17)])
def test_any_size(size):
    net = trained(num_block=1)
    model = convert.convert(net, head_tail_bits=32)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    assert_close(integer_reference.run(model, image), upscaled(net, image, 1))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_manifest_of_the_file_is_that_of_training(name):
    net = trained(**PROTOCOLS[name])
    assert net.protocol == name
    model = convert.convert(net, head_tail_bits=32)
    rows = {row["name"]: row for row in manifest(net)}
    for ours in model.manifest:
        theirs = rows.pop(ours["name"])
        assert (ours["shape"], ours["bits_w"], ours["bits_a"]) == (
            theirs["shape"],
            theirs["bits_w"],
            theirs["bits_a"],
        )
    products = {f"{operand.rpartition('.')[0]}" for operand in model.operands}
    assert products == {n for n, row in rows.items() if row["bits_w"] < 32}
    assert all(row["kind"] == "matmul" for row in rows.values())


@pytest.mark.parametrize("name", PROTOCOLS)
def test_eight_bit_head_and_tail_are_close_to_float(picture, name):
    net = trained(nbits_w=8, nbits_a=8, **PROTOCOLS[name])
    for first_bits in (8, 32):
        model = convert.convert(net, head_tail_bits=8, calib=[picture], first_bits=first_bits)
        convs = [layer for layer in model.layers.values() if layer.kind == "conv"]
        assert sum(layer.integer for layer in convs) == len(convs) - (first_bits == 32)
        outside = [x for x in convs if x.bits_w == 8 and x.bits_a == 16]
        assert {x.weight_step.size == x.out_channels for x in outside} == {True}
        assert len(outside) == (2 if name == "QuantSR+" else 6)
        error = integer_reference.run(model, picture).astype(float) - upscaled(net, picture, 4)
        assert np.sqrt((error**2).mean()) < 4
        module = to_module(model)
        assert_close(upscaled(module, picture, 4), integer_reference.run(model, picture))


def test_sums_of_16_bit_inputs_are_exact():
    (conv,) = (conv for conv in fold(small_model()).convs() if conv.name == "conv_after_body")
    assert conv.codes_in == (-32768, 32767)
    codes = np.random.default_rng(0).choice([-32768, 32767, 32766], (1, conv.weight.shape[1], 6, 7))
    conv = replace(conv, weight=np.where(conv.weight < 0, -127, 127).astype(np.int8))
    assert conv.sum_bound > 2**24
    expected = np.zeros((len(conv.weight), 6, 7), np.int64)
    padded = np.pad(codes[0], ((0, 0), (1, 1), (1, 1)))
    for y, x in itertools.product(range(6), range(7)):
        taps = conv.weight.astype(np.int64) * padded[:, y : y + 3, x : x + 3]
        expected[:, y, x] = taps.sum((1, 2, 3))
    got = integer_reference.sums(torch.tensor(codes, dtype=torch.float32), conv)[0].numpy()
    np.testing.assert_array_equal(got, expected.astype(np.float32))


def test_what_cannot_be_converted(picture):
    net = trained(num_block=1)
    model = convert.convert(net, head_tail_bits=8, calib=[picture])
    with pytest.raises(InputError, match="converted to 8 bits before"):
        convert.convert(to_module(model), calib=[picture])
    net.layers[0].blocks[1].mlp.fc1.input_quantizer.calibrated.fill_(False)
    net.load_state_dict(net.state_dict())
    with pytest.raises(InputError, match=r"layers\.0\.blocks\.1\.mlp\.fc1: .*not calibrated"):
        convert.convert(net, head_tail_bits=32)


# --- indices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(8, 12), (4, 4), (12, 8)])
@pytest.mark.parametrize("shift", [0, 2])
def test_indices_are_those_of_training(grid, shift):
    places = torch.arange(grid[0] * grid[1]).view(1, -1, 1)
    expected = windows.to_windows(places, grid, 4, shift).reshape(-1).numpy()
    np.testing.assert_array_equal(layout.order_index(grid, 4, None, shift), expected)
    back = expected[layout.order_index(grid, 4, shift, None)]
    np.testing.assert_array_equal(back, places.reshape(-1).numpy())
    other = windows.to_windows(places, grid, 4, 2 - shift).reshape(-1).numpy()
    np.testing.assert_array_equal(expected[layout.order_index(grid, 4, shift, 2 - shift)], other)
    if shift:
        mask = windows.shifted_window_mask(grid, 4, shift, torch.device("cpu"))
        np.testing.assert_array_equal(layout.mask(grid, 4, shift)[:, 0], mask.numpy())
    np.testing.assert_array_equal(relative_positions(4), windows.relative_positions(4).numpy())


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9])
def test_reflection_is_that_of_training(size):
    x = torch.arange(float(size)).view(1, 1, 1, size)
    padded = windows.reflect_pad(x, 8)[0, 0, 0].numpy()
    np.testing.assert_array_equal(layout.reflected(size, 8), padded)


# --- the file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("coding", [None, "dense", "huffman"])
@pytest.mark.parametrize(
    "options",
    [
        *({"bits_w": bits, "bits_a": bits} for bits in BITS),
        *({"bits_w": b, "bits_a": b, "quantize_attention": True, "quantize_conv": True} for b in (2, 5, 8)),
        {"head_tail_bits": 16},
        {"head_tail_bits": 32, "weight_granularity": "channel"},
        {"bits_w": 32, "bits_a": 32, "head_tail_bits": 32},
        {"dqa_unit": "layer"},
        {"upsampler": "pixelshuffle", "resi_connection": "3conv", "scale": 3},
    ],
    ids=str,
)
def test_round_trip(tmp_path, options, coding):
    model = small_model(**options)
    path = tmp_path / "net.safetensors"
    assert packing.save(model, path, coding) == path.stat().st_size
    again = packing.load(path)
    assert_same(model, again)
    for mine, read in ((model.operands, again.operands), (model.floats, again.floats)):
        assert list(mine) == list(read)
        for name, part in mine.items():
            assert all(np.array_equal(getattr(part, f), getattr(read[name], f)) for f in vars(part))


def test_load_reads_the_network_back_bit_for_bit(tmp_path, picture):
    net = trained(**PROTOCOLS["QuantSR+"])
    packing.save(convert.convert(net, head_tail_bits=32), tmp_path / "net.safetensors")
    again = load(tmp_path / "net.safetensors")
    assert again.protocol == "QuantSR+"
    codes = {
        name: m.weight_codes()
        for name, m in net.named_modules()
        if hasattr(m, "weight_codes") and m.weight_quantizer
    }
    assert len(codes) == 4 * (2 * 4 + 1)
    for name, expected in codes.items():
        assert torch.equal(again.get_submodule(name).weight_codes(), expected)
    quantized = {f"{name}.weight" for name in codes}
    for name, value in net.state_dict().items():
        if name not in quantized:
            assert torch.equal(again.state_dict()[name], value), name
    for depth in net.depths:
        np.testing.assert_array_equal(upscaled(again, picture, depth), upscaled(net, picture, depth))


def test_size_of_swinir_s_at_4_bits():
    # 24 layers of 28,800 weights at 4 bits, 8-bit convs; tables of 225 x 6 biases take 16 bits.
    model = random_model()
    linears = sum(layer.weight.size for layer in model.layers.values() if layer.kind == "linear")
    assert linears == 24 * 28_800
    counted = packing.counted_bytes(model)
    assert len(packing.to_bytes(model, "dense")) <= 1.04 * counted
    assert len(packing.to_bytes(model)) < 0.9 * counted < 650_000


@pytest.fixture(scope="module")
def good() -> bytes:
    return packing.to_bytes(small_model(num_block=1, quantize_attention=True, depths=(1,)))


FORGERIES = {
    "num_heads 0": lambda h: h["arch"].update(num_heads=0),
    "num_heads 5": lambda h: h["arch"].update(num_heads=5),
    "no window": lambda h: h["arch"].pop("window_size"),
    "huge window": lambda h: h["arch"].update(window_size=10**6),
    "text ratio": lambda h: h["arch"].update(mlp_ratio="2"),
    "nan ratio": lambda h: h["arch"].update(mlp_ratio=float("nan")),
    "list upsampler": lambda h: h["arch"].update(upsampler=["pixelshuffle"]),
    "other unit": lambda h: h["arch"].update(dqa_unit="window"),
    "more layers": lambda h: h["arch"].update(layers_per_block=3),
    "float attention": lambda h: h["arch"].update(quantize_attention=False),
    "scale 1": lambda h: h.update(scale=1),
    "operand missing": lambda h: h["operands"].pop(),
    "operand twice": lambda h: h["operands"].append(h["operands"][0]),
    "operand 7": lambda h: h["operands"].append(7),
    "operand bits 9": lambda h: h["operands"][0].__setitem__(2, 9),
    "operand channels": lambda h: h["operands"][0].__setitem__(1, 13),
    "operands a table": lambda h: h.update(operands={}),
    "no floats": lambda h: h.pop("floats"),
    "float of 4 bits": lambda h: h["floats"][0].__setitem__(2, 4),
    "float shape": lambda h: h["floats"][0].__setitem__(1, [6, 2]),
    "huge float": lambda h: h["floats"][0].__setitem__(1, [16384, 16384]),
    "float 7": lambda h: h["floats"].append(7),
    "other float": lambda h: h["floats"][0].__setitem__(0, "norm_second.weight"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_headers_are_refused(tmp_path, good, name):
    assert load_bytes(tmp_path, forged(good, lambda h: None)).operands
    refused(tmp_path, forged(good, FORGERIES[name]), "is corrupt")


def test_forged_halves_are_refused(tmp_path, good):
    def same(_header):
        return None

    refused(tmp_path, forged(good, same, lambda t: t.pop("halves")), "not those of its header: halves")
    refused(tmp_path, forged(good, same, lambda t: t.update(halves=t["halves"][:-1])), "wrong length")
    refused(tmp_path, forged(good, same, lambda t: t["halves"].fill(np.inf)), "not finite")
    wide = {"halves": np.zeros(294, np.float32)}
    refused(tmp_path, forged(good, same, lambda t: t.update(wide)), "wrong type")


def test_truncation(tmp_path, good):
    for length in range(0, len(good), 1009):
        refused(tmp_path, good[:length])


def test_an_unknown_architecture_is_named():
    model = small_model()
    foreign = PackedModel(replace(model.header, arch={"type": "SwinIR"}), model.layers)
    with pytest.raises(ValueError, match="architecture 'SwinIR' is unknown, and the file has no program"):
        check_structure(foreign)


# --- one depth as a network of its own, and cost --------------------------------------------------


@pytest.mark.parametrize("ranking", [(2, 0, 3, 1), (0, 1, 2, 3), (3, 2, 1, 0)])
def test_a_restricted_network_is_the_same_network(tmp_path, picture, ranking):
    net = trained(quantize_attention=True)
    net.set_ranking(ranking)
    model = convert.convert(net, head_tail_bits=8, calib=[picture])
    small = restrict.restrict(model, 2)
    assert (small.header.depths, small.header.num_block) == ((2, 1), 2)
    packing.save(small, tmp_path / "net.safetensors")
    assert_same(small, packing.load(tmp_path / "net.safetensors"))
    for depth in (2, 1):
        assert_close(
            integer_reference.run(small, picture, depth), integer_reference.run(model, picture, depth)
        )
        assert_close(upscaled(to_module(small), picture, depth), integer_reference.run(model, picture, depth))


def test_single_layers_cannot_be_taken_out():
    model = small_model(dqa_unit="layer")
    with pytest.raises(InputError, match="units of this network cannot be taken out"):
        restrict.restrict(model, model.header.depths[1])


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("depth", [4, 1])
def test_cost_of_the_file_is_that_of_the_module(name, depth):
    model = convert.convert(trained(**PROTOCOLS[name]), head_tail_bits=32)
    packed = cost.packed_layers(model, depth, (6, 9))
    by_kind = {"conv": 0, "linear": 0, "product": 0}
    for _, kind, macs in module_cost.module_macs(trained(nbits_w=32, nbits_a=32), (6, 9), depth):
        by_kind[kind] += macs
    for kind, macs in by_kind.items():
        assert sum(layer.macs for layer in packed if layer.kind == kind) == macs
    products = {layer.bits_a for layer in packed if layer.kind == "product"}
    assert products == {32 if name == "QuantSR" else 4}
    storage = cost.cost_of_packed(model, [(6, 9)])["storage"]
    assert storage["packed_bytes"] == packing.counted_bytes(model)


@pytest.mark.parametrize("suffix", ["safetensors", "onnx"])
def test_export_prints_its_parity(tmp_path, picture, capsys, suffix):
    pytest.importorskip("onnxruntime")
    options = {"name": "tiny_t", "datasets": {}}
    content = network_file(trained(num_block=2, quantize_attention=True), None, iteration=7, options=options)
    checkpoint.save(tmp_path / "T.pth", content)
    (tmp_path / "hr").mkdir()
    cv2.imwrite(str(tmp_path / "hr" / "0.png"), np.tile(picture, (2, 2, 1)))
    words = ["-m", str(tmp_path / "T.pth"), "-o", str(tmp_path / f"net.{suffix}"), "--depth", "1"]
    folders = ["--calib", str(tmp_path / "hr"), "--data", str(tmp_path / "hr")]
    assert cli.main(["export", *words, *folders]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| hr")]
    names = [row.split("|")[2].strip() for row in rows]
    native = ["native"] if library.best_isa() else []
    assert names[:-1] == ["network", "integer", *native, "openvino", "onnxruntime", "torch"]
    assert names[-1].startswith(f"net.{suffix} (")
    shares = [float(row.split("|")[-2].split()[0]) for row in rows[2:]]
    assert min(shares) >= 99.5  # within 1 of the integer reference
