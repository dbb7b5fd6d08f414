"""Each kind of problem, and the line that reports it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantsr.config import load_options
from quantsr.config.problems import did_you_mean
from quantsr.errors import OptionsError

TEACHER = "network_teacher={type: EDSR, num_in_ch: 3, num_out_ch: 3, upscale: 2}"
CASES = [
    # the schema
    ("name=null", "name: missing; add text that is not empty (Name of the run, and of its folder)"),
    ("name=a/b", "name: 'a/b' cannot name a folder"),
    ("name=..", "name: '..' cannot name a folder"),
    ("name=''", "name: must be text that is not empty, got ''"),
    ("name=12", "name: must be text that is not empty, got 12; put it in quotes"),
    ("scale=5", "scale: must be 2 or 3 or 4, got 5"),
    ("num_gpu=-1", "num_gpu: must be auto or a whole number >= 0, got -1"),
    ("num_gpu=all", "num_gpu: must be auto or a whole number"),
    ("scale='2'", "scale: must be 2 or 3 or 4, got '2'"),
    ("manual_seed=true", "manual_seed: must be a whole number >= 0 and < 2**63, got true"),
    ("manual_seed=9223372036854775808", "manual_seed: must be a whole number >= 0 and < 2**63, got 9223372036854775808"),
    ("model_type=4", "model_type: must be text, got 4"),
    ("slimmable_version=3", "slimmable_version: must be a whole number >= 0 and <= 2, got 3"),
    ("slimmable_version=1", "slimmable_version: is for quantsr test"),
    ("total_iter=3", "total_iter: unknown option; did you mean 'train.total_iter'?"),
    ("nbits_w=2", "nbits_w: unknown option; choose from auto_resume, datasets, dist_params, find_unused_parameters, logger, manual_seed, model_type, name, network_g, network_teacher, num_gpu, path, ...; an option of a section is written with it: network_g.nbits_w"),
    ("train.optim_g.lr=fast", "train.optim_g.lr: must be a number > 0, got 'fast'"),
    ("train.optim_g.lr=.inf", "train.optim_g.lr: must be a number > 0"),
    ("train.optim_g.lr=null", "train.optim_g.lr: missing; add a number > 0 (Learning rate at the start)"),
    ("train.optim_g.type=Lion", "train.optim_g.type: no optimizer 'Lion' is registered; choose from ASGD, "),
    ("train.optim_g.betas=[0.9]", "train.optim_g.betas: must be a list of 2 numbers, got [0.9]"),
    ("train.optim_g.betas=[0.9, 1.0]", "train.optim_g.betas: must lie in [0, 1)"),
    ("train.ema_decay=1", "train.ema_decay: must be a number >= 0 and < 1, got 1"),
    ("train.compile=maybe", "train.compile: must be true or false or auto, got 'maybe'"),
    ("train.scheduler.type=Step", "train.scheduler.type: no schedule 'Step' is registered; did you mean 'StepLR'?"),
    ("train.scheduler.milestones=null", "train.scheduler: milestones missing"),
    ("train.scheduler={type: MultiStepRestartLR, milestones: [50], restarts: []}", "train.scheduler.restarts: must be a list of whole numbers, got []"),
    ("train.scheduler.eta_min=0.1", "train.scheduler.eta_min: unknown option of MultiStepLR; choose from gamma, milestones"),
    ("train.scheduler.restart_weights=[1, 1]", "train.scheduler: restart_weights must have 1 entries"),
    ("train.optim_g=5", "train.optim_g: must be a section (keys below it), got 5"),
    ("network_g=QuantSR_C", "network_g: must be a section (keys below it), got 'QuantSR_C'"),
    ("val.metrics.psnr.type=null", "val.metrics.psnr.type: missing"),
    ("logger.keep_states=-1", "logger.keep_states: must be a whole number >= 0, got -1"),
    ("logger.wandb={project: p}", "logger.wandb.project: must be empty, got 'p'"),
    # registered names
    ("model_type=QuantSRModl", "model_type: no subclass of QuantSRModel is registered as 'QuantSRModl'; did you mean 'QuantSRModel'?"),
    ("model_type=ESRGANModel", "model_type: no subclass of QuantSRModel is registered as 'ESRGANModel'; did you mean 'SRModel'?"),
    ("network_g.type=QuantSR-C", "network_g.type: no network 'QuantSR-C' is registered; did you mean 'QuantSR_C'?"),
    ("network_g.quantizer=RQL", "network_g.quantizer: no quantizer 'RQL' is registered; did you mean 'RLQ'?"),
    ("val.metrics.psnr.type=psnr", "val.metrics.psnr.type: no metric 'psnr' is registered; did you mean 'calculate_psnr'?"),
    ("train.pixel_opt={type: L2Loss}", "train.pixel_opt.type: no pixel loss 'L2Loss' is registered; did you mean 'L1Loss'?"),
    ("train.pixel_opt={type: WeightedTVLoss}", "train.pixel_opt.type: no pixel loss 'WeightedTVLoss' is registered; choose from CharbonnierLoss, L1Loss, MSELoss"),
    ("train.pixel_opt={type: PerceptualLoss}", "train.pixel_opt.type: no pixel loss 'PerceptualLoss' is registered"),
    ("val.metrics.psnr.type=calculate_psnr_pt", "val.metrics.psnr.type: no metric 'calculate_psnr_pt' is registered; did you mean 'calculate_psnr'?"),
    ("train.pixel_opt={type: L1Loss, eps: 1e-3}", "train.pixel_opt.eps: unknown option of L1Loss; choose from loss_weight, reduction"),
    ("datasets.val.type=SkimageData", "datasets.val.type: no data set type 'SkimageData'; did you mean 'SkimageDataset'?"),
    # the network's constructor
    ("network_g.nbits_w=9", "network_g.nbits_w: bits must be 2..8, or 32 for float, got 9"),
    ("network_g.nbits_a=1", "network_g.nbits_a: bits must be 2..8, or 32 for float, got 1"),
    ("network_g.nbits_a=four", "network_g.nbits_a: must be a whole number, got 'four'"),
    ("network_g.num_feat=8.5", "network_g.num_feat: must be a whole number, got 8.5"),
    ("network_g.num_feat=0", "network_g.num_feat: must be a whole number > 0, got 0"),
    ("network_g.depth_rule=exakt", "network_g.depth_rule: input should be 'exact' or 'released', got 'exakt'"),
    ("network_g.depths=[8, 4]", "network_g.depths: depth 8 is not within 1..4, the blocks of the network"),
    ("network_g.depths=[4, 0]", "network_g.depths: depth 0 is not within 1..4"),
    ("network_g.depths=[4, 4]", "network_g.depths: the same depth twice in [4, 4]; remove one"),
    ("network_g.depths=[]", "network_g.depths: [] lacks the full depth 4; add it"),
    ("network_g.depths=[2, 1]", "network_g.depths: [2, 1] lacks the full depth 4; add it"),
    ("network_g.upscale=4", "network_g.upscale: is 4 but scale is 2; make them equal"),
    ("network_g.upscale=null", "network_g.upscale: is by default 4 but scale is 2; make them equal"),
    ("network_g.num_feats=8", "network_g.num_feats: unknown option of QuantSR_C; did you mean 'num_feat'?"),
    ("network_g={type: EDSR, upscale: 2}", "network_g.num_in_ch: missing; EDSR needs it"),
    ("network_g={type: SwinIR, upscale: 2, window_sise: 8}", "network_g.window_sise: unknown option of SwinIR; did you mean 'window_size'?"),
    # between keys
    ("train=null", "train: missing; training needs this section"),
    ("datasets.train=null", "datasets.train: missing"),
    ("datasets.trian={name: a, type: SkimageDataset}", "datasets.trian: unknown key of a data set; did you mean 'train'?"),
    ("datasets.val.phase=test", "datasets.val.phase: is 'test' but the key says 'val'"),
    ("datasets.train.gt_size=null", "datasets.train.gt_size: missing"),
    ("datasets.train.gt_size=47", "datasets.train.gt_size: 47 is no multiple of scale 2; use 46"),
    ("datasets.train.type=SkimageDataset", "datasets.train.type: SkimageDataset is for val and test"),
    ("datasets.train.type=PairedImageDataset", "datasets.train.dataroot_lq: missing; PairedImageDataset needs this folder"),
    ("datasets.train.dataroot_gt=null", "datasets.train.dataroot_gt: missing; CroppedImageDataset needs this folder"),
    ("datasets.train.dataroot_lq=[a, b]", "datasets.train.dataroot_lq: 2 folders for 1 of dataroot_gt"),
    ("datasets.train.filename_tmpl=x4", "datasets.train.filename_tmpl: needs one '{}'"),
    ("datasets.train.filename_tmpl='{}{}'", "datasets.train.filename_tmpl: needs one '{}'"),
    ("datasets.val.name=a/b", "datasets.val.name: 'a/b' cannot name a folder"),
    ("datasets.val.name=..", "datasets.val.name: '..' cannot name a folder"),
    ("datasets.val_2={name: v, type: SkimageDataset}", "datasets.val_2.name: 'v' is the name of datasets.val too; give each its own"),
    ("val.val_freq=null", "val.val_freq: missing"),
    ("val=null", "val.val_freq: missing"),
    ("val.metrics=null", "val.metrics: missing; name what to measure"),
    ("val.depths=[4, 5]", "val.depths: depth 5 is not within 1..4"),
    ("val.depths=[4, 4]", "val.depths: the same depth twice in [4, 4]; remove one"),
    ("train.depth_weights=[1, 1]", "train.depth_weights: 2 weights for the 3 depths [4, 2, 1]; give one each"),
    ("train.distill={output_weight: 1}", "network_teacher: missing; train.distill needs a teacher"),
    ("train.distill={output_weight: 1}", "path.pretrain_network_teacher: missing"),
    ("train.distill={soft_weight: 1}", "datasets.train.dataroot_soft: missing; train.distill.soft_weight needs the pictures"),
    ("datasets.train.dataroot_soft=.", "train.distill.soft_weight: missing or zero although there is datasets.train.dataroot_soft"),
    ("datasets.train.dataroot_soft=[a, b]", "datasets.train.dataroot_soft: 2 folders for 1 of dataroot_gt"),
    ("datasets.val.dataroot_soft=a", "datasets.val.dataroot_soft: only CroppedImageDataset has it"),
    (TEACHER, "train.distill: missing or all zero although there is a teacher"),
    ("train.final_depth=3", "train.final_depth: 3 is no lower depth of network_g.depths [4, 2, 1]; name one of them"),
    ("train.final_depth=4", "train.final_depth: 4 is no lower depth of network_g.depths [4, 2, 1]; name one of them"),
    ("train.final_depth=2", "train.stage1_fraction: must be 1 with train.final_depth, which trains one depth; set it"),
    ("train.final_depth=2", "val.val_freq: 50 leaves no time to remove 2 blocks in 100 iterations; set at most 20"),
    ("train.final_depth=1", "val.val_freq: 50 leaves no time to remove 3 blocks in 100 iterations; set at most 10"),
    ("train.scheduler={type: CosineAnnealingRestartLR, periods: [50, 20]}", "train.scheduler.periods: end at 70, before total_iter 100"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "expected"), CASES, ids=[f"{o} {e[:30]}" for o, e in CASES])
def test_each_mistake_has_its_line(
    problems: Callable[..., list[str]], valid: dict[str, Any], override: str, expected: str
) -> None:
    found = [line.removeprefix("--set: ") for line in problems(valid, override)]
    assert any(line.startswith(expected) for line in found), found


def test_a_wrong_scale_is_one_problem(problems: Callable[..., list[str]], valid: dict[str, Any]) -> None:
    del valid["network_g"]["upscale"], valid["datasets"]["train"]
    for wrong in ("null", "'2'", "true", "2.5"):
        (line,) = problems(valid, f"scale={wrong}", is_train=False)
        assert line.startswith("--set: scale: ")


def test_blocks_are_removed_at_validations(problems: Callable[..., list[str]], valid: dict[str, Any]) -> None:
    changes = ("train.final_depth=2", "train.stage1_fraction=1", "val.val_freq=20")
    assert problems(valid, *changes) == []
    (line,) = problems(valid, *changes, "datasets.val=null")
    assert "datasets.val: missing; train.final_depth removes blocks at validations" in line
    network = "network_g={type: EDSR, num_in_ch: 3, num_out_ch: 3, upscale: 2}"
    (line,) = problems(valid, *changes, network)
    assert "train.final_depth: this network has one depth only; remove the key" in line


def test_valid_options_have_no_problem(problems: Callable[..., list[str]], valid: dict[str, Any]) -> None:
    assert problems(valid) == []
    assert problems(valid, is_train=False) == []


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 32])
def test_every_supported_bit_width_is_accepted(
    problems: Callable[..., list[str]], valid: dict[str, Any], bits: int
) -> None:
    assert problems(valid, f"network_g.nbits_w={bits}", f"network_g.nbits_a={bits}") == []


def test_a_test_needs_a_set_and_a_checkpoint_but_no_training(
    problems: Callable[..., list[str]], valid: dict[str, Any]
) -> None:
    del valid["train"], valid["datasets"]["train"], valid["val"]["val_freq"]
    assert problems(valid, is_train=False) == []
    del valid["path"]
    valid["datasets"] = {}
    assert problems(valid, is_train=False) == [
        "datasets: no test set; add one under the key test_1 (or val)",
        "path.pretrain_network_g: missing; name the checkpoint to test",
    ]


def test_a_test_needs_metrics_and_an_engine_that_runs_its_file(
    problems: Callable[..., list[str]], valid: dict[str, Any]
) -> None:
    (metrics,) = problems(valid, "val.metrics=null", is_train=False)
    assert metrics.startswith("--set: val.metrics: missing; name what to measure")
    (engine,) = problems(valid, "val.engine=native", is_train=False)
    assert engine.startswith("--set: val.engine: native runs packed files, and path.pretrain_network_g is")
    packed = ("val.engine=native", "path.pretrain_network_g=quantsr_c_x2_w4a4")
    assert problems(valid, *packed, is_train=False) == []


def test_only_sets_that_are_read_together_need_names_of_their_own(
    problems: Callable[..., list[str]], valid: dict[str, Any]
) -> None:
    valid["datasets"]["train"]["name"] = "v"  # in no table
    valid["datasets"]["test_1"] = {"name": "v", "type": "SkimageDataset"}
    assert problems(valid) == problems(valid, is_train=False) == []
    valid["datasets"]["test_2"] = {"name": "v", "type": "SkimageDataset"}
    assert problems(valid) == []
    assert problems(valid, is_train=False) == [
        "datasets.test_2.name: 'v' is the name of datasets.test_1 too; give each its own"
    ]


def test_all_problems_at_once(problems: Callable[..., list[str]], valid: dict[str, Any]) -> None:
    found = problems(
        valid,
        "scale=5",
        "trian=1",
        "train.optim_g.lr=no",
        "network_g.nbits_w=9",
        "network_g.nbit_a=4",
        "network_g.depths=[9]",
        "val.metrics.psnr.type=psnr",
        "datasets.train.gt_size=null",
        "train.total_iter",
        check_paths=True,
    )
    keys = {line.removeprefix("--set: ").split(":")[0] for line in found}
    assert keys >= {
        "scale",
        "trian",
        "train.optim_g.lr",
        "network_g.nbits_w",
        "network_g.nbit_a",
        "network_g.depths",
        "val.metrics.psnr.type",
        "datasets.train.gt_size",
        "datasets.train.dataroot_gt",  # the folder is absent
        "path.pretrain_network_g",  # the file is absent
        "--set 'train.total_iter' is not understood; write --set train.total_iter=1000, without spaces around '='",
    }


def test_a_problem_names_the_file_it_was_written_in(tmp_path: Path) -> None:
    (tmp_path / "base.yml").write_text("network_g: {type: QuantSR_C, nbits_w: 9}\ntrain: {total_iter: 5}\n")
    (tmp_path / "child.yml").write_text("_base_: base.yml\nname: [1]\n")
    with pytest.raises(OptionsError) as caught:
        load_options(str(tmp_path / "child.yml"), check_paths=False)
    lines = caught.value.problems
    base, child = tmp_path / "base.yml", tmp_path / "child.yml"
    assert any(line.startswith(f"{base}: network_g.nbits_w: bits must be") for line in lines)
    assert any(line.startswith(f"{base}: train.optim_g: missing") for line in lines)
    assert any(line.startswith(f"{child}: name: must be text") for line in lines)
    assert any(line.startswith(f"{child}: scale: missing") for line in lines)


def test_an_unreadable_file_is_an_options_error(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="no such file"):
        load_options(str(tmp_path / "absent.yml"))


def test_did_you_mean() -> None:
    assert did_you_mean("bits_w", ["nbits_w", "scale"]) == "did you mean 'nbits_w'?"
    assert did_you_mean("zzz", ["a", "b"]) == "choose from a, b"
    assert did_you_mean("zzz", ["a"]) == "the only choice is a"


WEIRD = [
    None,
    True,
    -1,
    0,
    2.5,
    10**400,
    float("nan"),
    "",
    "x",
    "{}",
    [],
    [None],
    ["a", 1],
    [[1]],
    {},
    {"a": {}},
    {"type": 5},
]


def each_weird() -> list[Any]:
    """A scalar, a text, a list and a section in every run of the unit tests, the others with
    ``-m integration``."""
    quick = (-1, "{}", [None], {"a": {}})
    slow = pytest.mark.integration
    return [pytest.param(value, marks=[] if value in quick else slow) for value in WEIRD]


@pytest.mark.parametrize("value", each_weird(), ids=repr)
def test_any_value_of_a_key_ends_in_options_or_a_list_of_problems(
    problems: Callable[..., list[str]], valid: dict[str, Any], value: Any
) -> None:
    valid["network_g"]["depths"] = [4, 2]
    valid["train"]["distill"] = {"output_weight": 0.0}
    valid["val"]["depths"] = [4]
    valid["datasets"]["val"]["filename_tmpl"] = "{}"

    def replace_each(section: dict[str, Any]) -> None:
        for key in list(section):
            kept, section[key] = section[key], value
            for line in problems(valid, check_paths=True) + problems(valid, is_train=False):
                assert isinstance(line, str)
                assert "\n" not in line
            section[key] = kept
            if isinstance(kept, dict):
                replace_each(kept)

    replace_each(valid)


def test_of_very_many_problems_the_first_are_reported(
    problems: Callable[..., list[str]], valid: dict[str, Any]
) -> None:
    for section in (valid, valid["train"], valid["network_g"], valid["datasets"]):
        section.update({f"unknown_{i}": i for i in range(1000)})
    lines = problems(valid)
    assert len(lines) == 101
    assert lines[-1] == "has more problems; correct these first"


def test_a_key_of_very_many_parts_is_refused(
    problems: Callable[..., list[str]], valid: dict[str, Any]
) -> None:
    (line,) = problems(valid, f"{'a.' * 5000}b=1")
    assert "is not understood; write --set train.total_iter=1000" in line
