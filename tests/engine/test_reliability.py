"""Locking of run folders, and pictures, logs and streams whose failures do not stop a training."""

from __future__ import annotations

import logging
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from quantsr.data.evaluation import build_eval_dataset
from quantsr.engine import validation
from quantsr.engine.evaluate import EvalSet, Saving, build_sets, evaluate
from quantsr.engine.results import Record
from quantsr.engine.run_folder import RunFolder, dated_log, log_file, set_aside
from quantsr.engine.saved_pictures import unique_names
from quantsr.engine.trainer import Trainer
from quantsr.engine.validation import Validation
from quantsr.errors import InputError
from quantsr.locks import FolderLockedError, locked
from quantsr.trained_files import checkpoint
from tests.engine.conftest import smooth_picture

SSIM = {"ssim": {"type": "calculate_ssim", "crop_border": 2, "test_y_channel": True}}
PSNR = {"psnr": {"type": "calculate_psnr", "crop_border": 2, "test_y_channel": True}}


def twice(picture: np.ndarray) -> np.ndarray:
    return picture.repeat(2, 0).repeat(2, 1)


def write(folder: Path, name: str, size: int = 40) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = cv2.imencode(".png", smooth_picture(size, size, size))[1]
    (folder / name).write_bytes(content.tobytes())


def val_options(folder: Path, **val: Any) -> dict[str, Any]:
    return {
        "datasets.val": {"name": "v", "type": "PairedImageDataset", "dataroot_gt": str(folder)},
        "val": {"val_freq": 4, "metrics": {**PSNR, **SSIM}, **val},
    }


# Run folders


def test_a_run_that_another_process_trains_is_refused(make_options: Any) -> None:
    options = make_options(**{"train.total_iter": 2})
    root = Path(options.experiment_folder)
    with locked(root):
        (root / "kept").touch()
        for auto_resume in (False, True):
            with pytest.raises(FolderLockedError, match="run: in use by process"):
                Trainer(options, auto_resume=auto_resume).run()
        assert (root / "kept").exists()
        assert len(list(root.parent.iterdir())) == 1  # nothing was set aside
    Trainer(options).run()
    assert not any(path.name.endswith(".lock") for path in root.parent.rglob("*"))


def test_a_test_of_the_same_name_is_refused(make_options: Any) -> None:
    from quantsr.commands import test as command

    options = make_options()
    with locked(Path(options.results_folder)), pytest.raises(FolderLockedError):
        command.main(options)


def test_leftovers_of_killed_saves_are_removed(make_options: Any) -> None:
    options = make_options(**{"train.total_iter": 1})
    models = RunFolder(Path(options.experiment_folder)).models
    models.mkdir(parents=True)
    (models / ".quantsr.abc.tmp").touch()
    Trainer(options, auto_resume=True).run()
    assert not list(models.parent.parent.rglob(".quantsr*"))


def test_names_as_long_as_the_file_system_allows(make_options: Any) -> None:
    options = make_options(name="n" * 255, **{"train.total_iter": 1})
    Trainer(options).run()
    Trainer(options).run()  # sets the first one aside
    folders = sorted(len(path.name) for path in Path(options.path.experiments_root).iterdir())
    assert folders[0] > 240
    assert folders[1] == 255


def test_folders_set_aside_in_one_second_get_different_names(tmp_path: Path) -> None:
    for _ in range(12):
        (tmp_path / "run").mkdir()
        set_aside(tmp_path / "run")
    assert len(list(tmp_path.iterdir())) == 12


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_file_on_a_full_disk_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "quantsr")
    with log_file(Path("/dev/full")):
        for _ in range(3):
            logging.getLogger("quantsr.some").info("a line")
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        "/dev/full: cannot be written ([Errno 28] No space left on device); the log goes on without it"
    ]


def test_file_names_that_are_not_utf8_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "quantsr")
    path = dated_log(tmp_path, "train", "x")
    with log_file(path):
        logging.getLogger("quantsr.some").info("%s", "caf\udce9")
    assert "caf\\udce9" in path.read_text(encoding="utf-8")


def test_a_folder_that_cannot_be_made_is_one_line(make_options: Any, tmp_path: Path) -> None:
    (tmp_path / "experiments").symlink_to(tmp_path / "experiments")  # a loop
    with pytest.raises(InputError, match="cannot be used") as caught:
        Trainer(make_options()).run()
    assert "\n" not in str(caught.value)


# Validation


