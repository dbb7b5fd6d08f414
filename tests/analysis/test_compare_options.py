"""Comparison files: their runs, the order of the runs, and their problems."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from quantsr.config.compare import load_comparison
from quantsr.config.comparison import Comparison

Load = Callable[..., Comparison]
Find = Callable[..., list[str]]


def names(comparison: Comparison) -> list[str]:
    return [run.name for run in comparison.runs]


def test_runs_are_the_base_with_the_variants_changes(load: Load, valid: dict[str, Any]) -> None:
    comparison = load(valid)
    by_name = {run.name: run for run in comparison.runs}
    rlq, floating = by_name["rlq_seed7"], by_name["float_seed7"]
    folder = os.path.join(valid["experiments_root"], "compare_try")
    assert rlq.training.experiment_folder == os.path.join(folder, "rlq_seed7")
    assert (rlq.training.manual_seed, floating.training.manual_seed) == (7, 7)
    assert floating.training.network_g.kwargs["nbits_w"] == 32
    assert "nbits_w" not in rlq.training.network_g.kwargs
    assert rlq.training.path.fp_pretrain_network_g == os.path.join(
        folder, "float_seed7", "models", "net_g_latest.pth"
    )
    assert rlq.after == ("float_seed7",)
    assert comparison.changes["float"] == {"network_g.nbits_w": 32, "network_g.nbits_a": 32}


def test_the_options_of_evaluations(load: Load, valid: dict[str, Any], training: dict[str, Any]) -> None:
    """The test sets of the file, all depths, the averaged network where there is one, no teacher,
    no second baseline."""
    valid["variants"]["ema"] = {"train.ema_decay": 0.9}
    valid["val"] = {"depths": [1]}
    comparison = load(valid, base=training)
    by_name = {run.name: run.evaluation for run in comparison.runs}
    for name, key in (("float_seed3", "params"), ("ema_seed3", "params_ema")):
        options = by_name[name]
        assert options.path.param_key_g == key
        assert options.path.pretrain_network_g is not None
        assert options.path.pretrain_network_g.endswith(f"compare_try/{name}/models/net_g_latest.pth")
        assert [dataset.name for dataset in options.evaluation_sets().values()] == ["skimage"]
        assert options.val is not None
        assert options.val.depths == [1]
        assert not options.val.baseline
    assert comparison.baseline
    assert comparison.runs[0].training.val is not None
    assert comparison.runs[0].training.val.depths is None


def test_an_additional_test_set_does_not_change_the_training_options(
    load: Load, valid: dict[str, Any]
) -> None:
    before = load(valid).runs[0]
    valid["datasets"]["test_2"] = {"name": "again", "type": "SkimageDataset"}
    after = load(valid).runs[0]
    assert after.training.config_hash() == before.training.config_hash()
    assert after.evaluation.config_hash() != before.evaluation.config_hash()


def test_a_run_comes_after_those_it_starts_from_and_seeds_one_after_the_other(
    load: Load, valid: dict[str, Any]
) -> None:
    valid["variants"] = {
        "c": {"path.fp_pretrain_network_g": "{run:b}/models/net_g_latest.pth"},
        "d": {},
        "b": {
            "network_g": {"nbits_w": 32, "nbits_a": 32},
            "path.fp_pretrain_network_g": "{run:a}/models/net_g_latest.pth",
        },
        "a": {"network_g": {"nbits_w": 32, "nbits_a": 32}},
    }
    assert names(load(valid)) == [f"{name}_seed{seed}" for seed in (3, 7) for name in "abcd"]


def test_seeds_and_environment_variables_are_filled_in(
    load: Load, valid: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (3, 7):
        (tmp_path / f"start{seed}.pth").write_bytes(b"")
    monkeypatch.setenv("STARTS", str(tmp_path))
    valid["variants"]["rlq"] = {"path": {"fp_pretrain_network_g": "$STARTS/start{seed}.pth"}}
    found = {run.name: run.training.path.fp_pretrain_network_g for run in load(valid).runs}
    assert found["rlq_seed3"] == str(tmp_path / "start3.pth")
    assert found["rlq_seed7"] == str(tmp_path / "start7.pth")


def test_other_braces_are_left_alone(load: Load, valid: dict[str, Any]) -> None:
    valid["base"] = {"_base_": "base.yml", "datasets": {"train": {"filename_tmpl": "{}x2"}}}
    assert load(valid).runs[0].training.datasets["train"].filename_tmpl == "{}x2"


def test_null_removes_a_key_of_the_base(load: Load, valid: dict[str, Any], training: dict[str, Any]) -> None:
    training["train"]["ema_decay"] = 0.9
    valid["variants"]["float"]["train"] = {"ema_decay": None}
    averaged = {
        run.name: run.training.train.ema_decay
        for run in load(valid, base=training).runs
        if run.training.train
    }
    assert (averaged["rlq_seed3"], averaged["float_seed3"]) == (0.9, 0)


def test_set_changes_base_variants_and_seeds(load: Load, valid: dict[str, Any]) -> None:
    words = ["base.train.total_iter=9", "variants.float.train.total_iter=5", "seeds=[1]", "variants.more={}"]
    comparison = load(valid, *words)
    found = {run.name: run.training.train.total_iter for run in comparison.runs if run.training.train}
    assert found == {"float_seed1": 5, "rlq_seed1": 9, "more_seed1": 9}
    only = load(valid, "variants.rlq=null")
    assert names(only) == ["float_seed3", "float_seed7"]


def test_a_dotted_key_is_changed_by_set(load: Load, valid: dict[str, Any]) -> None:
    valid["variants"]["float"] = {"network_g.nbits_w": 32, "network_g.nbits_a": 32, "train.total_iter": 6}
    found = {
        run.name: run.training.train.total_iter
        for run in load(valid, "variants.float.train.total_iter=5").runs
        if run.training.train
    }
    assert found["float_seed3"] == 5


def test_the_base_is_found_from_the_file_that_names_it(
    load: Load, valid: dict[str, Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    write(valid)
    (tmp_path / "below").mkdir()
    child = tmp_path / "below" / "child.yml"
    child.write_text(yaml.safe_dump({"_base_": "../compare.yml", "name": "child", "seeds": [1]}))
    comparison = load_comparison(str(child))
    assert names(comparison) == ["float_seed1", "rlq_seed1"]
    assert comparison.runs[0].training.network_g.kwargs["num_feat"] == 4


def test_every_problem_at_once(problems: Find, valid: dict[str, Any], training: dict[str, Any]) -> None:
    training["train"]["totl_iter"] = 1
    valid["variants"] = {
        "a": {"network_g.nbit_w": 2, "manual_seed": 5},
        "b": {"path.fp_pretrain_network_g": "{run:c}/models/net_g_latest.pth", "val.depths": [9]},
    }
    valid["datasets"] = {"val": {"name": "v", "type": "SkimageDataset"}}
    valid["val"] = {"val_freq": 5}
    found = problems(valid, base=training)
    for expected in (
        "base.yml: train.totl_iter: unknown option; did you mean 'total_iter'?",
        "compare.yml: variants.a: network_g.nbit_w: unknown option of QuantSR_C; did you mean 'nbits_w'?",
        "compare.yml: variants.a.manual_seed: the comparison sets this; remove it",
        "compare.yml: variants.b.path.fp_pretrain_network_g: no placeholder {run:c}; did you mean",
        "compare.yml: variants.b: val.depths: depth 9 is not within 1..2",
        "compare.yml: datasets.val: no test set; use test or test_1",
        "compare.yml: val.val_freq: belongs to the training; write base.val.val_freq",
    ):
        assert sum(line.startswith(expected) for line in found) == 1, (expected, found)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seeds": []}, "compare.yml: seeds:"),
        ({"seeds": [1, 1]}, "compare.yml: seeds: the same seed twice in [1, 1]; remove one"),
        ({"seeds": [-1]}, "compare.yml: seeds: must be whole numbers >= 0 and < 2**63, got -1"),
        ({"seeds": [2**63]}, "compare.yml: seeds: must be whole numbers >= 0 and < 2**63, got 92233720"),
        ({"variants": {}}, "compare.yml: variants:"),
        ({"variants": {"a/b": {}}}, "compare.yml: variants: 'a/b' cannot name a folder"),
        ({"name": "a/b"}, "compare.yml: name: 'a/b' cannot name a folder"),
        ({"reference": "flaot"}, "compare.yml: reference: no variant 'flaot'; did you mean 'float'?"),
        ({"variant": {}}, "compare.yml: variant: unknown option; did you mean 'variants'?"),
        ({"base": 5}, "compare.yml: base: must be text or a section"),
        ({"base": "gone.yml"}, "compare.yml: base: gone.yml: no such file"),
        (
            {"variants": {"a": {"path.fp_pretrain_network_g": "{run:a}/models/net_g_latest.pth"}}},
            "compare.yml: variants.a: starts from itself (a -> a); remove one",
        ),
        (
            {"variants": {"a": {}, "b": {"path": "{run:a}/models/net_g_latest.pth"}}},
            "compare.yml: variants.b: path: must be a section (keys below it), got '{run:a}",
        ),
        (
            {"base": {"_base_": "base.yml", "path": 5}},
            "compare.yml: base: path: must be a section (keys below it), got 5",
        ),
        (
            {"val": {"engine": "native"}},
            "compare.yml: val.engine: native runs packed files, and path.pretrain_network_g is a checkpoint",
        ),
        (
            {"datasets": {f"test_{n}": {"name": "s", "type": "SkimageDataset"} for n in (1, 2)}},
            "compare.yml: datasets.test_2.name: 's' is the name of datasets.test_1 too",
        ),
        (
            {"variants": {"a": {"train.total_iter": 1, "train": {"total_iter": 2}}}},
            "compare.yml: variants.a.train.total_iter: is given twice",
        ),
        (
            {"variants": {"a": {"scale": 3, "network_g.upscale": 3, "datasets.train.gt_size": 18}, "b": {}}},
            "compare.yml: variants.b.scale: 2 but 3 for a; compare one scale",
        ),
        (
            {
                "variants": {
                    "f": {"network_g.nbits_w": 32, "network_g.nbits_a": 32},
                    "a": {"path.fp_pretrain_network_g": "{run:f}/net_g_latest.pth"},
                }
            },
            "compare.yml: variants.a: path.fp_pretrain_network_g: ",
        ),
        (
            {
                "variants": {
                    "f": {"network_g.nbits_w": 32, "network_g.nbits_a": 32},
                    "a": {"path.fp_pretrain_network_g": "{run:f}/models/net_g_best.pth"},
                }
            },
            "compare.yml: variants.a: path.fp_pretrain_network_g: ",
        ),
    ],
)
def test_each_problem_has_one_line(
    problems: Find, valid: dict[str, Any], change: dict[str, Any], expected: str
) -> None:
    found = problems({**valid, **change})
    assert sum(line.startswith(expected) for line in found) == 1, found


def test_a_circle_of_two_variants_is_one_problem(problems: Find, valid: dict[str, Any]) -> None:
    start = "path.fp_pretrain_network_g"
    valid["variants"] = {
        "a": {start: "{run:b}/models/net_g_latest.pth"},
        "b": {start: "{run:a}/models/net_g_latest.pth"},
    }
    found = problems(valid)
    assert [line for line in found if "starts from itself" in line] == [
        "compare.yml: variants.b: starts from itself (a -> b -> a); remove one {run:...}"
    ]


def test_missing_metrics_and_absent_pictures_are_reported(
    problems: Find, valid: dict[str, Any], training: dict[str, Any]
) -> None:
    del training["val"]["metrics"]
    training["datasets"]["train"]["dataroot_gt"] = "gone"
    found = problems(valid, base=training)
    assert sum(line.startswith("base.yml: val.metrics: missing; name what to measure") for line in found) == 1
    assert (
        sum(line.startswith("base.yml: datasets.train.dataroot_gt: folder 'gone' does not") for line in found)
        == 1
    )


def test_a_training_file_is_refused(problems: Find, valid: dict[str, Any], training: dict[str, Any]) -> None:
    assert problems(training) == [
        "compare.yml: is no comparison but a training or test file; run quantsr train or test with it"
    ]


def test_runs_and_parts_of_keys_are_limited(problems: Find, valid: dict[str, Any]) -> None:
    valid["seeds"] = list(range(501))
    valid["variants"] = {"a": {}, "b": {".".join(["x"] * 5000): 1}}
    (deep, many) = problems(valid)
    assert "has more than 32 parts; check the key" in deep
    assert "variants and seeds make 1002 runs, more than 1000; write several files" in many
