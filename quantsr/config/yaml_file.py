"""Reading YAML as data only: no tag runs code, a key given twice is an error, 1e-4 is a number.

PyYAML parses the text into nodes, and this module turns the nodes into dicts, lists and scalars, so
that none of PyYAML's constructors runs. Errors are one line and name the file and the line.
"""

from __future__ import annotations

import codecs
import difflib
import errno
import io
import os
import re
import select
import stat
from dataclasses import dataclass
from typing import Any

import yaml

from quantsr.errors import InputError
from quantsr.files import open_at_once

_TAG = "tag:yaml.org,2002:"
MAX_LEVELS = 32
"""Limit of the nesting of sections and lists."""
PIPE_SECONDS = 30.0
"""Time that a pipe without a writer, or with one that writes nothing, is waited for."""
_INT = re.compile(r"[-+]?[0-9][0-9_]*")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_FALSE = {"no", "false", "off"}


@dataclass
class Allowance:
    """The amount that may still be read for one option file and the files that it inherits from;
    usual files need about a hundredth of it.

    The same file can be named many times under ``_base_``, and an alias can stand for many values:
    without limits, a few lines could exhaust the memory.
    """

    files: int = 100
    characters: int = 2**20
    nodes: int = 20_000
    """Keys and values."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without dates and without base-60 or octal numbers; ``1e-4`` is a float."""

    def __init__(self, text: str, where: str, nodes: int) -> None:
        super().__init__(text)
        self.where, self.nodes, self.level = where, nodes, 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """PyYAML's method, with limits on levels and nodes."""
        self.nodes -= 1
        self.level += 1
        if self.nodes < 0 or self.level > MAX_LEVELS:
            problem = _TOO_DEEP if self.level > MAX_LEVELS else _TOO_MANY
            raise InputError(f"{self.where}: line {self.peek_event().start_mark.line + 1}: {problem}")
        node = super().compose_node(parent, index)
        self.level -= 1
        assert node is not None
        return node


_TOO_DEEP = f"nested more than {MAX_LEVELS} levels deep; an option file has three or four levels"
_TOO_MANY = (
    f"more than {Allowance.nodes:,} keys and values, files under _base_ and aliases included; write fewer"
)
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, regexp) for tag, regexp in rules if tag.removeprefix(_TAG) not in ("timestamp", "int", "float")
    ]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in (("int", _INT), ("float", _FLOAT)):
    _Loader.add_implicit_resolver(_TAG + _tag, re.compile(f"(?:{_pattern.pattern})$"), list("-+.0123456789"))


def read_yaml(path: str, allowance: Allowance | None = None) -> dict[str, Any]:
    """Read an option file into plain dicts, lists and scalars. Keys are text, as written.

    Args:
        path: the file.
        allowance: for this and further files; the amount that is read is subtracted from it.

    Raises:
        InputError: the file cannot be read, is not YAML, holds no keys, or exceeds the allowance.
    """
    allowance = allowance or Allowance()
    allowance.files -= 1
    if allowance.files < 0:
        raise InputError(f"{path}: is one of more than {Allowance.files} files under _base_; name fewer")
    try:
        text = _read_text(path, allowance.characters + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file{_neighbour(path)}") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; give an option file (.yml)") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not UTF-8 text; give an option file (.yml)") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    allowance.characters -= len(text)
    if allowance.characters < 0:
        limit = f"{Allowance.characters:,} characters, files under _base_ included"
        raise InputError(f"{path}: more than {limit}; give an option file (.yml)")
    value = parse_yaml(text, path, allowance)
    if not isinstance(value, dict):
        what = "is empty" if value is None else "holds no keys"
        raise InputError(f"{path}: {what}; an option file has lines like 'scale: 4'")
    return value


