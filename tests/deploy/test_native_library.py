"""The compiled kernels: which ones are loaded, and which arguments they refuse."""

from __future__ import annotations

import ctypes
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from quantsr.deploy.native import library, structures
from quantsr.deploy.native.engine import NativeEngine
from quantsr.deploy.stand_ins.convolutional import random_model
from tests.deploy.native import HERE, ISAS, needs_kernels, picture
from tests.deploy.quantsr_t import small_model
from tests.deploy.swept import quantized

SIDE = 8

# Which kernels are loaded


@needs_kernels
def test_the_structures_are_those_of_the_compiled_kernels() -> None:
    kernels = library.load()
    assert kernels is not None
    assert library.compiled_layout(kernels) == library.layout()


def test_the_structures_have_the_fields_of_the_header() -> None:
    """A field that fits into padding, and is missing in both tables, would change no offset."""
    header = (library._FOLDER / "network.h").read_text()
    header = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    found = set()
    for body, structure in re.findall(r"typedef struct \{(.*?)\} (\w+);", header, flags=re.DOTALL):
        for declaration in re.split("[,;]", body.strip().removesuffix(";")):
            name = re.search(r"(\w+)(\[\d+\])?$", declaration.strip())
            assert name is not None, declaration
            found.add((structure, name.group(1)))
    expected = {(structure, field) for structure, field in library.layout() if field is not None}
    assert {pair for pair in found if pair[0] != "LayoutEntry"} == expected


@pytest.mark.skipif(ctypes.sizeof(ctypes.c_void_p) != 8, reason="of 64-bit pointers")
def test_every_layout_has_an_abi_number_of_its_own() -> None:
    """After a change of a structure, add one to the number in network.h and library.py, and write
    the new layout's checksum here."""
    assert (library.ABI, crc32(repr(library.layout()).encode())) == (5, 1373917300)


@needs_kernels
@pytest.mark.parametrize("stale", [None, "number", "layout", "neither"])
def test_kernels_of_another_version_are_left_out(stale: str | None, tmp_path, monkeypatch, caplog) -> None:
    shutil.copy(library._FOLDER / library._NAME, tmp_path)
    monkeypatch.setattr(library, "_FOLDER", tmp_path)
    if stale == "number":
        monkeypatch.setattr(library, "ABI", library.ABI + 1)
    elif stale == "layout":
        changed = {**library.layout(), ("Conv", "tile"): (0, 4)}
        monkeypatch.setattr(library, "layout", lambda: changed)
    elif stale == "neither":
        monkeypatch.setattr(library.ctypes, "CDLL", lambda _: SimpleNamespace())
    loaded = library.load.__wrapped__()
    assert (loaded is None) == (stale is not None)
    assert ("compile it anew with: pip install" in caplog.text) == (stale is not None)


# Which arguments are refused


