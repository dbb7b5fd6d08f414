"""The values that a key takes, in words: for error messages and the documentation page."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from quantsr.config.base import Section

_PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a section"}
_BOUNDS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))


def section_of(annotation: Any) -> tuple[type[Section] | None, bool]:
    """The section class an annotation holds, and whether it holds many by name (``dict[str,
    Section]``)."""
    if _is_section(annotation):
        return annotation, False
    if get_origin(annotation) is dict:
        return section_of(get_args(annotation)[1])[0], True
    for member in _members(annotation):
        if member is not annotation and section_of(member)[0] is not None:
            return section_of(member)
    return None, False


def _is_section(annotation: Any) -> bool:
    # In Python 3.10 list[float] is an instance of type, on which issubclass() raises.
    return get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, Section)


def takes(field: FieldInfo) -> str:
    """The values of a field: ``"a whole number > 0"``, ``"'mean' or 'sum'"``, ``"a list of 2
    numbers"``."""
    if isinstance(field.json_schema_extra, dict) and "takes" in field.json_schema_extra:
        return str(field.json_schema_extra["takes"])  # words that the field itself declares
    words = " or ".join(dict.fromkeys(_words(field.annotation))) or "empty"
    if words == "text" and any(getattr(rule, "min_length", None) for rule in field.metadata):
        words = "text that is not empty"
    for rule in field.metadata:
        for attribute, sign in _BOUNDS:
            bound = getattr(rule, attribute, None)
            if bound is not None:
                words += f"{' and' if sign in words or '>' in words else ''} {sign} {bound:g}"
    lengths = {
        name: getattr(rule, name, None) for rule in field.metadata for name in ("min_length", "max_length")
    }
    if lengths.get("max_length") and "list of" in words:
        words = words.replace("list of", f"list of {lengths['max_length']}")
    return words


def _words(annotation: Any) -> Iterator[str]:
    for member in _members(annotation):
        if member in _PLAIN:
            yield _PLAIN[member]
        elif get_origin(member) is Literal:
            yield from (
                choice if isinstance(choice, str) else str(choice).lower() for choice in get_args(member)
            )
        elif get_origin(member) is list:
            inner = " or ".join(_words(get_args(member)[0]))
            yield f"a list of {inner.removeprefix('a ').replace('number', 'numbers').replace('text', 'texts')}"
        elif get_origin(member) is dict or _is_section(member):
            yield "a section (keys below it)"


def _members(annotation: Any) -> Iterator[Any]:
    """The members of a union, without None and without annotations around them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    elif annotation not in (None, type(None)):
        yield annotation