def test_pictures_that_cannot_be_evaluated_are_named_and_left_out(
    make_options: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Pictures too small for SSIM's window or for the border, damaged ones, and names that are not
    UTF-8 or too long."""
    folder = tmp_path / "vset"
    long = "n" * 250
    for name, size in {"good": 40, "tiny": 4, "small": 14, "caf\udce9": 40, long: 40}.items():
        write(folder, f"{name}.png", size)
    (folder / "broken.png").write_bytes((folder / "good.png").read_bytes()[:300])
    options = make_options(
        **val_options(folder, save_img=True), **{"logger.use_tb_logger": True, "logger.print_freq": 1}
    )
    records = Trainer(options).run()
    assert {record.pictures for record in records} == {3}
    assert all(math.isfinite(record.value) for record in records)
    for name in ("tiny", "small", "broken"):
        assert f"v: {name}: left out of the validation (" in caplog.text
    saved = os.listdir(Path(options.experiment_folder) / "visualization" / "v")
    assert len([name for name in saved if "_8_depth2" in name]) == 3
    assert "caf\udce9_run_8_depth2.png" in saved
    assert (RunFolder(Path(options.experiment_folder)).models / "net_g_latest.pth").exists()


def test_a_picture_too_small_for_the_metrics_is_refused_by_a_test(tmp_path: Path) -> None:
    write(tmp_path, "good.png")
    write(tmp_path, "small.png", 14)
    made = {"name": "v", "type": "PairedImageDataset", "dataroot_gt": str(tmp_path)}
    dataset = build_eval_dataset(made, 2)
    assert len(dataset.usable(11)) == 2
    with pytest.raises(InputError, match=r"small\.png: 14x14 is too small for val\.metrics.*15x15"):
        dataset.usable(15)


def test_a_metric_that_is_not_a_number_is_an_error() -> None:
    gt = smooth_picture(0, 14, 14)
    small = EvalSet("S", 2, [{"name": "p", "gt": gt, "lq": gt[::2, ::2]}])
    with pytest.raises(InputError, match="S: p: ssim is not a number for its 14x14 pixels"):
        evaluate(twice, [small], metrics=SSIM, name="x")
    left: list[str] = []
    records = evaluate(
        twice, [small], metrics={**SSIM, **PSNR}, name="x", leave_out=lambda what, _: left.append(what)
    )
    assert (records, left) == ([], ["S: p"])


def test_the_checkpoint_of_an_iteration_comes_before_its_validation(
    make_options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ends during a validation is resumed from the checkpoint, and validates
    first."""
    write(tmp_path / "vset", "a.png")
    options = make_options(**val_options(tmp_path / "vset"), **{"logger.save_checkpoint_freq": 4})
    states = RunFolder(Path(options.experiment_folder)).states
    real = validation.evaluate

    def killed(*args: Any, **kwargs: Any) -> Any:
        raise SystemExit

    monkeypatch.setattr(validation, "evaluate", killed)
    with pytest.raises(SystemExit):
        Trainer(options).run()
    state = checkpoint.load(states / "4.state")
    assert (state["validation_due"], state["best"]) == (True, None)
    monkeypatch.setattr(validation, "evaluate", real)
    Trainer(options, auto_resume=True).run()
    assert [checkpoint.load(states / f"{n}.state")["validation_due"] for n in (4, 8)] == [False, False]
    assert checkpoint.load(states / "4.state")["best"]["iteration"] == 4


def test_values_that_are_not_a_number_are_never_the_best(
    make_options: Any, validated: Any, tmp_path: Path
) -> None:
    validator = Validation(make_options(**validated), [], RunFolder(tmp_path))

    def records(value: float) -> list[Record]:
        return [Record("s", 2, "n", 4, "psnr", value, 1)]

    assert validator.new_best(None, records(math.nan), 4, 1) is None
    assert validator.new_best(None, [], 4, 1) is None
    frozen = {"metric": "psnr", "value": math.nan, "iteration": 4, "stage": 1}
    assert validator.new_best(frozen, records(20.0), 8, 1) is not None


def test_training_continues_without_a_tensorboard_log_that_fails(
    make_options: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    trainer = Trainer(make_options(**{"logger.use_tb_logger": True}))
    trainer.run()
    assert trainer.iteration == 8
    assert caplog.text.count("TensorBoard log: cannot be written") == 1


def test_two_pictures_are_never_saved_under_one_name(tmp_path: Path) -> None:
    assert unique_names(["a", "a", "b c", "b-c", "A", "a~2"]) == ["a", "a~3", "b-c", "b-c~2", "A~4", "a~2"]
    items = [{"name": n, "gt": smooth_picture(0, 32, 32), "lq": smooth_picture(0, 16, 16)} for n in "aa"]
    evaluate(twice, [EvalSet("S", 2, items)], metrics=PSNR, name="x", saving=Saving(tmp_path, "s"))
    assert sorted(os.listdir(tmp_path / "S")) == ["a_s.png", "a~2_s.png"]


def test_a_set_without_a_usable_picture_is_refused(make_options: Any, tmp_path: Path) -> None:
    write(tmp_path / "vset", "a.png", 4)
    options = make_options(**val_options(tmp_path / "vset"))
    with pytest.raises(InputError, match="data set v: none of its 1 pictures can be evaluated"):
        build_sets(options.sets("val"), 2, {**PSNR, **SSIM}, lambda what, error: None)


# Standard streams


@pytest.mark.parametrize(
    ("arguments", "closed"),
    [
        *(("upscale absent.png -o out", closed) for closed in ("2>&-", ">&-", "<&- >&- 2>&-", "2>/dev/full")),
        ("check -opt absent.yml", "<&- >&- 2>&-"),  # loads torch
    ],
)
def test_exit_codes_do_not_depend_on_open_streams(arguments: str, closed: str) -> None:
    command = f'"{sys.executable}" -m quantsr {arguments} {closed}'
    done = subprocess.run(["sh", "-c", command], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 2
