"""Packed networks: one `.safetensors` file whose size is what the bits promise. Loading runs no
code and imports no torch.

Layout (docs/reference/formats.md has the tables):
- one tensor `<layer>.weight` per layer: U8 stream of codes (`bitstream.py`), or F16/F32 values of a
  layer that stays in float
- one tensor `values`, F32: the shortcuts, then layer by layer bias, weight step, input step, tau,
  equalization, then what a transformer has
- one tensor `halves`, F16: float tensors of 16 bits, where there are any
- metadata `quantsr`: the header as JSON, layers as rows; `crc32`: checksum of that JSON and of all
  tensor bytes
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as serialize

from quantsr.deploy import operations
from quantsr.deploy.packed import bitstream
from quantsr.deploy.packed.header import check_structure, header_from_json, header_to_json
from quantsr.deploy.packed.model import (
    ConvLayer,
    Float,
    FloatTensor,
    LinearLayer,
    Operand,
    PackedLayer,
    PackedModel,
)
from quantsr.deploy.packed.rows import FloatRow, LayerRow, OperandRow, Rows
from quantsr.errors import InputError
from quantsr.files import write_atomically
from quantsr.trained_files import packed_header

_FLOAT_TYPES: dict[int, Any] = {16: np.dtype(np.float16), 32: np.dtype(np.float32)}
_VALUES, _HALVES = "values", "halves"
_STEP_DECADES = 18


def save(model: PackedModel, path: str | Path, coding: str | None = None) -> int:
    """Write `model` to `path`, whole or not at all, and return the size in bytes.

    `coding` forces "dense" or "huffman" codes; by default each layer takes the smaller. Raises
    InputError where `path` has no folder or no possible name, WorkError where writing fails.
    """
    data = to_bytes(model, coding)
    write_atomically(path, data)
    return len(data)


def to_bytes(model: PackedModel, coding: str | None = None) -> bytes:
    """The file's content; see `save`."""
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    rows = Rows.of(model)
    for row, layer in zip(rows.layers, model.layers.values(), strict=True):
        if layer.bits_w <= 8:
            row.coding, data = bitstream.encode(
                layer.weight.astype(np.int8).reshape(-1), layer.bits_w, coding
            )
            stored: np.ndarray[Any, Any] = np.frombuffer(data, np.uint8)
        else:
            stored = layer.weight.astype(_FLOAT_TYPES[layer.bits_w])
        tensors[f"{layer.name}.weight"] = stored
    tensors[_VALUES] = _flat(model.float_parts(), np.float32)
    if halves := model.half_parts():
        tensors[_HALVES] = _flat(halves, np.float16)
    text = header_to_json(replace(model.header, format_version=model.format_version), rows, model.written)
    metadata = {"format": "quantsr", "quantsr": text, "crc32": _checksum(text, tensors)}
    return bytes(serialize(tensors, metadata))


def load(path: str | Path) -> PackedModel:
    """Read a packed network. Raises InputError, one line, for a file that is missing, foreign,
    truncated, corrupt or of a newer version."""
    path = Path(path)
    with packed_header.opened(path) as file:
        metadata = file.metadata() or {}
        raw = packed_header.parse(path, metadata)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    try:
        if metadata.get("crc32") != _checksum(metadata["quantsr"], tensors):
            raise ValueError("its checksum is wrong")
        header, rows, program = header_from_json(raw)
        values, halves = _float_streams(rows, tensors, header.num_block)
        shortcuts = tuple(float(s) for s in next(values))
        if not all(map(operations.is_factor, shortcuts)):
            raise ValueError("a shortcut of its header is too small or too large")
        model = PackedModel(
            replace(header, shortcuts=shortcuts),
            {row.name: _layer(row, tensors[f"{row.name}.weight"], values) for row in rows.layers},
            {row.name: _operand(row, values) for row in rows.operands},
            {row.name: _float_tensor(row, values, halves) for row in rows.floats},
            program,
        )
        check_structure(model)
    except operations.UnknownKindError as error:
        raise InputError(f"{path}: {error}; update quantsr") from error
    except ValueError as error:
        raise InputError(f"{path}: is corrupt: {error}; fetch or export it again") from error
    return model