class Call:
    """A call of the kernels that they accept."""

    def __init__(self, engine: NativeEngine, isa: str) -> None:
        kernels = library.load()
        assert kernels is not None
        self.kernels = kernels
        self.engine = engine  # whose arrays the network points into
        self.isa = library.ISAS[isa]
        self.network = engine._program.for_size(SIDE, SIDE)
        self.image = picture(SIDE, SIDE)
        self.out = np.full((SIDE * self.network.factor, SIDE * self.network.factor, 3), 77, np.uint8)
        self.picture = structures.PictureBuffers(
            self.image.ctypes.data, self.out.ctypes.data, SIDE, SIDE, 0, 1
        )
        self.memory = np.zeros(self.needed() + 128, np.uint8)
        self.address = -(-self.memory.ctypes.data // 64) * 64

    def needed(self) -> int:
        return int(self.kernels.quantsr_memory(self.network, self.picture))

    def run(self) -> int:
        return int(self.kernels.quantsr_run(self.network, self.picture, self.isa, self.address))

    @contextmanager
    def changed(self, path: str, value: Any) -> Iterator[None]:
        """With another value in a field; `path` leads to it from here: `network.body[0].low`."""
        *parents, last = (re.fullmatch(r"(\w+)(?:\[(\d+)\])?", part).groups() for part in path.split("."))
        owner: Any = self
        for name, index in parents:
            owner = getattr(owner, name)
            owner = owner if index is None else owner[int(index)]
        whole = (ctypes.c_char * ctypes.sizeof(owner)).from_address(ctypes.addressof(owner))
        before = whole.raw
        name, index = last
        if index is None:
            setattr(owner, name, value)
        else:
            getattr(owner, name)[int(index)] = value
        yield
        whole.raw = before

    def assert_refused(self) -> None:
        self.out[:] = 77
        assert self.run() == 1
        assert (self.out == 77).all()


NULL = None
FLOAT = ctypes.pointer(ctypes.c_float())

PICTURE = {
    "image": [NULL],
    "out": [NULL],
    "height": [0, -3, 2**21, 2**31 - 1],
    "width": [0, -3, 2**21, 2**31 - 1],
    "threads": [0, -1, 65],
    "codes": [(ctypes.c_void_p * 64)()],
}
NETWORK = {
    "channels": [0, -16, 8, 24, 8192],
    "gaps": [-1, 10**6],
    "factor": [0, -1, 8, 9, 2**30],
    "head": [NULL],
    "head_bias": [NULL],
    "mean": [NULL],
    "after_body.kind": [structures.BYTES, structures.CODES, -1, 9],
    "after_body.outputs": [0, 32],
    "after_body.blocks": [0, 2],
    "after_body.weight": [NULL],
    "after_body.scale": [NULL],
    "after_body.bias": [NULL],
    "tail.kind": [structures.BYTES, 9],
    "tail.outputs": [0, -16, 8, 208],
    "tail.blocks": [0, 3],
    "tail.weight": [NULL],
    "tail.scale": [NULL],
    "tail.bias": [NULL],
    "after_body_factor": [NULL],
    "tail_factor": [NULL],
}
CONV = {
    "kind": [structures.WORDS, structures.FLOATS, 9],
    "outputs": [0, 32],
    "blocks": [0, 2],
    "tile": [0, -1, 5, 1000],
    "weight": [NULL],
    "scale": [NULL],
    "bias": [NULL],
}
BLOCK = {
    "input.tau": [NULL],
    "low": [NULL],
    "gaps": [-1, 10**6],
    **{f"conv{i}.{field}": values for i in (1, 2) for field, values in CONV.items()},
}
BLOCKS = {
    "blocks": [0, -1, 10**6],
    "body": [NULL],
    "ring.weight[4]": [NULL],
    "ring.bias[8]": [NULL],
    **{f"body[1].{field}": values for field, values in BLOCK.items()},
}
LINEAR = {
    "weight": [NULL],
    "start": [NULL],
    "scale": [NULL],
    "bias": [NULL],
    "inputs": [0, 4],
    "outputs": [0, 4],
}
LAYER = {
    "norm1.weight": [NULL],
    "norm1.bias": [NULL],
    "norm2.weight": [NULL],
    "norm2.bias": [NULL],
    "bias": [NULL],
    "mix.scale": [NULL],
    "mix.shift": [NULL],
    "gelu.scale": [NULL],
    "gelu.shift": [NULL],
    "probabilities.scale": [FLOAT],  # without shifts
    "shift": [-1, 1, 4, 2**30],
    **{
        f"{name}.{field}": values
        for name in ("q", "k", "v", "proj", "fc1", "fc2")
        for field, values in LINEAR.items()
    },
}
RSTB = {
    "layers": [-1, 10**6],
    "layer": [NULL],
    "factor": [NULL],
    "codes.scale": [FLOAT],  # without shifts
    "closing.kind": [structures.BYTES, structures.FLOATS, 9],
    "closing.outputs": [0, 32],
    "closing.blocks": [2],
    "closing.weight": [NULL],
    **{f"layer[1].{field}": values for field, values in LAYER.items()},
}
SWIN = {
    "dim": [0, -4, 2, 6, 1000],
    "heads": [0, -1, 5],
    "hidden": [0, 2, 10**6],
    "window": [0, -4, 2, 6, 16, 128],
    "groups": [-1, 10**6],
    "group": [NULL],
    "first.weight": [NULL],
    "last.bias": [NULL],
    "mask": [NULL],
    **{f"group[0].{field}": values for field, values in RSTB.items()},
}


ELEMENTWISE = {
    "kind": [-1, 14, 99],
    "left": [-1, structures.REGISTERS],
    "result": [-1, structures.REGISTERS],
    "first": [-16, 8, 16, 2**30],
    "last": [0, 8, 32, -16],
}
CODED = {
    "buffer": [-1, 10**6],
    "channel": [-16, 8, 16, 2**30],
    "mode": [-1, 4],
    "values[0]": [NULL],
    "values[1]": [NULL],
    "low": [NULL],
    "copy": [-1, 10**6],
}
BUFFER = {
    "factor": [-1, 2, 17],
    "channels": [0, 8, 24, -16, 2**20],
    "kind": [structures.WORDS, structures.CODES, -1],
    "slot": [-1, 99],
}
SWEEP_CONV = {
    "source": [-1, 6],
    "input": [-1, 10**6],
    "factor": [-1, 2, 17],
    "channels": [0, 8, 32, -16],
    "shuffle": [0, -1, 2, 17],
    "form": [-1, 3, structures.IN_DOUBLES],
    "size": [0, 2, 7, -3],
    "conv.kind": [structures.WORDS, structures.CODES],
    "conv.outputs": [0, 32],
    "conv.blocks": [0, 2],
    "conv.tile": [0, 3, 5],
    "conv.weight": [NULL],
    "conv.start": [NULL],
    "conv.scale": [NULL],
    "conv.bias": [NULL],
    "operations": [0, -1, 10**6],
    "operation": [NULL],
}
PROGRAM = {
    "buffers": [0, -1, 10**6],
    "slots": [0, -1, 10**6],
    "sweeps": [0, -1, 10**6, 3],
    "buffer": [NULL],
    "sweep": [NULL],
    "sweep[0].factor": [0, 2],
    "sweep[1].inputs": [0, -1, 17],
    "sweep[4].enlarge": [0, 2, 17],
    "sweep[4].index": [ctypes.pointer(ctypes.c_int32(99))],
    "sweep[5].operation[0].buffer": [-1, 10**6],
    "sweep[5].operation[0].right": [-2, structures.REGISTERS],
    "sweep[5].operation[1].values[0]": [NULL],
    **{f"buffer[1].{field}": values for field, values in BUFFER.items()},
    **{f"sweep[2].{field}": values for field, values in SWEEP_CONV.items()},
    **{f"sweep[2].operation[0].{field}": values for field, values in ELEMENTWISE.items()},
    **{f"sweep[1].operation[1].{field}": values for field, values in (ELEMENTWISE | CODED).items()},
}


IN_SWEEPS = {
    "after_body.kind": [structures.WORDS],
    "swin.group[0].sweeps": [-1, 0, 7, 10**6],
    "swin.group[0].result": [-1, 9, 10**6],
    "swin.group[0].codes.scale": [FLOAT],
    "swin.group[0].factor": [NULL],
    "program.buffer[0].slot": [-3, 99],
    "program.buffer[0].factor": [0, 2],
    "program.buffer[0].channels": [32],
    "program.buffer[0].kind": [structures.WORDS],
    "program.slots": [0, 1],
    "program.sweeps": [0, 3],
}


def cases(**groups: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    """Paths and values, each group's fields being those of `call.<group>`."""
    return [
        (
            f"{group.replace('__', '.')}.{field}".replace("swin.", "swin[0].").replace(
                "program.", "program[0]."
            ),
            value,
        )
        for group, fields in groups.items()
        for field, values in fields.items()
        for value in values
    ]


@cache
def blocks_of(isa: str) -> Call:
    model = random_model(num_feat=16, num_block=2, depths=(2,), first_bits=32)
    return Call(NativeEngine(model, 2, isa=isa), isa)


@cache
def sweeps_of(isa: str) -> Call:
    """The picture, three convolutions, the base that is added, the last convolution."""
    model = quantized("Compact of one block")
    return Call(NativeEngine(model, 1, isa=isa), isa)


@cache
def windows_of(isa: str) -> Call:
    return Call(NativeEngine(small_model(num_block=1), 1, isa=isa), isa)


@cache
def swept_windows_of(isa: str) -> Call:
    """Three convolutions close the group, three and the last convolution follow the last norm."""
    model = small_model(num_block=1, head_tail_bits=32, resi_connection="3conv")
    return Call(NativeEngine(model, 1, isa=isa), isa)


def assert_refuses(call: Call, path: str, value: Any) -> None:
    with call.changed(path, value):
        assert call.needed() == 0
        call.assert_refused()
    assert call.needed() > 0
    assert call.run() == 0


@needs_kernels
@pytest.mark.parametrize(("path", "value"), cases(picture=PICTURE, network=NETWORK | BLOCKS))
def test_arguments_out_of_range_are_refused(path: str, value: Any) -> None:
    for isa in {"plain", HERE}:
        assert_refuses(blocks_of(isa), path, value)


@needs_kernels
@pytest.mark.parametrize(
    ("path", "value"),
    [
        *cases(picture=PICTURE, network=NETWORK, network__swin=SWIN),
        ("network.blocks", 1),
        ("picture.height", 6),
        ("picture.width", 5),
        ("network.ring.weight[0]", FLOAT),
    ],
)
def test_arguments_out_of_range_are_refused_with_windows(path: str, value: Any) -> None:
    assert_refuses(windows_of(HERE), path, value)


@needs_kernels
@pytest.mark.parametrize(("path", "value"), cases(picture=PICTURE, network=IN_SWEEPS))
def test_arguments_out_of_range_are_refused_with_windows_and_sweeps(path: str, value: Any) -> None:
    assert_refuses(swept_windows_of("plain"), path, value)


@needs_kernels
def test_maps_of_windows_are_refused_in_other_programs() -> None:
    for slot in (structures.START_MAP, structures.LAYERS_MAP):
        assert_refuses(sweeps_of("plain"), "network.program[0].buffer[0].slot", slot)


@needs_kernels
@pytest.mark.parametrize(
    ("path", "value"),
    [
        *cases(picture=PICTURE, network__program=PROGRAM),
        ("network.factor", 0),
        ("network.factor", 3),
        ("network.factor", 16),
    ],
)
def test_arguments_out_of_range_are_refused_in_programs(path: str, value: Any) -> None:
    assert_refuses(sweeps_of("plain"), path, value)


@needs_kernels
@pytest.mark.parametrize("make", [blocks_of, windows_of, sweeps_of, swept_windows_of])
def test_calls_without_network_picture_memory_or_instruction_set_are_refused(make) -> None:
    call = make(HERE)
    for network, picture_ in ((None, call.picture), (call.network, None)):
        assert call.kernels.quantsr_memory(network, picture_) == 0
        assert call.kernels.quantsr_run(network, picture_, call.isa, call.address) == 1
    for isa, address in (
        (call.isa, None),
        (call.isa, call.address + 4),
        (-1, call.address),
        (0, call.address),
        (33, call.address),
        *((number, call.address) for isa, number in library.ISAS.items() if isa not in ISAS),
    ):
        assert call.kernels.quantsr_run(call.network, call.picture, isa, address) == 1


@needs_kernels
def test_byte_convolutions_without_starts_are_refused() -> None:
    assert_refuses(blocks_of("plain"), "network.body[0].conv1.start", NULL)


@needs_kernels
@pytest.mark.parametrize(
    ("laid_out", "isa"), [("amx", "plain"), ("amx", "avx512_vnni"), ("plain", "amx"), ("avx2", "amx")]
)
def test_blocks_laid_out_for_other_instruction_sets_are_refused(laid_out: str, isa: str) -> None:
    if "amx" not in ISAS:
        pytest.skip("this processor, system or compiler has no AMX")
    call = blocks_of(laid_out)
    assert call.kernels.quantsr_run(call.network, call.picture, library.ISAS[isa], call.address) == 1


@needs_kernels
@pytest.mark.parametrize(
    ("laid_out", "isa"), [("plain", "avx2"), ("avx2", "plain"), ("avx_vnni", "avx2"), ("avx2", "avx_vnni")]
)
@pytest.mark.parametrize("make", [blocks_of, windows_of])
def test_sums_of_other_widths_are_refused(make, laid_out: str, isa: str) -> None:
    """AVX2 adds in 16 bits, others in 32."""
    if not {laid_out, isa} <= set(ISAS):
        pytest.skip(f"{laid_out} or {isa} is missing here")
    call = make(laid_out)
    assert call.kernels.quantsr_run(call.network, call.picture, library.ISAS[laid_out], call.address) == 0
    assert call.kernels.quantsr_run(call.network, call.picture, library.ISAS[isa], call.address) == 1


@needs_kernels
def test_planes_of_amx_are_refused_with_windows() -> None:
    call = windows_of(HERE)
    with ExitStack() as changes:
        for conv in ("after_body", "tail", "swin[0].group[0].closing"):
            changes.enter_context(call.changed(f"network.{conv}.kind", structures.SPLIT))
        call.assert_refused()
