"""Networks with a trunk and depths, by the commands: trained in two stages, tested, resumed,
exported and run at every depth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import quantsr
from quantsr import cli
from quantsr.archs.constructors import build_network
from quantsr.deploy.engines import reference
from quantsr.deploy.packed import packing
from quantsr.engine.network_file import network_file
from quantsr.trained_files import checkpoint
from tests.archs.test_dqa_trunk import SWIN

MSRRESNET = {
    "type": "MSRResNet",
    "num_in_ch": 3,
    "num_out_ch": 3,
    "num_feat": 8,
    "num_block": 3,
    "upscale": 2,
}
NETWORKS = {
    "MSRResNet": {"type": "Quantized", "network": MSRRESNET, "rules": {"body.*": 4}},
    "RRDBNet": {
        "type": "Quantized",
        "network": {
            **{key: MSRRESNET[key] for key in ("num_in_ch", "num_out_ch", "num_feat", "num_block")},
            "type": "RRDBNet",
            "scale": 2,
            "num_grow_ch": 4,
        },
        "rules": {"body.*": "W4A4"},
    },
    "SwinIR": {
        "type": "Quantized",
        "network": {"type": "SwinIR", **SWIN, "depths": [1, 1, 1], "num_heads": [2, 2, 2]},
        "rules": {"layers.*.attn.*": 4, "layers.*.mlp.*": 4},
    },
}
NET = "experiments/run/models/net_g_latest.pth"
Commands = Callable[..., int]


@pytest.fixture
def commands(make_options: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """A function that runs ``quantsr COMMAND`` on options of a tiny run of the given network with
    depths 3, 2 and 1 in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    options = make_options().dump()
    options["datasets"]["val"] = {"name": "v", "type": "PairedImageDataset", "dataroot_gt": str(pictures)}
    options["val"] = {"val_freq": 4, "metrics": {"psnr": {"type": "calculate_psnr"}}, "pbar": False}
    options["logger"] = {"save_checkpoint_freq": 2, "use_tb_logger": False}
    options["train"] |= {
        "total_iter": 4,
        "compile": False,
        "stage1_fraction": 0.5,
        "depth_weights": [0.5, 0.3, 0.2],
    }

    def run(command: str, network: dict[str, Any], *words: str, **changes: Any) -> int:
        chosen = {**options, **changes, "network_g": {"depths": [3, 2, 1], **network}}
        chosen["train"] = {**options["train"], **changes.get("train", {})}
        Path("run.yml").write_text(yaml.safe_dump(chosen), encoding="utf-8")
        return cli.main([command, "-opt", "run.yml", *words])

    return run


@pytest.mark.parametrize(
    ("kind", "ranking"),
    [("MSRResNet", "shortcut"), ("MSRResNet", "loss"), ("RRDBNet", "shortcut"), ("SwinIR", "loss")],
)
def test_both_stages_are_trained_and_every_depth_tested(
    commands: Commands, kind: str, ranking: str, capsys: Any
) -> None:
    assert commands("train", NETWORKS[kind], train={"ranking": ranking}) == 0
    described = checkpoint.load(NET)["quantsr"]
    assert sorted(described["ranking"]) == [0, 1, 2]
    assert described["depths"] == [3, 2, 1]
    trunk = "layers" if kind == "SwinIR" else "body"
    assert described["arch"]["trunk"] == trunk
    shortcuts = {n: v for n, v in checkpoint.load(NET)["params"].items() if n.endswith(".shortcut")}
    assert list(shortcuts) == [f"{trunk}.{i}.shortcut" for i in range(3)]
    assert any(float(value) != 1 for value in shortcuts.values())
    log = next(Path("experiments/run/log").iterdir()).read_text(encoding="utf-8")
    assert "iteration 2: stage 2, depths [3, 2, 1]; blocks ranked, kept first:" in log
    assert "l_pix_depth1" in log
    capsys.readouterr()
    assert commands("test", NETWORKS[kind], "--set", f"path.pretrain_network_g={NET}") == 0
    output = capsys.readouterr().out
    for depth in (3, 2, 1):
        assert f"{kind} W4A4, depth {depth} " in output
    net = quantsr.load("run")
    with torch.inference_mode():
        pictures = net(torch.rand(1, 3, 8, 8), depth=(3, 2, 1))
    assert [picture.shape[-1] for picture in pictures] == [16] * 3


def test_stage_2_trains_every_depth(commands: Commands) -> None:
    """Its loss at the lowest depth falls, which stage 1 alone does not train."""
    losses = {}
    for fraction in (1.0, 0.0):
        options = {"total_iter": 20, "stage1_fraction": fraction, "optim_g": {"type": "Adam", "lr": 5e-3}}
        assert commands("train", NETWORKS["MSRResNet"], name=f"run{fraction:g}", train=options) == 0
        net = quantsr.load(f"run{fraction:g}")
        if net.ranking is None:
            net.rank_blocks()
        torch.manual_seed(0)
        flat = torch.rand(4, 3, 1, 1).expand(4, 3, 12, 12)
        with torch.inference_mode():
            out = net(flat.contiguous(), depth=1)
        losses[fraction] = float((out - flat[..., :1, :1]).abs().mean())
    assert losses[0.0] < losses[1.0]


