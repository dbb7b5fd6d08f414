"""Commands and Python code of the pages run as they are typed, or say why no test runs them.

Training is shortened to two iterations of a small network, and the pictures are small.
"""

from __future__ import annotations

import ast
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from quantsr import cli
from tests.pages import PAGES, ROOT, Snippet, commands, keep_registrations, quantsr_command, snippets

LANGUAGES = {"sh", "python", "yaml", "text", "cpp"}
NOTEBOOK = ROOT / "docs" / "notebook"
CHECKED = [path for path in PAGES if NOTEBOOK not in path.parents and path.name != "CHANGELOG.md"]

SHORT = [
    "train.total_iter=2",
    "train.calibration_batches=1",
    "train.compile=false",
    "datasets.train.gt_size=32",
    "datasets.train.batch_size_per_gpu=1",
    "val.val_freq=2",
]
SMALL = {"QuantSR_C": ["network_g.num_feat=8"], "QuantSR_T": ["network_g.embed_dim=12"], "own.yml": []}
"""Arguments of the networks of option files whose path has this part."""
SMALL_SETS = ["datasets.val.type=PairedImageDataset", "datasets.val.dataroot_gt=photos"]


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_code(snippet: Snippet) -> bool:
    return snippet.language in ("sh", "python")


def parts(path: Path) -> list[Snippet]:
    return snippets(path.read_text(encoding="utf-8"))


def is_run(snippet: Snippet) -> bool:
    return is_code(snippet) and not snippet.reason and not snippet.file


@pytest.mark.parametrize("path", CHECKED, ids=page_id)
def test_every_block_of_code_is_run_or_says_why_not(path: Path) -> None:
    """Each has a language; Python code compiles; every line of a shell block without a mark is a
    command that the test below runs."""
    for snippet in parts(path):
        assert snippet.language in LANGUAGES, f"name the language of: {snippet.code}"
        if snippet.language == "python":
            ast.parse(snippet.code)
        if snippet.language == "sh" and is_run(snippet):
            for words in commands(snippet.code):
                assert quantsr_command(words), (
                    f"{shlex.join(words)}: no test runs it; put '<!-- not run: REASON -->' before the block"
                )


def test_marks_are_read() -> None:
    fence = "```sh\nquantsr cost\n```\n"
    plain, marked, saved = snippets(f"{fence}\n<!-- not run: slow -->\n{fence}\n<!-- file: a.sh -->\n{fence}")
    assert (plain.reason, plain.file) == ("", "")
    assert marked.reason == "slow"
    assert saved.file == "a.sh"
    assert [is_run(s) for s in (plain, marked, saved)] == [True, False, False]
    (page,) = snippets(f"<!-- not run on this page: needs a GPU -->\n\n{fence}")
    assert page.reason == "needs a GPU"
    (indented,) = snippets("text\n\n    quantsr cost \\\n        -m x\n")
    assert commands(indented.code) == [["quantsr", "cost", "-m", "x"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands name: option files, pictures, a small run, its test and its packed file."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "photos").mkdir()
    noise = np.random.default_rng(0).random((3, 5, 6, 3), np.float32) * 255
    pictures = [
        cv2.resize(n, (120, 96), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8) for n in noise
    ]
    for number, picture in enumerate(pictures):
        cv2.imwrite(str(folder / "photos" / f"{number}.png"), picture)
    for name in ("photo.jpg", "picture.png"):
        cv2.imwrite(str(folder / name), pictures[0][:40, :48])
    (folder / "options").symlink_to(ROOT / "options")
    for place in ("datasets/mini", "experiments/starts"):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).symlink_to(ROOT / place)
    sets = [f"benchmark/{name}/{side}" for name in ("Set5", "B100") for side in ("HR", "LR_bicubic/X2")]
    for place in (f"datasets/{name}" for name in (*sets, "photos/BSDS400")):
        (folder / place).mkdir(parents=True)
        low = place.endswith("X2")
        picture = pictures[0][:20, :24] if low else pictures[0][:40, :48]
        cv2.imwrite(str(folder / place / f"a{'x2' * low}.png"), picture)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for line in (
            "sh train.sh",
            "sh test.sh options/test/QuantSR_C/mini_w4a4_x2.yml",
            "quantsr export -m mini_w4a4_x2 -o net.safetensors --no-parity",
        ):
            run_command(shlex.split(line))
    return folder


def run_command(words: list[str]) -> None:
    """Run one command of a page in this folder and this process; trainings are shortened."""
    found = quantsr_command(words)
    assert found is not None
    name, rest = found
    changes: list[str] = []
    file = rest[rest.index("-opt") + 1] if "-opt" in rest else ""
    small = next((keys for part, keys in SMALL.items() if part in file), [])
    if name == "train":
        changes = [*SHORT, *small, *SMALL_SETS]
    elif name == "test" and file.endswith("own.yml"):
        changes = SMALL_SETS
    elif name == "test":
        changes = [*small, *(key.replace("datasets.val", "datasets.test_1") for key in SMALL_SETS)]
    elif name == "export" and "--no-parity" not in rest:
        rest = [*rest, "--data", "photos"]  # of the parity table
    elif name == "quantize":
        rest = [*rest, "--gt", "photos"]
    rest = [*rest, "--set", *changes] if changes else rest
    assert cli.main([name, *rest]) == 0, shlex.join(words)
    if "-o" in rest:
        output = Path(rest[rest.index("-o") + 1])
        assert any(output.iterdir()) if output.is_dir() else output.stat().st_size > 0, shlex.join(words)


@pytest.fixture
def place(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the folder, for one page."""
    from quantsr.quant import get_compile, set_compile

    keep_registrations(monkeypatch)
    place = tmp_path / "page"
    shutil.copytree(folder, place, symlinks=True)
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    mode = get_compile()
    yield place
    set_compile(mode)


@pytest.mark.integration
@pytest.mark.parametrize("path", [path for path in CHECKED if any(map(is_run, parts(path)))], ids=page_id)
def test_the_code_of_the_page_runs(path: Path, place: Path) -> None:
    """Every command and Python block without a mark, in the order of the page."""
    pytest.importorskip("torch")
    names: dict[str, Any] = {"picture": cv2.imread("photo.jpg")[..., ::-1].copy()}
    for snippet in parts(path):
        if snippet.file:
            (place / snippet.file).write_text(snippet.code, encoding="utf-8")
        elif is_run(snippet) and snippet.language == "sh":
            for words in commands(snippet.code):
                run_command(words)
        elif is_run(snippet):
            exec(compile(snippet.code, page_id(path), "exec"), names)  # noqa: S102 - the project's own pages
