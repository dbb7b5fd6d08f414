"""Damaged packed files: a network that upscales, or one line."""

from __future__ import annotations

import json
import os
import random
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from quantsr.deploy.native.engine import NativeEngine
from quantsr.deploy.packed import packing
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.stand_ins.convolutional import random_model
from quantsr.deploy.stand_ins.transformer import random_model as random_model_t
from quantsr.deploy.upscale.upscaler import Upscaler
from quantsr.errors import InputError
from tests.deploy.mutations import mutated
from tests.deploy.native import ISAS
from tests.deploy.odd_programs import ODD
from tests.deploy.programs import residual, swin
from tests.stress.conftest import Budget
from tests.stress.damage import change_entry, flip_bytes

pytestmark = pytest.mark.stress

ENGINES_TRIED = os.environ.get("QUANTSR_STRESS_ENGINES", "native native native onnxruntime torch").split()
SMALL_T = {"embed_dim": 12, "num_heads": 2, "window_size": 4, "num_block": 2, "layers_per_block": 2}


def small_model(rng: random.Random) -> PackedModel:
    """A QuantSR-C of random sizes, which the native engine runs."""
    return random_model(
        num_feat=rng.choice((16, 16, 32, 48)),
        num_block=rng.choice((1, 2, 4)),
        scale=rng.choice((2, 3, 4)),
        bits_w=rng.choice((2, 3, 4)),
        bits_a=rng.choice((2, 3, 4)),
        first_bits=32,
        head_tail_bits=rng.choice((8, 8, 16)),
        upsampler=rng.choice(("pixelshuffle", "pixelshuffledirect")),
    )


def small_model_t(rng: random.Random) -> PackedModel:
    """A QuantSR-T of random bits and scale."""
    bits = {"bits_w": rng.choice((2, 4, 8)), "bits_a": rng.choice((2, 4, 8))}
    return random_model_t(scale=rng.choice((2, 3, 4)), **bits, **SMALL_T)


NETWORKS: dict[str, Callable[[random.Random], PackedModel]] = {
    "quantsr_c": small_model,
    "quantsr_t": small_model_t,
    "residual": lambda rng: residual(),
    "swin": lambda rng: swin(shifts=(0, 4)),
    **{make.__name__: lambda rng, make=make: make() for make in ODD},
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


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
def test_damaged_packed_files(
    budget: Budget, tmp_path: Path, make: Callable[[random.Random], PackedModel]
) -> None:
    """A file that is taken also runs, on the native engine, where sizes that do not fit would be
    memory errors."""
    whole, bad = tmp_path / "whole.safetensors", tmp_path / "bad.safetensors"
    pixels = np.random.default_rng(budget.seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    ran: Counter[str] = Counter()
    errors = []
    for number in budget.rounds():
        if number % 20 == 0:
            packing.save(make(budget.rng), whole)
            content = whole.read_bytes()
            if ISAS:
                Upscaler(whole, engine="native")  # which runs it where it is not damaged
        height, width = budget.rng.choice(((1, 1), (1, 40), (40, 1), (9, 11), (33, 17)))
        picture = pixels[:height, :width]
        bad.write_bytes(rewritten(content, budget))
        try:
            upscaler = Upscaler(
                bad, engine=budget.rng.choice(ENGINES_TRIED), threads=budget.rng.choice((1, 1, 3))
            )
            found = upscaler(picture)
        except InputError as error:
            errors.append(str(error))
            continue
        assert found.shape == (height * upscaler.scale, width * upscaler.scale, 3)
        ran[upscaler.engine] += 1
        if upscaler.engine == "native":
            engine = NativeEngine(packing.load(bad), upscaler.depth, threads=2, isa=budget.rng.choice(ISAS))
            engine.run(picture[None])
    # names in a header may have any characters; the command line shows them as escapes
    assert not [line for line in errors if not line.startswith((f"{bad}: ", "engine "))]
    print(f"{len(errors)} refused, ran: {dict(ran)}")
