"""Markdown pages: lines of bounded length, and names of files, modules and tests that exist."""

from __future__ import annotations

import pkgutil
import re
import shutil
import subprocess
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
if (
    shutil.which("git") is None
    or subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True).returncode
):
    pytest.skip("needs a git checkout, whose tracked pages it reads", allow_module_level=True)

LONGEST = 100
GENERATED = ("docs/reference/options.md", "docs/reference/command_line.md")
"""Generated pages. The measured part of a model card, between two comments, is generated too."""
EXAMPLES = (
    "quantsr/quant/max_abs_quantizer.py",
    "own_arch.py",
    "own_loss.py",
    "own_metric.py",
    "own.yml",
    "options.yml",
)
"""Files that the reader of a page writes, or that a run writes."""
CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\s*(?:[-*] )?!?\[[^\]]*\]\([^)\s]*\)[.,:;]?")


def tracked(pattern: str) -> list[str]:
    """Paths under version control, relative to the checkout."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", pattern], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


PAGES = tracked("*.md")


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(text: str) -> Iterator[tuple[int, str]]:
    """Numbers and lines of prose, without code blocks, tables, headings, comments, generated parts
    and lines of a single link."""
    fenced = generated = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("<!--"):
            generated = "measured:" in line
        elif line.lstrip().startswith("```"):
            fenced = not fenced
        elif not (fenced or generated or line.startswith(("    ", "|", "#")) or LINK.fullmatch(line)):
            yield number, line


def expand(pattern: str) -> list[str]:
    """Brace expansion as in a shell: ``x{2,4}.yml`` gives x2.yml and x4.yml."""
    parts = re.split(r"\{([^}]*)\}", pattern)
    choices = [part.split(",") if i % 2 else [part] for i, part in enumerate(parts)]
    return ["".join(words) for words in product(*choices)]


def test_prose_leaves_out_code_tables_headings_and_generated_parts() -> None:
    page = "# h\none\n\n    code\n| table |\n```sh\ncode\n```\n[link](https://x)\n"
    page += "<!-- measured: by -->\nmade\n<!-- end of what is measured -->\n- two\n  and [three](x)\n"
    assert [line for _, line in prose(page)] == ["one", "", "- two", "  and [three](x)"]
    assert expand("a{1,2}_{b,c}") == ["a1_b", "a1_c", "a2_b", "a2_c"]


@pytest.mark.parametrize("page", [page for page in PAGES if page not in GENERATED])
def test_lines_of_prose_are_at_most_100_characters_long(page: str) -> None:
    """In every tracked Markdown file, except tables, code blocks, headings, comments, lines of a
    single link, and generated text: ``GENERATED`` and the measured parts of model cards."""
    long = [f"{page}:{number}: {line}" for number, line in prose(read(page)) if len(line) > LONGEST]
    assert not long, "\n".join(long)


@pytest.mark.parametrize("page", PAGES)
def test_every_file_of_the_project_that_a_page_names_exists(page: str) -> None:
    """Paths in code that begin with a folder of the checkout or of the package; those with NAME in
    capitals are placeholders."""
    packages = {path.name for path in (ROOT / "quantsr").iterdir() if path.is_dir()}
    folders = {"quantsr", "benchmarks", "docs", "options", "scripts", "tests"} | packages
    for code in CODE.findall(read(page)):
        if not re.fullmatch(r"[\w.*{},/]+/[\w.*{},/]*", code) or code.split("/")[0] not in folders:
            continue
        if "NAME" in code or code in EXAMPLES or code.endswith((".pth", ".json", ".csv")):
            continue
        for name in expand(code):
            assert any(any(top.glob(name)) for top in (ROOT, ROOT / "quantsr")), f"{page}: {name}"
    files = {Path(name).name for suffix in ("py", "yml", "c", "h", "inc") for name in tracked(f"*.{suffix}")}
    for name in re.findall(r"`([A-Za-z]\w*\.(?:py|yml|c|h|inc))`", read(page)):
        assert name in files or name in EXAMPLES, f"{page}: {name}"


@pytest.mark.parametrize("page", PAGES)
def test_every_module_and_test_that_a_page_names_exists(page: str) -> None:
    text = read(page)
    for name in re.findall(r"\bquantsr(?:\.[A-Za-z]\w*)+", text):
        pkgutil.resolve_name(name)
    for name in re.findall(r"-m benchmarks\.(\w+)", text):
        assert (ROOT / "benchmarks" / f"{name}.py").is_file(), f"{page}: {name}"
    tests = {path: (ROOT / path).read_text(encoding="utf-8") for path in tracked("tests/*.py")}
    for name in re.findall(r"`(test_[a-z]\w+)`", text if page not in GENERATED else ""):
        assert any(f"def {name}(" in source for source in tests.values()), f"{page}: {name}"


def test_the_options_page_names_exactly_the_existing_option_files() -> None:
    files = [name.removeprefix("options/") for name in tracked("options/*.yml")]
    rows = [line for line in read("options/README.md").splitlines() if line.startswith("|")]
    named = [name for row in rows for code in CODE.findall(row.split("|")[1]) for name in expand(code)]
    patterns = [f"{name}*" if name.endswith("/") else name for name in named]
    assert len(patterns) > 15
    for pattern in patterns:
        assert any(fnmatch(file, pattern) for file in files), f"options/README.md: no file {pattern}"
    for file in files:
        assert any(fnmatch(file, pattern) for pattern in patterns), f"options/README.md: {file} is missing"
