"""The commands ``quantsr train`` and ``quantsr test``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
import yaml

from quantsr import quant
from quantsr.cli import main
from quantsr.data.resize import imresize_uint8
from quantsr.engine import build, training_state
from quantsr.engine.network_file import network_file
from quantsr.engine.results import read_results
from quantsr.engine.trainer import Trainer
from quantsr.trained_files import checkpoint

METRICS = {"psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}}

RELEASED_NAMES = {
    ".input_quantizer.step": ".ActOurs.alpha",
    ".input_quantizer.calibrated": ".ActOurs.init_state",
    ".input_quantizer.signed": ".ActOurs.signed",
    ".input_quantizer.tau": ".channel_threshold",
    ".weight_quantizer.step": ".alpha",
    ".weight_quantizer.calibrated": ".init_state",
    ".shortcut": ".learnable_shortcut",
}


def released_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict under the names and with the shapes of the released code."""
    found = {}
    for name, value in state.items():
        for ours, theirs in RELEASED_NAMES.items():
            if name.endswith(ours):
                name = name[: -len(ours)] + theirs
                value = (
                    value.float().reshape(1, -1, 1, 1) if ours.endswith("tau") else value.float().reshape(-1)
                )
                break
        found[name] = value
    return found


@pytest.fixture
def test_file(tmp_path: Path, pictures: Path) -> Any:
    """A function that writes a test option file for a network and its checkpoint."""
    for source in pictures.iterdir():
        picture = imresize_uint8(cv2.imread(str(source)), 0.5)
        (tmp_path / "lr").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "lr" / f"{source.stem}x2.png"), picture)
    folders = {"dataroot_gt": str(pictures), "dataroot_lq": str(tmp_path / "lr"), "filename_tmpl": "{}x2"}

    def write(network: dict[str, Any], file: Path, **more: Any) -> Path:
        options = {
            "name": "tested",
            "model_type": "SRModel",
            "scale": 2,
            "num_gpu": 0,
            "datasets": {
                f"test_{n}": {"name": f"Set{n}", "type": "PairedImageDataset", **folders} for n in (1, 2)
            },
            "network_g": network,
            "path": {"pretrain_network_g": str(file), "results_root": str(tmp_path / "results")},
            "val": {"metrics": METRICS, "save_img": False},
            **more,
        }
        path = tmp_path / "test.yml"
        path.write_text(yaml.safe_dump(options))
        return path

    return write


def results(tmp_path: Path) -> dict[tuple[str, str], float]:
    return {(r.set, r.row): r.value for r in read_results(tmp_path / "results" / "tested" / "results.json")}


def test_released_option_files_and_state_dicts_are_tested(
    tmp_path: Path, test_file: Any, capsys: Any
) -> None:
    """``slimmable_version: 1`` tests half of the blocks plus one, ranked by the shortcuts."""
    network = {
        "type": "QEDSR_Ours",
        "num_in_ch": 3,
        "num_out_ch": 3,
        "num_feat": 4,
        "num_block": 8,
        "upscale": 2,
    }
    net = build.build_network("QEDSR_Ours", {k: v for k, v in network.items() if k != "type"})
    quant.calibrate(net, [torch.rand(1, 3, 8, 8)])
    with torch.no_grad():
        for index, block in enumerate(net.body):
            block.shortcut.fill_(1 - 0.1 * ((3 * index) % 8))
    state = released_names(net.state_dict())
    assert "body.0.conv1.ActOurs.alpha" in state
    file = tmp_path / "released.pth"
    torch.save({"params": state}, file)

    assert main(["test", "-opt", str(test_file(network, file, slimmable_version=1))]) == 0
    slim = results(tmp_path)
    row = "QuantSR_C W4A4, released block count (depth + 1), depth 4"
    assert {name for _, name in slim} == {"bicubic", row}
    out = capsys.readouterr().out
    assert "## Set1, x2, 3 pictures" in out
    assert row in out

    assert (
        main(["test", "-opt", str(test_file(network, file, val={"metrics": METRICS, "depths": [8, 5, 4]}))])
        == 0
    )
    exact = results(tmp_path)
    for name in ("Set1", "Set2"):
        five, four = exact[name, "QuantSR_C W4A4, depth 5"], exact[name, "QuantSR_C W4A4, depth 4"]
        assert slim[name, row] == five != four


