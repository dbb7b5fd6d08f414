"""Option files of tests that take ``network_g`` and ``scale`` from the checkpoint, and optional
sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from quantsr import quant
from quantsr.cli import main
from quantsr.config import Options
from quantsr.config.folders import is_left_out
from quantsr.engine import build
from quantsr.engine.network_file import network_file
from quantsr.trained_files import checkpoint

Load = Callable[..., Options]
Lines = Callable[..., list[str]]
ARCH = {"type": "QuantSR_C", "num_feat": 4, "num_block": 4, "upscale": 2, "nbits_w": 3, "depths": [4, 1]}


@pytest.fixture
def bare(valid: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A valid test file without network and scale, and beside it ``net.pth``, which has both."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = build.build_network("QuantSR_C", {key: value for key, value in ARCH.items() if key != "type"})
    quant.calibrate(net, [torch.rand(1, 3, 8, 8)])
    checkpoint.save(tmp_path / "net.pth", network_file(net, None, iteration=7))
    return {key: value for key, value in valid.items() if key not in ("network_g", "scale", "train")}


def test_network_and_scale_come_from_the_checkpoint(load: Load, bare: dict[str, Any]) -> None:
    options = load(bare, is_train=False, check_paths=True)
    assert options.scale == 2
    assert options.network_g.flat().items() >= ARCH.items()
    assert options.val is not None
    assert options.val.metrics["psnr"].crop_border == 2


def test_network_and_scale_come_from_a_shipped_network(load: Load, bare: dict[str, Any]) -> None:
    options = load(bare, "path.pretrain_network_g=quantsr_c_x4_w4a4", is_train=False, check_paths=True)
    assert (options.scale, options.network_g.kwargs["num_feat"]) == (4, 64)
    assert options.path.pretrain_network_g == "quantsr_c_x4_w4a4"  # not its path on this machine


def test_single_arguments_may_be_given(load: Load, bare: dict[str, Any]) -> None:
    kwargs = load(bare, "network_g.depths=[4, 2]", is_train=False).network_g.kwargs
    assert (kwargs["depths"], kwargs["nbits_w"]) == ([4, 2], 3)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["scale=4"], "network_g.upscale: is 2 but scale is 4; make them equal"),
        (["network_g.nbit_w=3"], "network_g.nbit_w: unknown option of QuantSR_C; did you mean 'nbits_w'?"),
        (["path.pretrain_network_g=absent.pth"], "path.pretrain_network_g: 'absent.pth' does not exist"),
        (["path.pretrain_network_g=quantsr_c_x4"], "path.pretrain_network_g: 'quantsr_c_x4' does not exist"),
        (["path.pretrain_network_g=other.pth"], "path.pretrain_network_g: other.pth: has no description of its network"),
        (["path.pretrain_network_g=bad.pth"], "path.pretrain_network_g: bad.pth: "),
        (["path.pretrain_network_g=bad.safetensors"], "path.pretrain_network_g: bad.safetensors: "),
    ],
)  # fmt: skip
def test_each_problem_is_one_line(
    problems: Lines, bare: dict[str, Any], tmp_path: Path, changes: list[str], line: str
) -> None:
    torch.save({"params": {"weight": torch.zeros(1)}}, tmp_path / "other.pth")
    (tmp_path / "bad.pth").write_bytes(b"not a checkpoint")
    (tmp_path / "bad.safetensors").write_bytes(b"nor a packed network")
    found = problems(bare, *changes, is_train=False, check_paths=True)
    assert len(found) == 1
    assert line in found[0]


def test_training_needs_its_network(problems: Lines, bare: dict[str, Any]) -> None:
    assert any(line.startswith("network_g: missing") for line in problems(bare, is_train=True))


def test_check_loads_the_checkpoint(
    bare: dict[str, Any], load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(bare, is_train=False)  # writes opt.yml
    words = ["check", "-opt", str(tmp_path / "opt.yml"), "--for", "test"]
    assert main(words) == 0
    assert "QuantSR_C x2, 4 blocks of 4 channels" in capsys.readouterr().out
    assert main([*words, "--set", "network_g.nbits_a=2"]) == 2
    assert "net.pth: was trained as another network than network_g (nbits_a 2 instead of 4)" in (
        capsys.readouterr().err
    )
    assert main([*words, "--no-paths", "--set", "network_g.nbits_a=2"]) == 0


def test_an_optional_set_may_be_absent(
    load: Load, problems: Lines, bare: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = {"name": "there", "type": "PairedImageDataset", "dataroot_gt": "hr"}
    (tmp_path / "hr").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "hr" / "a.png")
    bare["datasets"] = {"test_1": there, "test_2": {**there, "name": "away", "dataroot_gt": "away"}}
    found = problems(bare, is_train=False, check_paths=True)
    assert len(found) == 1
    assert found[0].startswith("datasets.test_2.dataroot_gt: folder 'away' does not exist")

    bare["datasets"]["test_2"]["optional"] = True
    datasets = load(bare, is_train=False, check_paths=True).datasets
    assert [is_left_out(dataset) for dataset in datasets.values()] == [False, True]
    assert main(["check", "-opt", str(tmp_path / "opt.yml"), "--for", "test"]) == 0
    assert "away, not there, left out" in capsys.readouterr().out

    bare["datasets"]["test_2"]["dataroot_gt"] = "net.pth"  # exists, but is no folder
    assert len(problems(bare, is_train=False, check_paths=True)) == 1


def test_training_pictures_are_never_optional(problems: Lines, valid: dict[str, Any]) -> None:
    assert problems(valid, "datasets.train.optional=true") == [
        "--set: datasets.train.optional: training cannot go on without its pictures; leave it out"
    ]
