"""The options object: frozen, dumped and loaded without loss, and its dict for BasicSR."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from quantsr.config import NetworkOptions, Options
from quantsr.config.schema import dataset_phase

Load = Callable[..., Options]


def test_a_dump_loads_to_equal_options(load: Load, valid: dict[str, Any]) -> None:
    options = load(valid, "network_teacher={type: EDSR, num_in_ch: 3, num_out_ch: 3, upscale: 2}",
                   "train.distill={feature_weight: 1e-4}", "path.pretrain_network_teacher=t.pth")  # fmt: skip
    plain = yaml.safe_load(yaml.safe_dump(options.dump()))
    assert plain == options.dump() == json.loads(json.dumps(options.dump()))
    assert load(plain) == options
    assert plain["network_g"]["type"] == "QuantSR_C"
    assert plain["network_g"]["nbits_w"] == 4


def test_options_do_not_change(load: Load, valid: dict[str, Any]) -> None:
    options = load(valid)
    with pytest.raises(ValidationError):
        options.name = "other"  # type: ignore[misc]
    basicsr = options.basicsr_dict(is_train=True)
    basicsr["train"]["optim_g"].pop("type")  # as BasicSR's models do
    basicsr["network_g"]["num_feat"] = 99
    assert options.basicsr_dict(is_train=True)["train"]["optim_g"]["type"] == "Adam"
    assert options.network_g.kwargs["num_feat"] == 8


def test_the_hash_changes_with_options_but_not_with_resuming_or_defaults(
    load: Load, valid: dict[str, Any]
) -> None:
    plain = load(valid).config_hash()
    assert plain == load(valid).config_hash()
    assert len(plain) == 12
    assert int(plain, 16) >= 0
    assert plain == load(valid, "auto_resume=true", "path.resume_state=100.state").config_hash()
    assert plain == load(valid, "train.warmup_iter=-1").config_hash()  # its default
    changes = (
        "train.total_iter=101",
        "network_g.nbits_w=2",
        "manual_seed=1",
        "val.metrics.psnr.crop_border=4",
    )
    assert len({plain, *(load(valid, change).config_hash() for change in changes)}) == 1 + len(changes)


def test_derived_values(load: Load, valid: dict[str, Any]) -> None:
    options = load(valid)
    assert options.val is not None
    assert options.val.metrics["psnr"].crop_border == 2  # scale
    assert options.datasets["val"].phase == "val"
    cosine = load(valid, "train.scheduler={type: CosineAnnealingRestartLR, eta_min: 1e-6}")
    assert cosine.train is not None
    assert cosine.train.scheduler.arguments() == {"periods": [100], "eta_min": 1e-6, "restart_weights": [1.0]}
    multi = load(valid, "train.scheduler.gamma=0.5")
    assert multi.train is not None
    assert multi.train.scheduler.arguments() == {"milestones": [50], "gamma": 0.5, "restart_weights": [1.0]}


@pytest.mark.parametrize(
    "schedule",
    [
        "{type: CosineAnnealingRestartLR, periods: [60, 50]}",
        "{type: MultiStepRestartLR, milestones: [20], restarts: [0, 40]}",
    ],
)
def test_each_cycle_starts_at_the_full_rate_by_default(
    load: Load, valid: dict[str, Any], schedule: str
) -> None:
    import torch

    from quantsr import basicsr_compat

    options = load(valid, f"train.scheduler={schedule}")
    assert options.train is not None
    scheduler = options.train.scheduler
    assert scheduler.restart_weights is None  # nor in the dump and the hash
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.5)
    made = getattr(basicsr_compat, scheduler.type)(optimizer, **scheduler.arguments())
    assert list(made.restart_weights) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("total", "fraction", "stages"), [(100, 0.6, (60, 40)), (7, 0.5, (4, 3)), (5, 0, (0, 5)), (5, 1, (5, 0))]
)
def test_stages_add_up(
    load: Load, valid: dict[str, Any], total: int, fraction: float, stages: tuple[int, int]
) -> None:
    train = load(valid, f"train.total_iter={total}", f"train.stage1_fraction={fraction}").train
    assert train is not None
    assert (train.stage1_iter, train.stage2_iter) == stages


@pytest.mark.parametrize(
    ("key", "phase"),
    [("train", "train"), ("val", "val"), ("val_2", "val"), ("test_1", "test"), ("test_Set5", "test"), ("test", "test"),
     ("train_2", None), ("tests", None), ("val_", None), ("Test", None), ("", None)],
)  # fmt: skip
def test_phase_of_a_key(key: str, phase: str | None) -> None:
    assert dataset_phase(key) == phase


def test_a_scale_without_a_fraction_is_a_whole_number(load: Load, valid: dict[str, Any]) -> None:
    options = load(valid, "scale=2.0")
    assert options == load(valid)
    assert type(options.scale) is int


def test_sets_by_phase(load: Load, valid: dict[str, Any]) -> None:
    options = load(valid)
    assert list(options.sets("train")) == ["train"]
    assert list(options.evaluation_sets()) == ["val"]
    tested = load(valid, "datasets.test_1={name: t, type: SkimageDataset}", is_train=False)
    assert list(tested.evaluation_sets()) == ["test_1"]
    assert list(tested.sets("val", "test")) == ["val", "test_1"]


def test_networks_are_made_of_type_and_arguments() -> None:
    flat = NetworkOptions.model_validate({"type": "EDSR", "upscale": 2})
    assert flat == NetworkOptions(type="EDSR", kwargs={"upscale": 2})
    assert flat.flat() == {"type": "EDSR", "upscale": 2}


def test_the_dict_for_basicsr(load: Load, valid: dict[str, Any]) -> None:
    opt = load(valid, "path.experiments_root=runs").basicsr_dict(is_train=True)
    assert opt["is_train"] is True
    assert opt["dist"] is False
    assert opt["network_g"]["type"] == "QuantSR_C"
    assert opt["datasets"]["train"]["phase"] == "train"
    assert opt["datasets"]["train"]["scale"] == 2
    assert opt["path"]["models"] == str(Path("runs", "run", "models"))
    test = load(valid, is_train=False).basicsr_dict(is_train=False)
    assert test["path"]["visualization"] == str(Path("results", "run", "visualization"))


def test_the_schema_needs_no_torch() -> None:
    code = "import sys, quantsr.config; print(sorted({'torch', 'basicsr', 'cv2'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
