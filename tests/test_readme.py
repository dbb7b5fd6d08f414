"""Commands, arguments, scripts, option files, keys and links in the documents exist."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np
import pytest

from quantsr import cli

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    path
    for pages in (
        "*.md",
        "datasets/*.md",
        "experiments/*.md",
        "docs/**/*.md",
        "options/*.md",
        "quantsr/zoo/*.md",
    )
    for path in sorted(ROOT.glob(pages))
]
DEFAULTS = {
    "train.sh": ("train", "options/train/QuantSR_C/mini_w4a4_x2.yml"),
    "test.sh": ("test", "options/test/shipped.yml"),
}


def commands(document: Path) -> Iterator[list[str]]:
    """The words of every command in the document's shell blocks, without leading variables."""
    text = document.read_text().replace("\\\n", " ")
    fenced = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^    (?:quantsr|sh|python) .*$", text, re.MULTILINE)
    for block in [*fenced, *indented]:
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words = words[1:]
            if words:
                yield words


def quantsr_command(words: list[str]) -> tuple[str, list[str]] | None:
    """The quantsr command that a typed line runs, and its arguments; None for other lines."""
    if words[0] == "quantsr" or words[:3] == ["python", "-m", "quantsr"]:
        rest = words[words.index("quantsr") + 1 :]
        return rest[0], rest[1:]
    if words[0] != "sh" or words[1] not in DEFAULTS:
        return None
    (name, default), rest = DEFAULTS[words[1]], words[2:]
    if rest and rest[0].endswith(".yml"):
        rest = ["-opt", *rest]
    return name, rest if "-opt" in rest else ["-opt", default, *rest]


TYPED = [
    pytest.param(words, id=f"{path.relative_to(ROOT)}: {' '.join(words)}")
    for path in DOCUMENTS
    for words in commands(path)
]


