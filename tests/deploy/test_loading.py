"""`quantsr.load` and `quantsr upscale --model`: what a name or a path stands for, and what it never
does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import quantsr
from quantsr import cli
from quantsr.deploy.packed import packing
from quantsr.errors import InputError
from quantsr.trained_files import names
from tests.deploy.conftest import small_model

NAME = names.shipped()[0]
SHIPPED = names.ZOO / f"{NAME}.safetensors"


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_folder_of_its_name_does_not_hide_a_shipped_network() -> None:
    Path(NAME).mkdir()
    assert names.resolve(NAME) == names.find_packed(NAME) == SHIPPED


@pytest.mark.parametrize("folder", ["no/such/dir", ".", "/"])
def test_a_path_that_is_not_there_is_no_shipped_network(folder: str) -> None:
    for find in (names.resolve, names.find_packed):
        with pytest.raises(InputError, match=f"{folder}/{NAME}: no such"):
            find(f"{folder}/{NAME}")


def test_a_run_without_a_checkpoint_is_no_shipped_network() -> None:
    models = Path("experiments", NAME, "models")
    models.mkdir(parents=True)
    for name in (NAME, f"experiments/{NAME}"):
        with pytest.raises(InputError, match=f"experiments/{NAME}: this run has no checkpoint yet"):
            names.resolve(name)
    (models / "net_g_latest.pth").touch()
    for name in (NAME, f"experiments/{NAME}"):
        assert names.resolve(name) == models / "net_g_latest.pth"


@pytest.mark.parametrize("name", ["net.onnx", "net.xml"])
@pytest.mark.parametrize(
    "words",
    [
        ["upscale", "in.png", "-o", "out", "--model"],
        ["bench", "-m"],
        ["cost", "-m"],
        ["export", "-o", "n.onnx", "-m"],
    ],
)
def test_a_graph_for_other_runtimes_is_one_line(
    words: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(name).write_bytes(bytes(64))
    Path("in.png").touch()
    assert cli.main([*words, name]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert f"{name}: is a graph for other runtimes; give the .safetensors file it was made from" in errors[0]


def test_a_graph_that_is_not_there_is_no_file() -> None:
    for find in (names.resolve, names.find_packed):
        with pytest.raises(InputError, match=r"net\.onnx: no such"):
            find("net.onnx")


@pytest.mark.parametrize(
    ("arch", "says"),
    [
        ({"num_feet": 8}, "arch.num_feet: unknown option of QuantSR_C"),
        ({"num_feat": "eight"}, "'eight'|str"),
        ({"num_feat": 12}, "must match"),
        ({"num_block": 3}, "arch.depths: "),
    ],
)
def test_a_header_of_another_network_is_named(arch: dict, says: str, tmp_path: Path) -> None:
    model = small_model()
    header = replace(model.header, arch={**model.header.arch, **arch})
    path = tmp_path / "n.safetensors"
    packing.save(replace(model, header=header), path)
    with pytest.raises(InputError, match=rf"n\.safetensors: its header does not .*({says}).*export it again"):
        quantsr.load(path)
