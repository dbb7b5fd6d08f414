"""Binding a network section to the constructor that it will call, before anything is built."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from quantsr.config import registries
from quantsr.config.problems import Problems, did_you_mean
from quantsr.config.translate import show

_BITS = (*range(2, 9), 32)
_COUNTS = ("num_in_ch", "num_out_ch", "num_feat", "num_block", "embed_dim", "layers_per_block", "window_size")


def check_network(key: str, section: Any, scale: Any, problems: Problems) -> dict[str, Any] | None:
    """Check ``type`` and keyword arguments of a network section against its constructor.

    Args:
        key: ``"network_g"`` or ``"network_teacher"``.
        section: the section as read, ``type`` and arguments side by side.
        scale: the upscaling factor of the run, where it is known.
        problems: receives unknown, missing and mistyped arguments, bits that do not exist, depths that are too large.

    Returns:
        Every argument the constructor will see, defaults included; None where the network is unknown.
    """
    if not isinstance(section, dict) or not isinstance(section.get("type"), str):
        return None  # the schema has said so
    known = registries.networks()
    name = section["type"]
    if name not in known:
        problems.add((key, "type"), f"no network {name!r} is registered; {did_you_mean(name, known)}")
        return None
    accepted = registries.parameters(known[name])
    given = {word: value for word, value in section.items() if word != "type"}
    for word in given:
        if word not in accepted:
            problems.add((key, word), f"unknown option of {name}; {did_you_mean(word, accepted)}")
    for word, parameter in accepted.items():
        if parameter.default is parameter.empty and word not in given:
            problems.add((key, word), f"missing; {name} needs it")
    hints = _hints(known[name])
    sound = {
        w: v
        for w, v in given.items()
        if w in accepted and _check_type(key, w, v, accepted[w], hints, problems)
    }
    defaults = {w: p.default for w, p in accepted.items() if p.default is not p.empty and w not in given}
    _check_values(key, sound, problems)
    bound = {**defaults, **sound}
    _check_depths(key, bound, problems)
    if isinstance(scale, int) and isinstance(bound.get("upscale"), int) and bound["upscale"] != scale:
        written = "is" if "upscale" in given else "is by default"
        problems.add((key, "upscale"), f"{written} {bound['upscale']} but scale is {scale}; make them equal")
    return bound


def network_depths(bound: dict[str, Any]) -> list[int] | None:
    """The depths (number of blocks) that a network is made for, deepest first; None where it has one depth only."""
    blocks = depth_units(bound)
    if "depths" not in bound or blocks is None:
        return None
    depths = bound["depths"]
    if depths is None:
        from quantsr.archs.depth import default_depths  # imports torch

        return list(default_depths(blocks))
    return [depths] if isinstance(depths, int) else list(depths)


def depth_units(bound: dict[str, Any]) -> int | None:
    """How many units (blocks, or with ``dqa_unit: layer`` their layers) depths count; None where that is unknown."""
    counts = [bound.get("num_block"), bound.get("layers_per_block", 1)]
    if not all(isinstance(count, int) for count in counts):
        return None
    return counts[0] * (counts[1] if bound.get("dqa_unit") == "layer" else 1)


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target.__init__ if isinstance(target, type) else target)  # type: ignore[misc]
    except (NameError, TypeError, AttributeError):
        return {}  # hints that name types only known to a type checker


def _check_type(
    key: str, word: str, value: Any, parameter: inspect.Parameter, hints: dict[str, Any], problems: Problems
) -> bool:
    """Whether the value fits the parameter's type hint, or the type of its default where it has none."""
    wanted = hints.get(word, _type_of(parameter.default))
    if wanted is Any:
        return True
    try:
        # As JSON: there a list may stand for a tuple and 1 for 1.0, but neither "1" nor true for a number.
        TypeAdapter(wanted).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        reason = error.errors(include_url=False)[0]["msg"]
        reason = reason[:1].lower() + reason[1:]
        if wanted in (int, float, bool, str):
            reason = f"must be {_WORDS[wanted]}"
        problems.add((key, word), f"{reason}, got {show(value)}")
        return False
    except Exception:  # a hint pydantic has no schema for, e.g. a class of torch: the constructor decides
        return True
    return True


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def _type_of(default: Any) -> Any:
    if isinstance(default, bool):
        return bool
    if isinstance(default, (int, float)):
        return float if isinstance(default, float) else int | float
    if isinstance(default, str):
        return str
    if isinstance(default, (tuple, list)) and default:
        return list[int | float] if all(isinstance(entry, (int, float)) for entry in default) else list[Any]
    return Any


def _check_values(key: str, given: dict[str, Any], problems: Problems) -> None:
    for word, value in given.items():
        if word.startswith("nbits") and value not in _BITS:
            problems.add((key, word), f"bits must be 2..8, or 32 for float, got {show(value)}")
        elif word in _COUNTS and not (isinstance(value, int) and value > 0):
            problems.add((key, word), f"must be a whole number > 0, got {show(value)}")
        elif word == "quantizer" and isinstance(value, str):
            known = registries.quantizers()
            if value not in known:
                problems.add(
                    (key, word), f"no quantizer {value!r} is registered; {did_you_mean(value, known)}"
                )


def _check_depths(key: str, bound: dict[str, Any], problems: Problems) -> None:
    depths, blocks = network_depths(bound), depth_units(bound)
    if depths is None or blocks is None or bound["depths"] is None:
        return
    check_depth_list((key, "depths"), depths, blocks, problems)
    if blocks not in depths:
        problems.add((key, "depths"), f"{show(depths)} lacks the full depth {blocks}; add it")


def check_depth_list(key: Sequence[str], depths: Sequence[Any], blocks: int, problems: Problems) -> None:
    """Each depth must be a number of blocks that the network has, and there once."""
    for depth in depths:
        if not isinstance(depth, int) or not 1 <= depth <= blocks:
            problems.add(
                key, f"depth {show(depth)} is not within 1..{blocks}, the blocks of the network; correct it"
            )
    if any(depths.count(depth) > 1 for depth in depths):
        problems.add(key, f"the same depth twice in {show(depths)}; remove one")
