"""References in option files: ``${a.b}`` in a value stands for the value of the key ``a.b``.

The notation and its meaning are OmegaConf's: keys are given from the top, references are replaced
after all files and changes of the command line are merged, may stand inside one another
(``${_vars_.crop.${scale}}``), and a value that is one whole reference keeps its type.
"""

from __future__ import annotations

import os
import re
from typing import Any

from quantsr.config.folders import path_keys
from quantsr.config.problems import KeyPath, Problems, did_you_mean
from quantsr.config.yaml_file import MAX_LEVELS, Allowance

VARIABLES = "_vars_"
"""The section for values that are only referred to; no option itself."""

_TOKEN = re.compile(r"(\\\$\{|\$\{|\})")
_ENVIRONMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class _Unresolved(Exception):
    """A reference without a value; the problem is noted."""


class References:
    """The values of merged options with their references replaced.

    Args:
        options: in the layout of an option file, without nulls. They are not changed here; keys
            that are added to them later can be referred to.
        problems: receives the references that stand for no value.
    """

    def __init__(self, options: dict[str, Any], problems: Problems) -> None:
        self._options = options
        self._problems = problems
        self._values: dict[KeyPath, Any] = {}
        self._characters = Allowance.characters
        self._failed = False
        self._paths = path_keys(options)

    def options(self) -> dict[str, Any]:
        """All options except `VARIABLES`.

        Raises:
            OptionsError: a reference is to an unknown key, to a section or, directly or not, to
                itself; further problems would follow from it.
        """
        found = self._tree({k: value for k, value in self._options.items() if k != VARIABLES}, ())
        self._raise_if_failed()
        return found

    def under(self, key: str) -> Any:
        """The value or section under a key at the top, None where it is absent; raises as
        `options` does."""
        found = self._tree(self._options.get(key), (key,))
        self._raise_if_failed()
        return found

    def _raise_if_failed(self) -> None:
        """Problems other than references are left to the checks that follow, which add theirs."""
        if self._failed:
            self._problems.raise_if_any()

    def _tree(self, value: Any, key: KeyPath) -> Any:
        if isinstance(value, dict):
            return {name: self._tree(entry, (*key, name)) for name, entry in value.items()}
        try:
            return self._value(value, key, ())
        except _Unresolved:
            return value

    def _value(self, value: Any, key: KeyPath, chain: tuple[KeyPath, ...]) -> Any:
        """The value of a key; ``chain`` has the keys whose references lead to it."""
        if key in self._values:
            return self._values[key]
        if key in chain:
            circle = (*chain[chain.index(key) :], key)
            raise self._fail(
                chain[0], f"refers to itself ({' -> '.join(map('.'.join, circle))}); write one value out"
            )
        if len(chain) >= MAX_LEVELS:
            raise self._fail(
                chain[0], f"leads through more than {MAX_LEVELS} references; write the value out"
            )
        self._values[key] = found = self._replaced(value, (*chain, key))
        return found

    def _replaced(self, value: Any, chain: tuple[KeyPath, ...]) -> Any:
        if isinstance(value, list):
            return [self._replaced(entry, chain) for entry in value]
        if isinstance(value, dict):
            return {name: self._replaced(entry, chain) for name, entry in value.items()}
        if not isinstance(value, str) or "${" not in value:
            return value
        open_parts: list[list[Any]] = [[]]  # of the text, then of each reference not yet closed
        for token in filter(None, _TOKEN.split(value)):
            if token == "${":
                open_parts.append([])
            elif token == "}" and len(open_parts) > 1:
                name = self._joined(open_parts.pop(), chain)
                open_parts[-1].append(self._referred(str(name).strip(), chain))
            else:
                open_parts[-1].append("${" if token == r"\${" else token)
        if len(open_parts) > 1:
            raise self._fail(
                chain[-1], f"{value!r} has '${{' without '}}'; for the characters themselves write '\\${{'"
            )
        return self._joined(open_parts[0], chain)

    def _joined(self, parts: list[Any], chain: tuple[KeyPath, ...]) -> Any:
        """A single part as it is, several as one text."""
        if len(parts) == 1:
            return parts[0]
        for part in parts:
            if isinstance(part, list):
                raise self._fail(chain[-1], "a list is referred to within a text; give single values there")
        return "".join(str(part).lower() if isinstance(part, bool) else str(part) for part in parts)

    def _referred(self, name: str, chain: tuple[KeyPath, ...]) -> Any:
        """The value of the key ``name``, or the reference itself where it is an environment
        variable in a path, which `expand_paths` replaces."""
        key = tuple(name.split("."))
        section: Any = self._options
        for depth, word in enumerate(key):
            if not isinstance(section, dict) or word not in section:
                if self._is_environment(name, chain[-1]):
                    return f"${{{name}}}"
                raise self._fail(chain[-1], f"${{{name}}}: {_no_key(section, key[:depth], word)}")
            section = section[word]
        if isinstance(section, dict):
            raise self._fail(
                chain[-1], f"${{{name}}} is a section; name one of its keys: {', '.join(section) or '(none)'}"
            )
        value = self._value(section, key, chain)
        self._characters -= len(str(value))
        if self._characters < 0:
            limit = f"{Allowance.characters:,} characters"
            raise self._fail(chain[-1], f"references stand for more than {limit} in all; use fewer")
        return value

    def _is_environment(self, name: str, key: KeyPath) -> bool:
        """Whether a name that is no key is left for `expand_paths`: set in the environment, or in
        capitals as its variables are."""
        return (
            key in self._paths
            and _ENVIRONMENT.fullmatch(name) is not None
            and (name in os.environ or name.isupper())
        )

    def _fail(self, key: KeyPath, problem: str) -> _Unresolved:
        self._failed = True
        self._problems.add(key, problem)
        return _Unresolved()


def _no_key(section: Any, parents: KeyPath, word: str) -> str:
    """What is wrong with a reference to the key ``word`` below ``parents``."""
    if not isinstance(section, dict):
        return f"{'.'.join(parents)} is no section; check the reference"
    where = f"{'.'.join(parents)} has" if parents else "there is"
    return f"{where} no key {word!r}; {did_you_mean(word, section)}"
