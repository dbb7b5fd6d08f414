"""What the documentation site adds to MkDocs: links that leave docs/, and the check of the
result."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.pages import ROOT
from tests.scripts import load_script

hooks = load_script("docs_hooks")
check_site = load_script("check_site")


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("how-to/ncnn.md", "[a](../reference/speed.md#training)", "[a](../reference/speed.md#training)"),
        ("how-to/own_data.md", "[a](../../datasets/README.md)", "[a](../project/datasets/README.md)"),
        ("index.md", "![a](images/showcase.png)", "![a](images/showcase.png)"),
        (
            "project/quantsr/zoo/quantsr_c_x4_w4a4.md",
            "[a](../../docs/notebook/trainings.md#on-a-gpu)",
            "[a](../../../notebook/trainings.md#on-a-gpu)",
        ),
        ("project/CONTRIBUTING.md", "[a](README.md)", "[a](../index.md)"),
        ("index.md", "[licence](../LICENSE)", "licence"),
        ("index.md", "[a](https://example.org/b.md)", "[a](https://example.org/b.md)"),
        ("index.md", "[a](nowhere.md)", "[a](nowhere.md)"),
    ],
)
def test_links_of_the_checkout_become_links_of_the_site(page: str, link: str, expected: str) -> None:
    assert hooks.site_links(f"see {link}.", page) == f"see {expected}."


def test_model_cards_and_the_changelog_are_pages_of_the_site() -> None:
    pages = hooks.outside_pages()
    cards = {path.relative_to(ROOT).as_posix() for path in (ROOT / "quantsr" / "zoo").glob("*.md")}
    assert cards | {"CHANGELOG.md", "datasets/README.md", "options/README.md"} <= set(pages)
    assert not any(path.startswith(("docs/", "tests/")) for path in pages)


def test_the_workflow_installs_the_packages_of_the_extra() -> None:
    """By their names, as the extra of the package would install all that upscaling needs."""
    extra = re.search(r"^docs = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert extra is not None
    workflow = (ROOT / ".github" / "workflows" / "docs.yml").read_text()
    (line,) = [line for line in workflow.splitlines() if "pip install" in line]
    assert re.findall(r'"(.+?)"', line) == re.findall(r'"(.+?)"', extra[1])


def site(folder: Path, body: str) -> list[str]:
    """The problems of a site of two pages, the first with this body."""
    (folder / "a.html").write_text(f"<html><body>{body}</body></html>", encoding="utf-8")
    (folder / "b.html").write_text('<h1 id="top">b</h1>', encoding="utf-8")
    return list(check_site.problems(folder))


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('<a href="b.html">b</a> <a href="b.html#top">b</a> <a href="https://example.org">c</a>', None),
        ('<a href="c.html">c</a>', "a.html: no file for c.html"),
        ('<a href="b.html#end">b</a>', "a.html: no element for b.html#end"),
        ('<a href="#end">a</a>', "a.html: no element for #end"),
        ('<img src="c.png">', "a.html: no file for c.png"),
        ('<script src="https://example.org/x.js"></script>', "another host"),
        ('<link rel="stylesheet" href="//example.org/x.css">', "another host"),
        ('<link rel="canonical" href="https://example.org/a.html">', None),
    ],
)
def test_dead_links_and_other_hosts_are_found(tmp_path: Path, body: str, problem: str | None) -> None:
    found = site(tmp_path, body)
    if problem is None:
        assert not found
    else:
        (line,) = found
        assert problem in line


def test_a_style_that_loads_from_another_host_is_found(tmp_path: Path) -> None:
    (tmp_path / "x.css").write_text("@font-face { src: url('https://example.org/f.woff2') }")
    (line,) = site(tmp_path, "text")
    assert line == "x.css: loads https://example.org/f.woff2 from another host"


def test_an_empty_folder_is_no_site(tmp_path: Path) -> None:
    assert "no pages" in next(check_site.problems(tmp_path))