def test_train_then_test_every_depth_with_the_moving_average(
    make_options: Any, tmp_path: Path, test_file: Any
) -> None:
    """``param_key_g`` selects the parameters; a float teacher is tested too."""
    options = make_options(**{"train.optim_g.lr": 0.02})
    Trainer(options).run()
    file = Path(options.experiment_folder) / "models" / "net_g_latest.pth"
    edsr = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 2}
    teacher = tmp_path / "edsr.pth"
    torch.save(
        {"params": build.build_network("EDSR", {k: v for k, v in edsr.items() if k != "type"}).state_dict()},
        teacher,
    )
    found = []
    for key in ("params", "params_ema"):
        paths = {
            "pretrain_network_g": str(file),
            "param_key_g": key,
            "pretrain_network_teacher": str(teacher),
            "results_root": str(tmp_path / "results"),
        }
        path = test_file(options.network_g.flat(), file, path=paths, network_teacher=edsr)
        for words in (
            ["--set", "val.selfensemble_testing=false"],
            ["--force_yml", "val:selfensemble_testing=true"],
        ):
            assert main(["test", "-opt", str(path), *words, "--launcher", "none"]) == 0
            found.append(results(tmp_path))
    rows = [f"QuantSR_C W4A4, depth {d}" for d in (4, 2, 1)]
    assert [row for name, row in found[0] if name == "Set1"] == ["bicubic", "float EDSR", *rows]
    assert [row for name, row in found[1] if name == "Set1"][2:] == [f"{row}, self-ensemble" for row in rows]
    assert found[0]["Set1", rows[0]] != found[2]["Set1", rows[0]]


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A packed network x2 with an 8-bit tail."""
    from quantsr.deploy.packed import packing
    from quantsr.deploy.stand_ins.convolutional import random_model

    file = tmp_path / "packed.safetensors"
    packing.save(random_model(num_feat=8, num_block=4, scale=2), file)
    return file


def test_a_packed_file_is_tested_without_network_g(tmp_path: Path, test_file: Any, packed: Path) -> None:
    """The values are those of `quantsr.load`, and on an engine those of `Upscaler`."""
    import quantsr
    from quantsr.data.images import read_rgb
    from quantsr.engine.evaluate import measure, network_upscaler

    path = test_file(None, packed, scale=None)
    assert main(["test", "-opt", str(path)]) == 0
    torch_rows = results(tmp_path)
    assert main(["test", "-opt", str(path), "--set", "val.engine=openvino"]) == 0
    engine_rows = results(tmp_path)

    net = quantsr.load(packed)
    title = "QuantSR_C W4A4"
    assert build.title(net) == title
    hr = sorted(Path(yaml.safe_load(path.read_text())["datasets"]["test_1"]["dataroot_gt"]).iterdir())
    for depth in net.depths:
        (by_module, by_engine) = (0.0, 0.0)
        upscaler = quantsr.Upscaler(packed, engine="openvino", depth=depth)
        for truth in hr:
            low = read_rgb(tmp_path / "lr" / f"{truth.stem}x2.png")
            with torch.inference_mode():
                (sr,) = network_upscaler(net, (depth,), scale=2)(low)
            by_module += measure(sr, read_rgb(truth), METRICS)["psnr"] / len(hr)
            by_engine += measure(upscaler(low), read_rgb(truth), METRICS)["psnr"] / len(hr)
        assert torch_rows["Set1", f"{title}, depth {depth}"] == pytest.approx(by_module, abs=1e-9)
        assert engine_rows["Set1", f"{title}, depth {depth}, openvino"] == pytest.approx(by_engine, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["network_g.nbits_w=2"], "packed.safetensors: was trained as another network than network_g (nbits_w 2 instead of 4)"),
        (["network_g={type: EDSR, num_in_ch: 3, num_out_ch: 3, upscale: 2}"], "(type 'EDSR' instead of 'QuantSR_C')"),
        (["path.pretrain_network_g=nothing"], "path.pretrain_network_g: 'nothing' does not exist"),
    ],
)  # fmt: skip
def test_another_network_than_the_packed_one_is_one_line(
    test_file: Any, packed: Path, capsys: Any, changes: list[str], expected: str
) -> None:
    path = test_file(None, packed, scale=2)
    assert main(["test", "-opt", str(path), "--set", *changes]) == 2
    assert sum(expected in line for line in capsys.readouterr().err.splitlines()) == 1


def test_engines_need_a_packed_file(tmp_path: Path, test_file: Any, capsys: Any) -> None:
    network = {"type": "QuantSR_C", "num_feat": 4, "num_block": 2, "upscale": 2}
    net = build.build_network("QuantSR_C", {k: v for k, v in network.items() if k != "type"})
    quant.calibrate(net, [torch.rand(1, 3, 8, 8)])
    file = tmp_path / "net.pth"
    checkpoint.save(file, network_file(net, None, iteration=1))
    assert main(["test", "-opt", str(test_file(network, file)), "--set", "val.engine=openvino"]) == 2
    assert "quantsr export -m" in capsys.readouterr().err


def test_a_checkpoint_of_other_bits_is_refused(tmp_path: Path, test_file: Any, capsys: Any) -> None:
    """The tensors of W4A4 and W2A2 have the same shapes: only the checkpoint's description of its
    network distinguishes them."""
    network = {"type": "QuantSR_C", "num_feat": 4, "num_block": 2, "upscale": 2, "nbits_w": 2}
    net = build.build_network("QuantSR_C", {k: v for k, v in network.items() if k != "type"})
    quant.calibrate(net, [torch.rand(1, 3, 8, 8)])
    file = tmp_path / "net.pth"
    checkpoint.save(file, network_file(net, None, iteration=1))
    assert main(["test", "-opt", str(test_file(network, file))]) == 0
    assert main(["test", "-opt", str(test_file({**network, "nbits_w": 4}, file))]) == 2
    assert "(nbits_w 4 instead of 2)" in capsys.readouterr().err


def test_optional_sets_that_are_absent_are_one_line(
    tmp_path: Path, test_file: Any, packed: Path, caplog: Any
) -> None:
    path = test_file(None, packed, scale=None)
    absent = [
        change
        for n, name in enumerate(("There", "Away"), start=3)
        for change in (
            f"datasets.test_{n}={{name: {name}, type: PairedImageDataset, optional: true, dataroot_gt: {tmp_path / name}}}",
        )
    ]
    (tmp_path / "There").mkdir()
    for n in range(2):
        cv2.imwrite(str(tmp_path / "There" / f"{n}.png"), torch.randint(0, 256, (16, 16, 3)).byte().numpy())
    assert main(["test", "-opt", str(path), "--set", *absent]) == 0
    assert {name for name, _ in results(tmp_path)} == {"Set1", "Set2", "There"}
    assert [r.message for r in caplog.records if "left out" in r.message] == [
        "not there, and left out: Away; datasets/README.md says where they belong"
    ]


def test_a_missing_or_damaged_checkpoint_is_one_line(tmp_path: Path, test_file: Any, capsys: Any) -> None:
    network = {"type": "QuantSR_C", "num_feat": 4, "num_block": 2, "upscale": 2}
    file = tmp_path / "bad.pth"
    file.write_bytes(b"not a checkpoint")
    assert main(["test", "-opt", str(test_file(network, file))]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(error) == 1
    assert "bad.pth" in error[0]


@pytest.mark.integration
def test_a_training_stopped_by_sigterm_is_resumed(make_options: Any, tmp_path: Path) -> None:
    """SIGTERM to ``python -m quantsr.train``: exit code 1, a line with the command to resume, and
    resuming works."""
    import signal
    import time

    options = make_options(**{"train.total_iter": 100_000, "logger.print_freq": 1})
    file = tmp_path / "run.yml"
    file.write_text(yaml.safe_dump(options.dump()))
    command = [sys.executable, "-m", "quantsr.train", "-opt", str(file)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = Path(options.experiment_folder) / "log"
    for _ in range(600):
        if log.is_dir() and any("iteration 3/" in p.read_text() for p in log.iterdir()):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"go on with: quantsr train -opt {file} --auto-resume" in err.splitlines()[-1]
    (state,) = training_state.states_in(Path(options.experiment_folder) / "training_states")
    last = int(state.stem)
    again = [
        *command,
        "--auto-resume",
        "--set",
        f"train.total_iter={last + 2}",
        "train.scheduler.milestones=[6]",
    ]
    done = subprocess.run(again, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"resumed at iteration {last}" in done.stderr