@pytest.fixture(scope="module")
def own_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the file that docs/how-to/add_a_network.md shows."""
    folder = tmp_path_factory.mktemp("own")
    page = (ROOT / "docs" / "how-to" / "add_a_network.md").read_text(encoding="utf-8")
    (folder / "own_arch.py").write_text(page.split("```python\n")[1].split("```")[0], encoding="utf-8")
    return folder


def test_the_network_of_the_page_upscales(own_files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    from quantsr.archs.constructors import build_network
    from quantsr.discovery import import_named

    monkeypatch.chdir(own_files)
    import_named("own_arch.py")
    net = build_network("ThreeConvs", {"num_feat": 4, "upscale": 3})
    assert net(torch.zeros(1, 3, 5, 7)).shape == (1, 3, 15, 21)


@pytest.mark.parametrize("words", [param for param in TYPED if quantsr_command(param.values[0])])
def test_every_documented_command_is_parsed(
    words: list[str], own_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "--import" in words:
        monkeypatch.chdir(own_files)
    found = quantsr_command(words)
    assert found is not None
    name, rest = found
    module = import_module(cli.COMMANDS[name].module)
    parser = argparse.ArgumentParser(exit_on_error=False)
    module.add_arguments(parser)
    args = parser.parse_args(rest)

    option_file = getattr(args, "opt", None)
    if option_file is not None and (ROOT / option_file).is_file():
        from quantsr.config import load_options
        from quantsr.config.compare import load_comparison
        from quantsr.config.queue import load_queue

        overrides = rest[rest.index("--set") + 1 :] if "--set" in rest else []
        changes = [word for word in overrides if re.match(r"[a-z_0-9.]+=", word)]
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


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_inside_the_checkout_exists(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), target


# The cheap commands of README are run, on a network of two iterations and small pictures.

SMALLER = [
    "network_g.num_feat=8",
    "train.total_iter=2",
    "train.calibration_batches=1",
    "train.compile=false",
    "datasets.train.gt_size=32",
    "datasets.train.batch_size_per_gpu=1",
    "val.val_freq=2",
]
RUN = ("export", "bench", "cost", "upscale", "report", "compare")
"""Commands in this order, as the others need the file of export. Of compare only --dry-run."""


def readme_commands() -> list[list[str]]:
    """The fast commands of quantsr in the README, as they are typed, and ``quantsr check``."""
    readme = ROOT / "README.md"
    found = [words for words in commands(readme) if words[0] == "quantsr" and words[1] in RUN]
    found = [words for words in found if words[1] != "compare" or "--dry-run" in words]
    checks = [shlex.split(line) for line in re.findall(r"`(quantsr check [^`]+)`", readme.read_text())]
    return checks + sorted(found, key=lambda words: RUN.index(words[1]))


@pytest.fixture(scope="module")
def readme_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the README's commands name: options, data sets, pictures, the
    default run and its test."""
    from quantsr.quant import get_compile, set_compile

    folder = tmp_path_factory.mktemp("readme")
    noise = np.random.default_rng(0).random((5, 6, 3), np.float32) * 255
    picture = cv2.resize(noise, (48, 40), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)
    sets = [f"benchmark/{name}/{side}" for name in ("Set5", "B100") for side in ("HR", "LR_bicubic/X2")]
    for place in ("photos", *(f"datasets/{name}" for name in (*sets, "photos/BSDS400"))):
        (folder / place).mkdir(parents=True)
        low = place.endswith("X2")
        cv2.imwrite(str(folder / place / f"a{'x2' * low}.png"), picture[:20, :24] if low else picture)
    cv2.imwrite(str(folder / "photo.jpg"), picture)
    (folder / "options").symlink_to(ROOT / "options")
    (folder / "datasets" / "mini").symlink_to(ROOT / "datasets" / "mini")
    val = ["datasets.val.type=PairedImageDataset", "datasets.val.dataroot_gt=photos"]
    test = [change.replace("datasets.val", "datasets.test_1") for change in val]
    mode = get_compile()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, changes in (("train", [*SMALLER, *val]), ("test", [SMALLER[0], *test])):
            file = f"options/{name}/QuantSR_C/mini_w4a4_x2.yml"
            assert cli.main([name, "-opt", file, "--set", *changes]) == 0
    set_compile(mode)
    shutil.copy(folder / "experiments/mini_w4a4_x2/models/net_g_latest.pth", folder)
    return folder


@pytest.mark.integration
def test_the_cheap_commands_of_the_readme_run(
    readme_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the forms shown there; each writes or prints the expected output."""
    monkeypatch.chdir(readme_folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(readme_folder / "cache"))
    typed = readme_commands()
    assert {words[1] for words in typed} == {*RUN, "check"}
    for words in typed:
        # FILE stands for any option file; several upscale lines give the same names
        words = ["options/train/QuantSR_C/mini_w4a4_x2.yml" if word == "FILE" else word for word in words]
        capsys.readouterr()
        shutil.rmtree("out", ignore_errors=True)
        assert cli.main(words[1:]) == 0, shlex.join(words)
        output_text = capsys.readouterr().out
        if "-o" in words:
            output = Path(words[words.index("-o") + 1])
            assert any(output.iterdir()) if output.is_dir() else output.stat().st_size > 0
        if words[1] == "export":
            assert "| skimage | network" in output_text
        elif words[1] in ("bench", "cost"):
            assert "| depth |" in output_text
        elif words[1] == "compare":
            assert "runs, " in output_text
        elif words[1] == "upscale":
            scale = 4 if "--model" not in words else 2
            first = next(Path(words[words.index("-o") + 1]).iterdir())
            assert cv2.imread(str(first)).shape == (40 * scale, 48 * scale, 3)


@pytest.mark.integration
def test_the_python_of_the_readme_runs(readme_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.chdir(readme_folder)
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    names = {"picture": cv2.imread("photo.jpg")[..., ::-1].copy()}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102 - the project's own document
    assert names["large"].shape == (160, 192, 3)
    assert names["large"].dtype == np.uint8
    assert names["net"](torch.rand(1, 3, 6, 7)).shape == (1, 3, 12, 14)