def test_resuming_in_stage_2_ends_in_the_same_network(commands: Commands) -> None:
    assert commands("train", NETWORKS["MSRResNet"], train={"total_iter": 6, "stage1_fraction": 0.34}) == 0
    whole = checkpoint.load(NET)
    for path in (
        *Path("experiments/run/training_states").glob("6.state"),
        *Path("experiments").glob("r*/m*/*"),
    ):
        path.unlink()
    words = ("--auto-resume",)
    assert (
        commands("train", NETWORKS["MSRResNet"], *words, train={"total_iter": 6, "stage1_fraction": 0.34})
        == 0
    )
    again = checkpoint.load(NET)
    assert whole["quantsr"]["ranking"] == again["quantsr"]["ranking"]
    for name, value in whole["params"].items():
        assert torch.equal(value, again["params"][name]), name


def test_training_starts_from_the_float_network(commands: Commands, tmp_path: Path) -> None:
    torch.manual_seed(4)
    net = build_network("MSRResNet", {key: v for key, v in MSRRESNET.items() if key != "type"})
    checkpoint.save(tmp_path / "float.pth", network_file(net, None, iteration=0))
    still = {"total_iter": 1, "optim_g": {"type": "Adam", "lr": 1e-12}}
    path = {"fp_pretrain_network_g": "float.pth"}
    assert commands("train", NETWORKS["MSRResNet"], path=path, train=still) == 0
    found = checkpoint.load(NET)["params"]
    for name, value in net.state_dict().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-9)


def test_a_checkpoint_is_exported_and_upscales_at_every_depth(
    commands: Commands, pictures: Path, capsys: Any
) -> None:
    assert commands("train", NETWORKS["MSRResNet"]) == 0
    words = ["--calib", str(pictures), "--no-parity"]
    assert cli.main(["export", "-m", NET, "-o", "net.safetensors", *words]) == 0
    assert cli.main(["export", "-m", NET, "-o", "net2.safetensors", "--depth", "2", *words]) == 0
    assert cli.main(["export", "-m", NET, "-o", "net1.onnx", "--depth", "1", *words]) == 0
    model = packing.load("net.safetensors")
    assert model.header.depths == (3, 2, 1)
    assert packing.load("net2.safetensors").header.depths == (2, 1)
    image = np.random.default_rng(1).integers(0, 256, (9, 11, 3), np.uint8)
    Image.fromarray(image).save("small.png")
    for depth in (3, 2, 1):
        options = ["--model", "net.safetensors", "--depth", str(depth), "--engine", "onnxruntime"]
        assert cli.main(["upscale", "small.png", "-o", f"out{depth}.png", *options]) == 0
        found = np.asarray(Image.open(f"out{depth}.png")).astype(int)
        assert np.abs(found - reference.run(model, image, depth)).max() <= 1
    capsys.readouterr()
    chosen = ("--set", "path.pretrain_network_g=net.safetensors", "--set", "val.engine=onnxruntime")
    assert commands("test", NETWORKS["MSRResNet"], *chosen) == 0
    output = capsys.readouterr().out
    for depth in (3, 2, 1):
        assert f", depth {depth}, onnxruntime " in output
    assert cli.main(["cost", "-m", "net.safetensors", "--json"]) == 0
    costs = json.loads(capsys.readouterr().out)["depths"]
    macs = [row["sizes"][0]["macs"] for row in costs]
    assert [row["depth"] for row in costs] == [3, 2, 1]
    assert macs[0] - macs[1] == macs[1] - macs[2] == 2 * 8 * 8 * 9 * 180 * 320


def test_costs_of_an_option_file_are_those_of_each_depth(commands: Commands, capsys: Any) -> None:
    assert commands("check", NETWORKS["MSRResNet"]) == 0
    assert "depths     3, 2, 1" in capsys.readouterr().out
    assert cli.main(["cost", "-opt", "run.yml", "--json"]) == 0
    costs = json.loads(capsys.readouterr().out)["depths"]
    macs = [row["sizes"][0]["macs"] for row in costs]
    assert macs[0] - macs[1] == macs[1] - macs[2] == 2 * 8 * 8 * 9 * 180 * 320


WRONG = {
    "val.depths": ({"val": {"depths": [4]}}, {}, "val.depths: depth 4 is not within 1..3"),
    "twice": ({}, {"depths": [3, 3]}, "network_g.depths: the same depth twice"),
    "weights": ({"train": {"depth_weights": [1]}}, {}, "train.depth_weights: 1 weights for the 3 depths"),
    "units": ({"train": {"depth_weights": None}}, {"depths": [2, 1]}, "must contain the full depth 3"),
    "trunk": ({}, {"trunk": "tail"}, "network_g.trunk: 'tail' names no run"),
}


@pytest.mark.parametrize(("changes", "network", "message"), WRONG.values(), ids=WRONG)
def test_wrong_depths_are_one_line(
    commands: Commands, capsys: Any, changes: dict[str, Any], network: dict[str, Any], message: str
) -> None:
    assert commands("train", {**NETWORKS["MSRResNet"], **network}, **changes) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