def counted_bytes(model: PackedModel) -> int:
    """Sum of the bits of all weights, plus 4 bytes per float value (bias, steps, taus, shortcuts,
    LayerNorms; tables of 16 bits take 2): what the dense file should take."""
    bits = sum(layer.weight.size * layer.bits_w for layer in model.layers.values())
    floats = sum(part.size for part in model.float_parts())
    halves = sum(part.size for part in model.half_parts())
    return -(-bits // 8) + 4 * floats + 2 * halves


def _flat(parts: list[Float], dtype: Any) -> np.ndarray[Any, Any]:
    return np.concatenate([part.astype(dtype).reshape(-1) for part in parts])


def _float_streams(
    rows: Rows, tensors: dict[str, Any], num_block: int
) -> tuple[Iterator[Float], Iterator[Float]]:
    """The parts of `values`, the shortcuts first, and those of `halves`."""
    expected = {_VALUES, *(f"{row.name}.weight" for row in rows.layers)}
    if rows.half_counts:
        expected.add(_HALVES)
    if wrong := sorted(expected ^ set(tensors)):
        raise ValueError(f"its tensors are not those of its header: {wrong[0]}")
    counts = {_VALUES: [num_block, *rows.float_counts], _HALVES: rows.half_counts}
    types = {_VALUES: np.float32, _HALVES: np.float16}
    streams = []
    for name, lengths in counts.items():
        stored = tensors.get(name, np.zeros(0, types[name]))
        if stored.dtype != types[name] or stored.ndim != 1:
            raise ValueError(f"tensor '{name}' is of the wrong type")
        if not np.isfinite(stored).all():
            raise ValueError("it holds values that are not finite")
        if len(stored) != sum(lengths):
            raise ValueError(f"tensor '{name}' has the wrong length")
        streams.append(iter(np.split(stored.astype(np.float32), np.cumsum(lengths))[:-1]))
    return streams[0], streams[1]


def _layer(row: LayerRow, stored: np.ndarray[Any, Any], values: Iterator[Float]) -> PackedLayer:
    bias, weight_step, act_step, tau, equal = (
        part.copy() if part.size else None for part in (next(values) for _ in range(5))
    )
    assert bias is not None
    if row.bits_w <= 8:
        if stored.dtype != np.uint8 or stored.ndim != 1:
            raise ValueError(f"{row.name}.weight is not a stream of bytes")
        try:
            weight: np.ndarray[Any, Any] = bitstream.decode(
                stored.tobytes(), row.bits_w, row.count, row.coding
            )
        except ValueError as error:
            raise ValueError(f"{row.name}.weight: {error}") from error
        weight = weight.reshape(row.shape)
    else:
        if (
            stored.dtype != _FLOAT_TYPES[row.bits_w]
            or list(stored.shape) != row.shape
            or not np.isfinite(stored).all()
        ):
            raise ValueError(f"{row.name}.weight is not finite float values of shape {row.shape}")
        weight = stored.astype(np.float32)
    for step in (weight_step, act_step, equal):
        if step is not None:
            _check_step(step, row.name)
    kind = ConvLayer if len(row.shape) == 4 else LinearLayer
    return kind(
        name=row.name,
        weight=weight,
        bias=bias,
        bits_w=row.bits_w,
        weight_step=weight_step,
        bits_a=row.bits_a,
        act_step=act_step,
        act_tau=tau,
        act_signed=row.signed,
        act_zero_point=None if row.zero_point is None else np.array(row.zero_point, np.int32),
        act_equal=equal,
        act_limits=row.limits,
        groups=row.groups,
    )


def _check_step(step: Float, name: str) -> None:
    """Raises ValueError unless products of any two steps are normal float32 numbers."""
    if not (step > 0).all():
        raise ValueError(f"{name}: a step is not positive")
    if not (np.abs(np.log10(step)) <= _STEP_DECADES).all():
        raise ValueError(f"{name}: a step is not between 1e-{_STEP_DECADES} and 1e{_STEP_DECADES}")


def _operand(row: OperandRow, values: Iterator[Float]) -> Operand:
    step, tau = next(values).copy(), next(values).copy()
    _check_step(step, row.name)
    tau_or_none = tau if row.has_tau else None
    return Operand(row.name, row.channels, row.bits, step, tau_or_none, row.signed, row.limits)


def _float_tensor(row: FloatRow, values: Iterator[Float], halves: Iterator[Float]) -> FloatTensor:
    source = values if row.bits == 32 else halves
    return FloatTensor(row.name, next(source).reshape(row.shape).copy(), row.bits)


def _checksum(text: str, tensors: dict[str, Any]) -> str:
    crc = zlib.crc32(text.encode())
    for name in sorted(tensors):
        crc = zlib.crc32(np.ascontiguousarray(tensors[name]).tobytes(), zlib.crc32(name.encode(), crc))
    return f"{crc:08x}"
