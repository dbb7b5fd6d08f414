"""Commands, arguments, scripts, option files, keys and links on the pages exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from quantsr import cli
from quantsr.commands.upscale import DEFAULT_MODEL
from tests.pages import DEFAULTS, PAGES, ROOT, commands, keep_registrations, quantsr_command, snippets

TYPED = [
    pytest.param(words, id=f"{path.relative_to(ROOT)}: {' '.join(words)}")
    for path in PAGES
    for snippet in snippets(path.read_text(encoding="utf-8"))
    if snippet.language == "sh"
    for words in commands(snippet.code)
]


@pytest.fixture(scope="module")
def own_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages show."""
    folder = tmp_path_factory.mktemp("own")
    for path in PAGES:
        for snippet in snippets(path.read_text(encoding="utf-8")):
            if snippet.file:
                (folder / snippet.file).write_text(snippet.code, encoding="utf-8")
    return folder


def test_the_network_of_the_page_upscales(own_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from quantsr.archs.constructors import build_network
    from quantsr.discovery import import_named

    keep_registrations(monkeypatch)
    monkeypatch.chdir(own_files)
    import_named("own_arch.py")
    net = build_network("ThreeConvs", {"num_feat": 4, "upscale": 3})
    assert net(torch.zeros(1, 3, 5, 7)).shape == (1, 3, 15, 21)


@pytest.mark.parametrize("words", [param for param in TYPED if quantsr_command(param.values[0])])
def test_every_documented_command_is_parsed(
    words: list[str], own_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "--import" in words:
        keep_registrations(monkeypatch)
        monkeypatch.chdir(own_files)
    found = quantsr_command(words)
    assert found is not None
    name, rest = found
    parser = cli.command_parser(name)
    parser.exit_on_error = False
    args = parser.parse_args(rest)

    option_file = getattr(args, "opt", None)
    if option_file is not None and (ROOT / option_file).is_file():
        from quantsr.config import load_options
        from quantsr.config.compare import load_comparison
        from quantsr.config.queue import load_queue

        overrides = rest[rest.index("--set") + 1 :] if "--set" in rest else []
        changes = [word for word in overrides if re.match(r"[a-z_0-9.]+=", word)]
        trained = "path.pretrain_network_g="  # by an earlier command of the page
        changes = [trained + DEFAULT_MODEL if word.startswith(trained) else word for word in changes]
        if name == "compare":
            load_comparison(str(ROOT / option_file), changes, check_paths=False)
            return
        if name == "queue":
            load_queue(str(ROOT / option_file))
            return
        load_options(ROOT / option_file, changes, is_train="/train/" in option_file, check_paths=False)


@pytest.mark.parametrize("words", TYPED)
def test_every_documented_file_of_the_checkout_exists(words: list[str]) -> None:
    for word in words:
        if re.match(r"(options|scripts|docs|tests|benchmarks)/\S*\w\.\w+$", word) or word in DEFAULTS:
            assert (ROOT / word).exists(), word


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_inside_the_checkout_exists(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def entries(nav: list[object]) -> Iterator[str]:
    """The pages of a navigation of MkDocs."""
    for entry in nav:
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, dict):
            for value in entry.values():
                yield from entries(value if isinstance(value, list) else [value])


def test_the_navigation_of_the_site_has_every_page_but_the_notebook() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = list(entries(config["nav"]))
    docs = [path.relative_to(ROOT / "docs").as_posix() for path in PAGES if ROOT / "docs" in path.parents]
    assert len(listed) == len(set(listed))
    assert set(listed) == {path for path in docs if not path.startswith("notebook/")}


def test_the_reference_of_the_command_line_is_that_of_argparse() -> None:
    from tests.scripts import load_script

    page = (ROOT / "docs" / "reference" / "command_line.md").read_text(encoding="utf-8")
    made = load_script("command_line_page").page().rstrip("\n") + "\n"
    assert page == made, "make it again: python scripts/command_line_page.py docs/reference/command_line.md"


def test_the_reference_of_operations_has_every_kind() -> None:
    from quantsr.deploy.operations import KINDS

    page = (ROOT / "docs" / "reference" / "operations.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(KINDS)
