"""Damaged packed files: a network that upscales, or one line."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantsr.deploy.packed import packing
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.stand_ins.convolutional import random_model
from quantsr.deploy.stand_ins.transformer import random_model as random_model_t
from quantsr.deploy.upscale.upscaler import Upscaler
from quantsr.errors import InputError
from tests.deploy.mutations import mutated
from tests.deploy.odd_programs import ODD
from tests.deploy.programs import residual, swin
from tests.stress.conftest import Budget
from tests.stress.damage import change_entry, flip_bytes

pytestmark = pytest.mark.stress

ENGINES_TRIED = ("native", "native", "native", "onnxruntime", "torch")
NETWORKS: dict[str, Callable[..., PackedModel]] = {
    "quantsr_c": random_model,
    "quantsr_t": random_model_t,
    "residual": residual,
    "swin": lambda: swin(shifts=(0, 4)),
    **{make.__name__: make for make in ODD},
}
"""The first two without a program in their file."""


def rewritten(content: bytes, budget: Budget) -> bytes:
    """A damaged form of a packed file: of its bytes, or of its header with a checksum that is right
    again."""
    rng = budget.rng
    if rng.random() < 0.4:
        return flip_bytes(content, rng)
    (size,) = struct.unpack("<Q", content[:8])
    table, data = json.loads(content[8 : 8 + size]), bytearray(content[8 + size :])
    metadata = table["__metadata__"]
    header = json.loads(metadata["quantsr"])
    kind = rng.randrange(3)
    if "program" in header and rng.random() < 0.5:
        header["program"] = mutated(header["program"], rng)
    if kind < 2:
        for _ in range(rng.choice((1, 2))):
            found = change_entry(header, rng)
            header = found if isinstance(found, dict) else header
    if kind > 0:
        for _ in range(rng.choice((1, 20))):
            data[rng.randrange(len(data))] = rng.randrange(256)
    text = json.dumps(header, default=str, skipkeys=True)
    entries = {name: entry for name, entry in table.items() if name != "__metadata__"}
    parts = {n: np.frombuffer(bytes(data[slice(*e["data_offsets"])]), np.uint8) for n, e in entries.items()}
    metadata.update(quantsr=text, crc32=packing._checksum(text, parts))
    head = json.dumps({"__metadata__": metadata, **entries}).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + bytes(data)


@pytest.mark.parametrize("name", NETWORKS)
def test_damaged_packed_files(budget: Budget, tmp_path: Path, name: str) -> None:
    """A file that is taken also runs, on the native engine, where sizes that do not fit would be
    memory errors."""
    whole, bad = tmp_path / "whole.safetensors", tmp_path / "bad.safetensors"
    packing.save(NETWORKS[name](), whole)
    content = whole.read_bytes()
    picture = np.random.default_rng(budget.seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    ran, errors = 0, []
    for _ in budget.rounds():
        bad.write_bytes(rewritten(content, budget))
        try:
            upscaler = Upscaler(bad, engine=budget.rng.choice(ENGINES_TRIED), threads=1)
            found = upscaler(picture)
        except InputError as error:
            errors.append(str(error))
            continue
        assert found.shape == (9 * upscaler.scale, 11 * upscaler.scale, 3)
        ran += 1
    assert not any("\n" in line for line in errors)
    print(f"{len(errors)} refused, {ran} ran")
