"""Random damage to checkpoints, packed files and option files, by a given random generator."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import torch

ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    2.5,
    float("nan"),
    10**30,
    "",
    "x",
    [],
    [None],
    ["a", 1],
    {},
    {"a": {}},
    {5: 6},
    b"bytes",
    1j,
    torch.zeros(0),
    torch.zeros(2, 3),
    torch.zeros(2, dtype=torch.int64),
    torch.zeros(3, dtype=torch.complex64),
    torch.ones(2, 2).to_sparse(),
    torch.full((3,), float("nan")),
    torch.zeros(1).expand(10**12),
]
"""Values of wrong types or unusual sizes."""

NAMES: list[Any] = [
    "",
    "x",
    "params",
    "quantsr",
    "module.",
    "body.0.conv1.weight",
    5,
    None,
    ("a",),
    "body.99999999999.x",
]


def flip_bytes(content: bytes, rng: random.Random) -> bytes:
    """The bytes truncated, or with some of them changed, replaced, added or removed."""
    data = bytearray(content)
    kind = rng.randrange(4)
    if kind == 0 or not data:
        return bytes(data[: rng.randrange(len(data) + 1)])
    place = rng.randrange(len(data))
    if kind == 1:
        for _ in range(rng.choice((1, 3, 50))):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 2:
        data[place : place + rng.randrange(64)] = rng.randbytes(rng.randrange(64))
    else:
        head = min(len(data), 400)
        data[rng.randrange(head)] = rng.randrange(256)
    return bytes(data)


def change_entry(value: Any, rng: random.Random) -> Any:
    """A copy of nested dicts and lists in which one entry is replaced by an odd value, renamed,
    removed or added."""
    value = copy.copy(value)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    if not keys:
        return rng.choice(ODD)
    key = rng.choice(keys)
    inner = value[key]
    if isinstance(inner, (dict, list)) and inner and rng.random() < 0.75:
        value[key] = change_entry(inner, rng)
        return value
    kind = rng.randrange(4)
    if kind == 0:
        del value[key]
    elif kind == 1 and isinstance(value, dict):
        value[rng.choice(NAMES)] = value.pop(key)
    elif kind == 2 and isinstance(value, dict):
        value[rng.choice(NAMES)] = rng.choice(ODD)
    elif isinstance(inner, torch.Tensor) and inner.layout == torch.strided and inner.numel() < 10**6:
        value[key] = rng.choice(
            [inner.flatten(), inner.double(), inner.bool(), inner * float("nan"), inner * 0]
        )
    else:
        value[key] = rng.choice(ODD)
    return value


def change_several_entries(content: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """`change_entry` once to three times; the result is always a dict."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        found = change_entry(content, rng)
        content = found if isinstance(found, dict) else content
    return content


def damaged_checkpoint(whole: Path, target: Path, rng: random.Random) -> None:
    """Write a damaged copy of the checkpoint ``whole``: with damaged bytes, or changed entries."""
    if rng.random() < 0.3:
        target.write_bytes(flip_bytes(whole.read_bytes(), rng))
        return
    content = torch.load(whole, weights_only=True)
    torch.save(change_several_entries(content, rng), target)
