"""Inheritance and changes from the command line."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantsr.commands.arguments import add_option_arguments, resume_command
from quantsr.config import Options
from quantsr.config.layers import read_layers
from quantsr.errors import InputError, OptionsError


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".yml").write_text(text)


def test_sections_merge_and_everything_else_is_replaced(tmp_path: Path) -> None:
    write(
        tmp_path,
        base="a: {x: 1, y: {p: 1, q: 2}}\nl: [1, 2, 3]\nb: 5\n",
        child="_base_: base.yml\na: {y: {q: 3, r: 4}}\nl: [4]\nb: {c: 1}\n",
    )
    options, _ = read_layers(str(tmp_path / "child.yml"))
    assert options == {"a": {"x": 1, "y": {"p": 1, "q": 3, "r": 4}}, "l": [4], "b": {"c": 1}}


def test_null_removes_an_inherited_key(tmp_path: Path) -> None:
    write(tmp_path, base="a: {x: 1, y: 2}\nb: {c: 3}\n", child="_base_: base.yml\na: {x: ~}\nb: ~\n")
    assert read_layers(str(tmp_path / "child.yml"))[0] == {"a": {"y": 2}}


def test_later_bases_override_and_are_relative_to_the_file_that_names_them(tmp_path: Path) -> None:
    write(
        tmp_path,
        sub__one="_base_: ../root.yml\na: 1\n",
        sub__two="a: 2\nb: 2\n",
        root="a: 0\nz: 0\n",
        run__child="_base_: [../sub/one.yml, ../sub/two.yml]\nc: 3\n",
    )
    assert read_layers(str(tmp_path / "run" / "child.yml"))[0] == {"a": 2, "z": 0, "b": 2, "c": 3}


def test_the_origin_of_every_key_is_its_file(tmp_path: Path) -> None:
    write(
        tmp_path,
        root="a: {x: 1}\n",
        base="_base_: root.yml\na: {y: 1}\n",
        child="_base_: base.yml\na: {y: 2}\n",
    )
    _, origins = read_layers(str(tmp_path / "child.yml"))
    assert Path(origins["a", "x"]).name == "root.yml"
    assert Path(origins["a", "y"]).name == "child.yml"


def test_circles_and_absent_bases_are_refused(tmp_path: Path) -> None:
    write(
        tmp_path,
        a="_base_: b.yml\n",
        b="_base_: a.yml\n",
        c="_base_: gone.yml\n",
        d="_base_: 5\n",
        e="_base_: e.yml\n",
    )
    for name, expected in {
        "a": "circle",
        "c": "does not exist",
        "d": "must be a file name",
        "e": "circle",
    }.items():
        with pytest.raises(InputError, match=expected):
            read_layers(str(tmp_path / f"{name}.yml"))


def test_the_same_base_twice_is_no_circle(tmp_path: Path) -> None:
    write(
        tmp_path,
        root="a: 1\n",
        b="_base_: root.yml\n",
        c="_base_: root.yml\n",
        d="_base_: [b.yml, c.yml]\nx: 1\n",
    )
    assert read_layers(str(tmp_path / "d.yml"))[0] == {"a": 1, "x": 1}


def test_set_changes_values_of_every_type(load: Callable[..., Options], valid: dict[str, Any]) -> None:
    options = load(
        valid,
        "train.total_iter=2e2",
        "train.optim_g.lr=1e-4",
        "train.scheduler.milestones=[60, 120]",
        "network_g.nbits_w=2",
        "name=other",
        "val.save_img=true",
        "train.grad_clip_norm=0.5",
    )
    assert options.train is not None
    assert options.val is not None
    assert options.train.total_iter == 200
    assert options.train.optim_g.lr == 1e-4
    assert options.train.scheduler.milestones == [60, 120]
    assert options.network_g.kwargs["nbits_w"] == 2
    assert options.name == "other"
    assert options.val.save_img is True
    assert options.train.grad_clip_norm == 0.5


def test_set_overrides_force_yml_and_null_restores_the_default(
    load: Callable[..., Options], valid: dict[str, Any]
) -> None:
    options = load(
        valid,
        "train.total_iter=7",
        "network_g.nbits_w=null",
        force_yml=["train:total_iter=5", "manual_seed=3", "path:pretrain_network_g=none"],
    )
    assert options.train is not None
    assert options.train.total_iter == 7
    assert options.manual_seed == 3
    assert "nbits_w" not in options.network_g.kwargs
    assert options.path.pretrain_network_g is None


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.totl_iter=5", "--set: train.totl_iter: unknown option; did you mean 'total_iter'?"),
        ("trian.total_iter=5", "--set: trian: unknown option; did you mean 'train'?"),
        (
            "network_g.nbit_w=2",
            "--set: network_g.nbit_w: unknown option of QuantSR_C; did you mean 'nbits_w'?",
        ),
        ("train.total_iter.x=5", "--set: train.total_iter.x: train.total_iter is no section"),
        (
            "train.total_iter='5'",
            "--set: train.total_iter: must be a whole number >= 0, got '5'; remove the quotes",
        ),
        ("train.total_iter", "--set 'train.total_iter' is not understood; write --set train.total_iter=1000"),
        ("=5", "--set '=5' is not understood"),
        ("name=[a", "--set name=[a: line 1: "),
    ],
)
def test_wrong_arguments_of_set_are_reported(
    problems: Callable[..., list[str]], valid: dict[str, Any], override: str, expected: str
) -> None:
    found = problems(valid, override)
    assert any(line.startswith(expected) or expected in line for line in found), found


def test_force_yml_evaluates_nothing(
    load: Callable[..., Options], valid: dict[str, Any], tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    with pytest.raises(OptionsError):
        load(valid, force_yml=[f"train:total_iter=[open({str(trace)!r}, 'w')]"])
    assert not trace.exists()


def test_the_resume_command_repeats_every_argument_quoted() -> None:
    parser = argparse.ArgumentParser()
    add_option_arguments(parser)
    words = [
        "-opt",
        "my file.yml",
        "--set",
        "network_g.depths=[4, 2]",
        "name=a",
        "--force_yml",
        "train:total_iter=5",
    ]
    line = resume_command("train", parser.parse_args(words), "--auto-resume")
    assert shlex.split(line) == ["quantsr", "train", *words, "--auto-resume"]
    assert "'my file.yml' --set 'network_g.depths=[4, 2]' name=a" in line
