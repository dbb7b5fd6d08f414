"""Packed files: bit streams against their slow twin, sizes, round trips, and every kind of
damage."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as parse
from safetensors.numpy import save as serialize

from quantsr.deploy import operations
from quantsr.deploy.packed import bitstream, packing
from quantsr.deploy.packed.model import FORMAT_VERSION, PackedModel
from quantsr.deploy.packed.rows import LayerRow
from quantsr.deploy.passes.fold import fold
from quantsr.deploy.stand_ins.convolutional import random_model
from quantsr.errors import InputError, WorkError
from tests.deploy.conftest import small_model
from tests.reference import packing as reference

BITS = range(2, 9)


@st.composite
def codes_of_some_bits(draw):
    bits = draw(st.sampled_from(list(BITS)))
    half = 1 << (bits - 1)
    return draw(st.lists(st.integers(-half, half - 1), max_size=70)), bits


@settings(deadline=None)
@given(codes_of_some_bits())
def test_pack_is_the_slow_twin(example):
    codes, bits = example
    data = bitstream.pack(np.array(codes, np.int8), bits)
    assert data == reference.pack(codes, bits)
    assert len(data) == -(-len(codes) * bits // 8)
    assert (
        bitstream.unpack(data, bits, len(codes)).tolist() == codes == reference.unpack(data, bits, len(codes))
    )


@settings(deadline=None)
@given(codes_of_some_bits(), st.sampled_from([None, bitstream.DENSE, bitstream.HUFFMAN]))
def test_every_coding_gives_the_codes_back(example, coding):
    codes, bits = example
    used, data = bitstream.encode(np.array(codes, np.int8), bits, coding)
    assert bitstream.decode(data, bits, len(codes), used).tolist() == codes
    if coding is None:
        assert len(data) <= -(-len(codes) * bits // 8)


@pytest.mark.parametrize("bits", BITS)
def test_chunks_meet_at_whole_bytes(monkeypatch, bits):
    monkeypatch.setattr(bitstream, "_CHUNK", 16)
    rng = np.random.default_rng(bits)
    codes = rng.integers(-(1 << (bits - 1)), 1 << (bits - 1), 53).astype(np.int8)
    data = bitstream.pack(codes, bits)
    assert data == reference.pack(codes.tolist(), bits)
    np.testing.assert_array_equal(bitstream.unpack(data, bits, 53), codes)


@settings(deadline=None, max_examples=200)
@given(
    st.binary(max_size=40),
    st.sampled_from(list(BITS)),
    st.integers(0, 1 << 40),
    st.sampled_from(["dense", "huffman"]),
)
def test_foreign_bytes_are_refused_or_decoded_within_bounds(data, bits, count, coding):
    # The count comes from the file: no allocation may follow it beyond what the bytes can hold.
    try:
        codes = bitstream.decode(data, bits, count, coding)
    except ValueError:
        return
    assert len(codes) == count <= 8 * len(data)
    if count:
        assert codes.min() >= -(1 << (bits - 1))
        assert codes.max() < 1 << (bits - 1)


def test_codes_beyond_their_bits_are_refused():
    with pytest.raises(ValueError, match="do not fit 3 bits"):
        bitstream.pack(np.array([4], np.int8), 3)
    with pytest.raises(ValueError, match=r"bits must be 2\.\.8"):
        bitstream.pack(np.array([0], np.int8), 9)


def assert_same(a: PackedModel, b: PackedModel) -> None:
    assert a.header == b.header
    assert list(a.layers) == list(b.layers)
    for name, layer in a.layers.items():
        other = b.layers[name]
        assert type(layer) is type(other)
        for f in fields(layer):
            x, y = getattr(layer, f.name), getattr(other, f.name)
            if isinstance(x, np.ndarray):
                assert x.dtype == y.dtype
                np.testing.assert_array_equal(x, y)
            else:
                assert x == y, (name, f.name)


@pytest.mark.parametrize("coding", [None, "dense", "huffman"])
@pytest.mark.parametrize(
    "options",
    [
        *({"bits_w": bits, "bits_a": bits} for bits in BITS),
        {"head_tail_bits": 16},
        {"first_bits": 32},
        {"head_tail_bits": 32, "per_channel": True},
        {"bits_w": 32, "bits_a": 32, "head_tail_bits": 32},
        {"bits_a": 32},
        {"scale": 3},
        {"scale": 1},
    ],
    ids=str,
)
def test_round_trip(tmp_path, options, coding):
    model = small_model(**options)
    path = tmp_path / "net.safetensors"
    assert packing.save(model, path, coding) == path.stat().st_size
    assert_same(model, packing.load(path))


def test_unranked_networks_round_trip(tmp_path):
    model = small_model()
    model = PackedModel(replace(model.header, ranking=None, depths=(4,)), model.layers)
    packing.save(model, tmp_path / "net.safetensors")
    assert_same(model, packing.load(tmp_path / "net.safetensors"))


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_size_is_the_sum_of_the_bits(bits):
    # counted_bytes: bits of every weight, 4 bytes for every bias, step, tau and shortcut.
    model = random_model(num_block=16, scale=4, bits_w=bits, bits_a=bits)
    counted = packing.counted_bytes(model)
    weights = sum(layer.weight.size * layer.bits_w for layer in model.layers.values()) / 8
    assert weights < counted < 1.04 * weights
    assert len(packing.to_bytes(model, "dense")) <= 1.02 * counted
    assert len(packing.to_bytes(model)) <= 1.02 * counted


def test_quantsr_c_of_16_blocks_takes_less_than_850_kb():
    # Its 4-bit blocks and 8-bit head and tail are 925,056 bytes of codes; bell-shaped codes take
    # less with Huffman coding.
    model = random_model(num_block=16, scale=4, bits_w=4, bits_a=4, head_tail_bits=8)
    assert sum(layer.weight.size * layer.bits_w for layer in model.layers.values()) / 8 == 925_056
    assert len(packing.to_bytes(model)) < 850_000


# --- damage ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good() -> bytes:
    return packing.to_bytes(small_model(num_feat=4, num_block=2))


def load_bytes(tmp_path, data: bytes) -> PackedModel:
    path = tmp_path / "net.safetensors"
    path.write_bytes(data)
    return packing.load(path)


def refused(tmp_path, data: bytes, match: str | None = None) -> None:
    with pytest.raises(InputError, match=match) as caught:
        load_bytes(tmp_path, data)
    assert "\n" not in str(caught.value)
    assert "net.safetensors" in str(caught.value)


def test_missing_and_foreign_files(tmp_path, good):
    with pytest.raises(InputError, match="no such file"):
        packing.load(tmp_path / "absent.safetensors")
    refused(tmp_path, b"", "not a readable")
    refused(tmp_path, b"\x89PNG\r\n\x1a\n" + bytes(100), "not a readable")
    refused(tmp_path, serialize({"weight": np.zeros(3, np.float32)}), "not a packed quantsr network")
    refused(
        tmp_path,
        serialize({"weight": np.zeros(3, np.float32)}, {"format": "pt"}),
        "not a packed quantsr network",
    )


def test_truncation_in_every_region(tmp_path, good):
    size = 8 + struct.unpack("<Q", good[:8])[0]
    for length in {
        *range(0, 12),
        *range(12, size, 97),
        size - 1,
        size,
        *range(size + 1, len(good), 211),
        len(good) - 1,
    }:
        refused(tmp_path, good[:length])
    refused(tmp_path, good + b"\0")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_flipped_bits_are_noticed(tmp_path_factory, good, data):
    position = data.draw(st.integers(0, len(good) - 1))
    changed = bytearray(good)
    changed[position] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.getbasetemp() / "flipped" / "net.safetensors"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(changed)
    try:
        model = packing.load(path)
    except InputError:
        return
    # Only what carries no meaning may change unnoticed: padding of the file's own header.
    assert_same(model, load_bytes(path.parent, good))


def test_a_newer_version_is_named(tmp_path, good):
    refused(tmp_path, forged(good, lambda h: h.update(format_version=FORMAT_VERSION + 1)), "update quantsr")


def forged(good: bytes, change, tensors=None) -> bytes:
    """The file with a changed header and a checksum that fits it."""
    size = struct.unpack("<Q", good[:8])[0]
    raw = json.loads(json.loads(good[8 : 8 + size])["__metadata__"]["quantsr"])
    change(raw)
    text = json.dumps(raw)
    arrays = {name: array.copy() for name, array in parse(good).items()}
    if tensors is not None:
        tensors(arrays)
    crc = packing._checksum(text, arrays)
    return serialize(arrays, {"format": "quantsr", "quantsr": text, "crc32": crc})


FORGERIES = {
    "no version": lambda h: h.pop("format_version"),
    "version true": lambda h: h.update(format_version=True),
    "no ranking": lambda h: h.update(ranking=None),
    "short ranking": lambda h: h.update(ranking=[0]),
    "ranking twice": lambda h: h.update(ranking=[0, 0]),
    "depth 3 of 2": lambda h: h.update(depths=[3]),
    "depths ascend": lambda h: h.update(depths=[1, 2]),
    "no depths": lambda h: h.update(depths=[]),
    "huge num_block": lambda h: h.update(num_block=10**9),
    "scale 5": lambda h: h.update(scale=5),
    "scale x": lambda h: h.update(scale="4"),
    "nan mean": lambda h: h.update(rgb_mean=[float("nan")] * 3),
    "huge mean": lambda h: h.update(rgb_mean=[10**400, 0, 0]),
    "img_range 0": lambda h: h.update(img_range=0),
    "tiny img_range": lambda h: h.update(img_range=1e-20),
    "tiny res_scale": lambda h: h.update(res_scale=1e-30),
    "type list": lambda h: h["arch"].update(type=["QuantSR_C"]),
    "type table": lambda h: h["arch"].update(type={}),
    "9 bits outside the blocks": lambda h: h.update(head_tail_bits=9),
    "true bits outside the blocks": lambda h: h.update(head_tail_bits=True),
    "foreign arch": lambda h: h["arch"].update(type="SwinIR"),
    "arch list": lambda h: h.update(arch=[]),
    "no layers": lambda h: h.update(layers=[]),
    "layer 7": lambda h: h.update(layers=[7]),
    "layer missing": lambda h: h["layers"].pop(),
    "layer twice": lambda h: h["layers"].append(h["layers"][0]),
    "huge shape": lambda h: h["layers"][1].__setitem__(1, [16384, 16384, 15, 15]),
    "negative shape": lambda h: h["layers"][1].__setitem__(1, [-4, 4, 3, 3]),
    "even kernel": lambda h: h["layers"][1].__setitem__(1, [4, 4, 2, 2]),
    "other shape": lambda h: h["layers"][1].__setitem__(1, [4, 4, 1, 9]),
    "bits 9": lambda h: h["layers"][1].__setitem__(2, 9),
    "other coding": lambda h: h["layers"][1].__setitem__(6, 1 - h["layers"][1][6]),
    "coding 9": lambda h: h["layers"][1].__setitem__(6, 9),
    "counts": lambda h: h["layers"][1].__setitem__(5, [4, 1, 1, 5, 0]),
    "zero point": lambda h: h["layers"][0].__setitem__(7, [0, 0, 300]),
    "range too wide": lambda h: h["layers"][1].extend([None, [-8, 8]]),
    "range without 0": lambda h: h["layers"][1].extend([None, [-9, -1]]),
    "range of another sign": lambda h: h["layers"][1].extend([None, [0, 14]]),
    "range of one": lambda h: h["layers"][1].extend([None, [-7]]),
    "range of text": lambda h: h["layers"][1].extend([None, "77"]),
    "no zero point": lambda h: h["layers"][1].append(None),
    "text name": lambda h: h["layers"][1].__setitem__(0, 5),
    "other name": lambda h: h["layers"][1].__setitem__(0, "body.0.conv3"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_headers_are_refused(tmp_path, good, name):
    refused(tmp_path, forged(good, FORGERIES[name]), "is corrupt")


@pytest.fixture(scope="module")
def written() -> bytes:
    """The file of a network with a program of its own."""
    model = small_model(num_feat=4, num_block=2)
    return packing.to_bytes(replace(model, written=model.program))


def operation(place, *row):
    """Puts a row in place of an operation of the program."""
    return lambda h: h["program"]["operations"].__setitem__(place, list(row))


COLOURS = {"mean": [0.4, 0.4, 0.4], "range": 255.0}

PROGRAM_FORGERIES = {
    "null": (lambda h: h.update(program=None), "is not a table"),
    "list": (lambda h: h.update(program=[]), "is not a table"),
    "key": (lambda h: h["program"].update(code="x"), "is not a table"),
    "old version": (lambda h: h.update(format_version=2), "format version 3"),
    "multiple 0": (lambda h: h["program"].update(multiple=0), "multiple"),
    "multiple text": (lambda h: h["program"].update(multiple="8"), "multiple"),
    "huge multiple": (lambda h: h["program"].update(multiple=10**9), "multiple"),
    "empty": (lambda h: h["program"].update(operations=[]), "operations"),
    "endless": (lambda h: h["program"].update(operations=[["relu", [0]]] * 20_000), "operations"),
    "no row": (operation(2, 7), "is malformed"),
    "long row": (operation(2, "relu", [2], None, {}, 1), "is malformed"),
    "kind 5": (operation(2, 5, [2]), "is malformed"),
    "unknown kind": (operation(2, "exec", [2]), "'exec': is not an operation .*; update quantsr"),
    "long kind": (operation(2, "e" * 10_000, [2]), "is not an operation"),
    "picture read": (operation(2, "relu", [0]), "reads the picture, which only 'normalize' does"),
    "own value": (operation(2, "relu", [3]), "inputs"),
    "value -1": (operation(2, "relu", [-1]), "inputs"),
    "value true": (operation(2, "relu", [True]), "inputs"),
    "inputs text": (operation(2, "relu", "2"), "inputs"),
    "two inputs": (operation(2, "relu", [2, 2]), "reads 2 values"),
    "no input": (operation(2, "concat", []), "reads 0 values"),
    "name of relu": (operation(3, "relu", [3], "x"), "has a name"),
    "conv without name": (operation(2, "conv", [2]), "has no name"),
    "name list": (operation(2, "conv", [2], ["x"]), "malformed"),
    "long name": (operation(2, "conv", [2], "x" * 1000), "malformed"),
    "no such layer": (operation(2, "conv", [2], "body.7.conv1"), "there is no 'body.7.conv1'"),
    "wrong channels": (operation(2, "conv", [1], "body.0.conv1"), "has a weight of shape"),
    "attributes list": (operation(0, "normalize", [0], None, [1]), "malformed"),
    "attribute missing": (operation(0, "normalize", [0], None, {"range": 1}), "attributes"),
    "attribute more": (operation(3, "relu", [3], None, {"x": 1}), "attributes"),
    "mean nan": (
        operation(0, "normalize", [0], None, {**COLOURS, "mean": [float("nan")] * 3}),
        "mean is out",
    ),
    "range 0": (operation(0, "normalize", [0], None, {**COLOURS, "range": 0}), "range is out"),
    "range huge": (operation(0, "normalize", [0], None, {**COLOURS, "range": 10**400}), "range is out"),
    "unit 7": (operation(5, "shortcut", [2, 5], None, {"unit": 7}), "its units are not 0 to 1"),
    "unit text": (operation(5, "shortcut", [2, 5], None, {"unit": "0"}), "unit is out of range"),
    "unit list": (operation(5, "shortcut", [2, 5], None, {"unit": [0]}), "unit is out of range"),
    "no unit": (operation(5, "shortcut", [2, 5]), "attributes"),
    "shuffle 16": (lambda h: h["program"]["operations"][-3][3].update(factor=16), "multiple of 256"),
    "picture twice": (
        lambda h: h["program"]["operations"].append(
            ["picture", [len(h["program"]["operations"])], None, COLOURS]
        ),
        "only operation 'picture'",
    ),
    "no picture": (lambda h: h["program"]["operations"].pop(), "'picture'"),
    "attention": (
        operation(3, "window_attention", [3], "x", {"heads": 1, "window": 8, "shift": 0, "quantized": 0}),
        "no multiple of its windows",
    ),
    "scale": (lambda h: h.update(scale=3), "scale: 3"),
}


@pytest.mark.parametrize("name", PROGRAM_FORGERIES)
def test_forged_programs_are_refused(tmp_path, written, name):
    change, match = PROGRAM_FORGERIES[name]
    refused(tmp_path, forged(written, change), match)


def test_programs_round_trip(tmp_path, written):
    model = load_bytes(tmp_path, written)
    assert model.header.format_version == 3
    assert model.written == small_model(num_feat=4, num_block=2).program
    packing.save(model, tmp_path / "again.safetensors")
    assert packing.load(tmp_path / "again.safetensors").written == model.written


def test_a_program_needs_no_known_type(tmp_path, written):
    model = load_bytes(tmp_path, forged(written, lambda h: h.update(arch={"type": "NobodyKnows"})))
    assert model.program == model.written


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_change_of_a_program_is_refused_or_can_be_run(tmp_path_factory, written, data):
    """Whatever stands in one place of the program: one line, or a program that folds."""

    def change(header):
        rows = header["program"]["operations"]
        row = data.draw(st.integers(0, len(rows) - 1))
        known = st.sampled_from(sorted(operations.KINDS)) | st.sampled_from([list(r) for r in rows])
        place = data.draw(st.integers(-1, len(rows[row]) - 1))
        value = data.draw(json_values | known | st.integers(0, 20).map(lambda i: [i]))
        if place < 0:
            rows[row] = value
        else:
            rows[row][place] = value

    folder = tmp_path_factory.mktemp("forged")
    file = forged(written, change)
    try:
        model = load_bytes(folder, file)
    except InputError:
        refused(folder, file)
    else:
        fold(model)


def test_forged_values_are_refused(tmp_path, good):
    def put(index, value):
        return lambda tensors: tensors["values"].__setitem__(index, value)

    same = lambda h: None  # noqa: E731
    assert load_bytes(tmp_path, forged(good, same)).header.num_block == 2
    refused(tmp_path, forged(good, same, put(0, np.nan)), "not finite")
    first_step = 2 + 4  # shortcuts of two blocks, bias of conv_first
    refused(tmp_path, forged(good, same, put(first_step, 0)), "step is not positive")
    refused(
        tmp_path,
        forged(good, same, lambda t: t.update(extra=np.zeros(1, np.float32))),
        "not those of its header",
    )
    refused(tmp_path, forged(good, same, lambda t: t.pop("values")), "values")
    refused(tmp_path, forged(good, same, lambda t: t.update(values=t["values"][:-1])), "wrong length")
    refused(
        tmp_path,
        forged(good, same, lambda t: t.update({"conv_last.weight": np.zeros(8, np.float32)})),
        "stream of bytes",
    )


def test_a_header_that_nests_forever_is_refused(tmp_path, good):
    text = "[" * 200_000
    data = serialize({"values": np.zeros(1, np.float32)}, {"quantsr": text, "crc32": "0"})
    refused(tmp_path, data, "not JSON")


def test_rows_that_are_no_rows():
    for raw in (None, [], {}, "x", [None] * 7, [["a"], [1, 1], 4, 4, 1, [1, 1, 1, 1], 0]):
        with pytest.raises(ValueError, match="malformed"):
            LayerRow.from_json(raw)


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    packing.save(small_model(seed=1), path)
    before = path.read_bytes()

    def fail(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(WorkError, match=r"net\.safetensors: cannot be written \(No space left on device\)"):
        packing.save(small_model(seed=2), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]
    monkeypatch.undo()
    (tmp_path / "folder.safetensors").mkdir()
    for name in (
        "absent/net.safetensors",
        "net.safetensors/net.safetensors",
        "folder.safetensors",
        "n" * 300,
    ):
        with pytest.raises(InputError, match=r"cannot be written .*choose another name"):
            packing.save(small_model(), tmp_path / name)
