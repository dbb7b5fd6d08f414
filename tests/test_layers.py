"""The layers of the package: every import, also inside functions, is compared with the table of
docs/explanation/design.md."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "quantsr"

LAZY = {
    ("quantsr.cli", "quantsr.deploy.engines.names"),  # the kernels
    ("quantsr.config.registries", "quantsr.basicsr_compat"),  # torch; a schema is read without it
    ("quantsr.config.from_checkpoint", "quantsr.trained_files.architecture"),  # torch
    ("quantsr.commands.cost", "quantsr.analysis.module_cost"),  # torch
    ("quantsr.data.preparation", "quantsr.basicsr_compat"),  # torch
    ("quantsr.deploy.export", "quantsr.deploy.engines.ncnn"),  # ncnn, which need not be installed
    ("quantsr.pictures.decode", "quantsr.pictures.opencv"),  # OpenCV loads slowly
}
"""The allowed imports inside functions, each with the package that it avoids loading."""


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name == "_version.py":  # written by installations, of no part
            continue
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


def is_for_type_checkers(node: ast.If) -> bool:
    return any(isinstance(n, ast.Name) and n.id == "TYPE_CHECKING" for n in ast.walk(node.test))


@cache
def imports(name: str) -> tuple[tuple[str, bool], ...]:
    """The package's modules that a module imports, and whether inside a function; imports for type
    checkers are ignored."""
    tree = tree_of(name)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    guards = [n for n in ast.walk(tree) if isinstance(n, ast.If) and is_for_type_checkers(n)]
    unseen = {id(node) for guard in guards for node in ast.walk(guard)}
    found = []
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        words = []
        if isinstance(node, ast.Import):
            words = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: a relative import"
            words = [f"{node.module}.{alias.name}" for alias in node.names]
        for word in words:
            while word and word not in MODULES:
                word = word.rpartition(".")[0]
            if word and word != "quantsr":
                found.append((word, id(node) in inside))
    return tuple(found)


def layers() -> list[set[str]]:
    """The layers of docs/explanation/design.md from the lowest to the highest: names of modules and
    packages of quantsr."""
    text = (ROOT / "docs" / "explanation" / "design.md").read_text(encoding="utf-8")
    table = text.split("## Layers")[1].split("\n## ")[0]
    rows = [line.split("|")[2] for line in table.splitlines() if re.match(r"\| \d+ ", line)]
    return [set(re.findall(r"`(\w+)`", row)) for row in rows]


LAYERS = layers()


def layer_of(module: str) -> int:
    part = module.split(".")[1]
    (found,) = (number for number, names in enumerate(LAYERS) if part in names)
    return found


def test_the_table_names_every_part_of_the_package_once() -> None:
    parts = {name.split(".")[1] for name in MODULES if "." in name}
    named = [name for layer in LAYERS for name in layer]
    assert len(LAYERS) > 10
    assert sorted(named) == sorted(parts)


@pytest.mark.parametrize("module", [name for name in MODULES if "." in name])
def test_a_module_imports_only_its_own_layer_and_lower_ones(module: str) -> None:
    own = layer_of(module)
    assert [word for word, _ in imports(module) if layer_of(word) > own] == []


def test_imports_inside_functions_are_those_listed() -> None:
    found = {(name, word) for name in MODULES for word, lazy in imports(name) if lazy}
    assert found == LAZY


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {name: {word for word, _ in imports(name) if word != name} for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for word in graph[name]:
                visit(word, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_no_packages_import_each_other_in_a_circle() -> None:
    """A layer may have several parts; between two of them imports go in one direction only."""
    pairs = {
        (name.split(".")[1], word.split(".")[1])
        for name in MODULES
        if "." in name
        for word, _ in imports(name)
        if name.split(".")[1] != word.split(".")[1]
    }
    assert [pair for pair in sorted(pairs) if pair[::-1] in pairs] == []


@pytest.mark.parametrize("module", [name for name in MODULES if "." in name])
def test_only_commands_print(module: str) -> None:
    if module.startswith("quantsr.commands.") or module == "quantsr.cli":
        return
    nodes = ast.walk(tree_of(module))
    called = [n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    assert "print" not in called
