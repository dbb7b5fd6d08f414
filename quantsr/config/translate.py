"""Turning pydantic's errors into one line per key."""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from quantsr.config.base import Section
from quantsr.config.problems import Problems, did_you_mean, show
from quantsr.config.schema import Options
from quantsr.config.wording import section_of, takes


def add_validation_errors(
    error: ValidationError, problems: Problems, schema: type[Section] = Options
) -> None:
    """Note every error of the schema under its dotted key; branches of a union become one
    problem."""
    for item in error.errors(include_url=False):
        key, field, siblings = _locate(item["loc"], schema)
        if item["type"] == "extra_forbidden":
            problems.add(key, f"unknown option; {_suggest(key, siblings, schema)}")
        elif item["type"] == "missing":
            wanted = "it"
            if field is not None:
                what = "this section" if section_of(field.annotation)[0] else takes(field)
                wanted = f"{what} ({_first_clause(field.description)})"
            problems.add(key, f"missing; add {wanted}")
        elif item["type"] == "value_error":
            problems.add(key, item["msg"].removeprefix("Value error, "))
        elif field is not None and key:
            problems.add(
                key, f"must be {takes(field)}, got {show(item['input'])}{_quotes(field, item['input'])}"
            )
        else:
            problems.add(key, f"{item['msg'][:1].lower()}{item['msg'][1:]}, got {show(item['input'])}")


def _locate(
    loc: tuple[str | int, ...], schema: type[Section]
) -> tuple[tuple[str, ...], FieldInfo | None, list[str]]:
    """The key of an error, its field (None for an unknown key) and the keys that could stand there.

    The parts that pydantic appends to the key - a branch of a union, an index of a list - are
    dropped.
    """
    section: type[Section] | None = schema
    key: list[str] = []
    field: FieldInfo | None = None
    siblings: list[str] = []
    parts = list(loc)
    while parts and section is not None:
        part = str(parts.pop(0))
        key.append(part)
        siblings = [name for name in section.model_fields if name not in ("phase", "kwargs")]
        field = section.model_fields.get(part)
        if field is None:
            break
        section, many = section_of(field.annotation)
        if many and parts:
            key.append(str(parts.pop(0)))
    return tuple(key), field, siblings


def _suggest(key: tuple[str, ...], siblings: list[str], schema: type[Section]) -> str:
    """The nearest key of the same section, or the section in which a key of exactly this name
    belongs."""
    nearest = did_you_mean(key[-1], siblings)
    if nearest.startswith("did you mean"):
        return nearest
    for name, field in schema.model_fields.items():
        section, many = section_of(field.annotation)
        if section is not None and not many and key[-1] in section.model_fields and name != key[0]:
            return f"did you mean '{name}.{key[-1]}'?"
    if key[-1] in schema.model_fields:
        return f"did you mean {key[-1]!r} at the top?"
    if len(key) == 1 and "network_g" in siblings:  # whose arguments depend on its type
        nearest += f"; an option of a section is written with it: network_g.{key[0]}"
    return nearest


def _first_clause(text: str | None) -> str:
    return re.split(r"[.;:]", text or "", maxsplit=1)[0]


def _quotes(field: FieldInfo, value: Any) -> str:
    """The remedy where a value lacks quotes, or should have none."""
    wanted = takes(field)
    if isinstance(value, str) and "number" in wanted:
        try:
            float(value)
        except ValueError:
            return ""
        return "; remove the quotes"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return "; put it in quotes" if number and wanted.startswith("text") else ""