def _read_text(path: str, characters: int) -> str:
    """The first characters of a text file, or of a pipe, such as the shell's ``<(...)``.

    Raises:
        OSError: it cannot be read, or nothing is written to the pipe for `PIPE_SECONDS`.
        UnicodeDecodeError: it is no UTF-8 text.
    """
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True)
    text: list[str] = []
    with open(path, "rb", buffering=0, opener=open_at_once) as file:
        is_pipe = stat.S_ISFIFO(os.fstat(file.fileno()).st_mode)
        if not is_pipe and hasattr(os, "set_blocking"):
            os.set_blocking(file.fileno(), True)
        while characters > 0:
            if is_pipe and not select.select([file], [], [], PIPE_SECONDS)[0]:
                raise OSError(errno.ETIMEDOUT, f"nothing was written to this pipe for {PIPE_SECONDS:g} s")
            content = file.read(1 << 16)
            if content is None:  # another reader was faster
                continue
            text.append(decoder.decode(content, final=not content)[:characters])
            characters -= len(text[-1])
            if not content:
                break
    return "".join(text)


def parse_yaml(text: str, where: str, allowance: Allowance | None = None) -> Any:
    """Parse YAML text; ``where`` names it in errors; for ``allowance`` see `read_yaml`.

    Raises:
        InputError: ``WHERE: line N: problem; remedy``.
    """
    allowance = allowance or Allowance()
    try:
        loader = _Loader(text, where, allowance.nodes)
        node = loader.get_single_node()
        return None if node is None else _Plain(where, allowance).value(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        problem = ", ".join(filter(None, (error.context, error.problem))) or "not YAML"
        raise InputError(f"{where}: {line}{problem}; correct the YAML") from None
    except yaml.YAMLError as error:
        raise InputError(f"{where}: {str(error).splitlines()[0]}; correct the YAML") from None


class _Plain:
    """Turns nodes into plain values."""

    def __init__(self, where: str, allowance: Allowance) -> None:
        self.where = where
        self.allowance = allowance

    def fail(self, node: yaml.Node, message: str) -> InputError:
        return InputError(f"{self.where}: line {node.start_mark.line + 1}: {message}")

    def value(self, node: yaml.Node, parents: tuple[yaml.Node, ...]) -> Any:
        self.allowance.nodes -= 1
        if self.allowance.nodes < 0:
            raise self.fail(node, _TOO_MANY)
        if any(node is parent for parent in parents):
            raise self.fail(node, "an alias that contains itself; remove it")
        if len(parents) >= MAX_LEVELS:
            raise self.fail(node, _TOO_DEEP)
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self.mapping(node, (*parents, node))
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.value(child, (*parents, node)) for child in node.value]
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        raise self.fail(node, f"tag {_tag_name(node.tag)} is not allowed; write plain values")

    def mapping(self, node: yaml.MappingNode, parents: tuple[yaml.Node, ...]) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.fail(key_node, "a key must be a word; quote it if it is meant as text")
            if key_node.tag == _TAG + "merge":
                value = self.value(value_node, parents)
                for source in value if isinstance(value, list) else [value]:
                    if not isinstance(source, dict):
                        raise self.fail(value_node, "'<<' takes a section or a list of sections")
                    for key, entry in source.items():
                        merged.setdefault(key, entry)
            elif key_node.value in own:
                raise self.fail(key_node, f"key {key_node.value!r} is given twice; remove one")
            else:
                own[key_node.value] = self.value(value_node, parents)
        return {**merged, **own}

    def scalar(self, node: yaml.ScalarNode) -> Any:
        tag, text = node.tag.removeprefix(_TAG), node.value
        if tag == "str":
            return text
        if tag == "null":
            return None
        if tag == "bool" and text.lower() in _FALSE | {"yes", "true", "on"}:
            return text.lower() not in _FALSE
        try:
            if tag == "int":
                return int(text.replace("_", ""))
            if tag == "float":
                return float(text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan").lower())
        except ValueError:
            pass
        if tag in ("bool", "int", "float"):
            raise self.fail(node, f"{text!r} is no {tag}; correct the value or remove the tag")
        raise self.fail(node, f"tag {_tag_name(node.tag)} is not allowed; write plain values")


def _tag_name(tag: str) -> str:
    return tag.replace(_TAG, "!!") if tag.startswith(_TAG) else tag


def _neighbour(path: str) -> str:
    """A file of a similar name in the same folder, as a remedy."""
    folder = os.path.dirname(path)
    try:
        names = os.listdir(folder or os.curdir)
    except OSError:
        return f"; there is no folder {folder!r} either" if folder else ""
    close = difflib.get_close_matches(os.path.basename(path), names, n=1)
    return f"; did you mean {os.path.join(folder, close[0])!r}?" if close else "; check the name"
