"""Layers of options: files inherited under ``_base_``, the file itself, then overrides of the
command line."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Sequence
from typing import Any

from quantsr.config.moved import Moved, moved
from quantsr.config.problems import KeyPath, Problems
from quantsr.config.yaml_file import MAX_LEVELS, Allowance, parse_yaml, read_yaml
from quantsr.errors import InputError

log = logging.getLogger(__name__)

BASE_KEY = "_base_"


def read_layers(path: str) -> tuple[dict[str, Any], dict[KeyPath, str]]:
    """Read an option file on top of the files it names under ``_base_`` (one or a list; relative to
    the file itself).

    Sections are merged key by key, anything else is replaced, and ``key: null`` removes an
    inherited key.

    Returns:
        The merged options, and for each key the file its value comes from.

    Raises:
        InputError: a file cannot be read, or inherits from itself, or together they exceed
            `Allowance`.
    """
    origins: dict[KeyPath, str] = {}
    return _read(path, (), origins, Allowance()), origins


def _read(
    path: str, children: tuple[str, ...], origins: dict[KeyPath, str], allowance: Allowance
) -> dict[str, Any]:
    chain = (*children, path)
    if any(os.path.realpath(path) == os.path.realpath(child) for child in children):
        raise InputError(f"{children[-1]}: {BASE_KEY}: {' -> '.join(chain)} runs in a circle; remove one")
    former = moved(path, allowance)
    if former is not None:
        return _read_moved(path, former, chain, origins, allowance)
    own = read_yaml(path, allowance)
    bases = own.pop(BASE_KEY, None)
    bases = [bases] if isinstance(bases, str) else bases or []
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise InputError(f"{path}: {BASE_KEY}: must be a file name or a list of them, got {bases!r}")
    options: dict[str, Any] = {}
    for base in bases:
        base_path = os.path.normpath(os.path.join(os.path.dirname(path), os.path.expanduser(base)))
        if not os.path.exists(base_path) and moved(base_path, allowance) is None:
            raise InputError(
                f"{path}: {BASE_KEY}: {base_path!r} does not exist; paths are relative to this file"
            )
        merge(options, _read(base_path, chain, origins, allowance))
    merge(options, own)
    note_origins(own, path, origins)
    return options


def _read_moved(
    path: str, former: Moved, chain: tuple[str, ...], origins: dict[KeyPath, str], allowance: Allowance
) -> dict[str, Any]:
    """The options of a former file, from the file that has replaced it."""
    log.warning("%s is now: %s", path, former.command)
    options = _read(former.path, chain, origins, allowance)
    problems = Problems(former.listed, origins)
    apply_overrides(options, former.changes, former.listed, ".", problems)
    problems.raise_if_any()
    return options


def merge(target: dict[str, Any], source: dict[str, Any]) -> None:
    """Merge ``source`` into ``target`` in place: sections key by key; null removes a key that is
    there."""
    for key, value in source.items():
        if value is None and key in target:
            del target[key]
        elif isinstance(value, dict) and isinstance(target.get(key), dict):
            merge(target[key], value)
        else:
            target[key] = copy.deepcopy(value)


def note_origins(
    section: dict[str, Any], name: str, origins: dict[KeyPath, str], prefix: KeyPath = ()
) -> None:
    """Note ``name`` as the origin of every key of a section."""
    for key, value in section.items():
        path = (*prefix, key)
        origins[path] = name
        if isinstance(value, dict):
            note_origins(value, name, origins, path)


def apply_overrides(
    options: dict[str, Any], entries: Sequence[str], flag: str, separator: str, problems: Problems
) -> None:
    """Set single keys from the command line, in place; the value is read as YAML.

    Args:
        options: the merged file.
        entries: ``a.b=value`` for ``--set``, ``a:b=value`` for BasicSR's ``--force_yml``.
        flag: the name of the argument, for messages.
        separator: between keys, ``"."`` or ``":"``.
        problems: receives entries that cannot be parsed.
    """
    for entry in entries:
        name, equals, text = entry.partition("=")
        keys = tuple(part.strip() for part in name.split(separator))
        if not equals or not all(keys) or len(keys) > MAX_LEVELS:
            problems.add(
                (),
                f"{flag} {entry!r} is not understood; write {flag} train{separator}total_iter=1000, without spaces around '='",
            )
            continue
        try:
            value = _typed_value(text, f"{flag} {entry}")
        except InputError as error:
            problems.add_line(str(error))
            continue
        _set(options, keys, value, flag, problems)


_NULLS = ("none", "null", "~", "")
_ENDS = {"'": "'", '"': '"', "[": "]", "{": "}"}


def _typed_value(text: str, where: str) -> Any:
    """The value of an argument: YAML, but text is used unchanged, with the parts that YAML would
    drop as a comment.

    Raises:
        InputError: it is not YAML, or more text follows a quoted text, a list or a section.
    """
    text = text.strip()
    if text.lower() in _NULLS:
        return None
    value = parse_yaml(text, where)
    end = _ENDS.get(text[0])
    if end is not None:
        if not text.endswith(end):
            raise InputError(
                f"{where}: more text behind the closing {end}; remove it, or quote the whole value"
            )
        return value
    if isinstance(value, dict) or text.startswith("!"):
        return value
    if value is None or isinstance(value, (str, list)) or "#" in text:
        return text
    return value


def _set(options: dict[str, Any], keys: KeyPath, value: Any, flag: str, problems: Problems) -> None:
    section = options
    for depth, key in enumerate(keys[:-1], start=1):
        if section.get(key) is None:
            section[key] = {}
            problems.origins[keys[:depth]] = flag
        if not isinstance(section[key], dict):
            parent = ".".join(keys[:depth])
            problems.add_line(f"{flag}: {'.'.join(keys)}: {parent} is no section; check the key")
            return
        section = section[key]
    section[keys[-1]] = value
    note_origins({keys[-1]: value}, flag, problems.origins, keys[:-1])


def drop_nulls(value: Any) -> Any:
    """A copy without keys whose value is null ("not given"), so that defaults apply. Lists are
    unchanged."""
    if not isinstance(value, dict):
        return value
    return {key: drop_nulls(entry) for key, entry in value.items() if entry is not None}
