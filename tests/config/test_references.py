"""References between option keys: ``${a.b}``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from quantsr import loading, quant
from quantsr.config import Options, load_options
from quantsr.config.compare import load_comparison
from quantsr.config.problems import Problems
from quantsr.config.references import References
from quantsr.engine import build
from quantsr.engine.network_file import network_file
from quantsr.errors import OptionsError
from quantsr.trained_files import checkpoint

Load = Callable[..., Options]


def resolved(**options: Any) -> dict[str, Any]:
    return References(options, Problems("f.yml")).options()


def problems_in(**options: Any) -> list[str]:
    with pytest.raises(OptionsError) as error:
        resolved(**options)
    return list(error.value.problems)


@pytest.mark.parametrize("value", [4, 2.5, True, "text", "", [1, None, [2.0]], None])
def test_one_whole_reference_keeps_the_type(value: Any) -> None:
    found = resolved(a={"b": value}, c="${a.b}", d=["${ a.b }"])
    assert (found["c"], found["d"]) == (value, [value])
    assert type(found["c"]) is type(value)


def test_references_within_text_become_text() -> None:
    found = resolved(scale=4, on=True, rate=2e-4, a="X${scale}_${on}_${rate}", b=["${a}/${scale}"])
    assert (found["a"], found["b"]) == ("X4_true_0.0002", ["X4_true_0.0002/4"])


def test_a_reference_may_stand_in_another_and_variables_are_no_options() -> None:
    found = resolved(_vars_={"crop": {"2": 64, "4": 192}}, scale=4, a="${_vars_.crop.${scale}}")
    assert found == {"scale": 4, "a": 192}


def test_an_escaped_reference_is_text_and_other_text_stays() -> None:
    texts = {"a": r"\${scale}", "b": "}{", "c": "{}x2", "d": "$HOME", "e": r"C:\$x", "f": r"x\${}y}"}
    assert resolved(**texts) == {**texts, "a": "${scale}", "f": "x${}y}"}


def test_every_wrong_reference_is_one_line_with_its_key() -> None:
    found = problems_in(scale=4, a="${scal}", b={"c": "x${sec}"}, sec={"x": 1, "y": 2}, d="${scale.x}",
                        e="${scale", f="x${l}", l=[1], g="${sec.z}")  # fmt: skip
    assert found == [
        "f.yml: a: ${scal}: there is no key 'scal'; did you mean 'scale'?",
        "f.yml: b.c: ${sec} is a section; name one of its keys: x, y",
        "f.yml: d: ${scale.x}: scale is no section; check the reference",
        "f.yml: e: '${scale' has '${' without '}'; for the characters themselves write '\\${'",
        "f.yml: f: a list is referred to within a text; give single values there",
        "f.yml: g: ${sec.z}: sec has no key 'z'; choose from x, y",
    ]


def test_other_problems_do_not_end_the_checks_here() -> None:
    problems = Problems("f.yml")
    problems.add(("a",), "is wrong")
    assert References({"b": 1, "c": "${b}"}, problems).options() == {"b": 1, "c": 1}


def test_circles_and_long_chains_are_refused() -> None:
    assert problems_in(a="${b}", b="x${a}")[0] == (
        "f.yml: a: refers to itself (a -> b -> a); write one value out"
    )
    chain = {f"k{i}": f"${{k{i + 1}}}" for i in range(33)}
    assert "more than 32 references" in problems_in(**chain, k33=1)[0]
    assert resolved(**{key: chain[key] for key in list(chain)[2:]}, k33=1)["k2"] == 1


def test_references_cannot_exhaust_the_memory() -> None:
    doubled: dict[str, Any] = {f"a{i}": f"${{a{i - 1}}}${{a{i - 1}}}" for i in range(1, 31)}
    assert "more than 1,048,576 characters" in problems_in(a0="0123456789", **doubled)[0]
    lists: dict[str, Any] = {f"a{i}": [f"${{a{i - 1}}}"] * 2 for i in range(1, 31)}
    assert "more than 1,048,576 characters" in problems_in(a0=[1], **lists)[0]


def test_references_are_replaced_after_bases_and_changes(tmp_path: Path, valid: dict[str, Any]) -> None:
    valid["network_g"]["upscale"] = "${scale}"
    valid["datasets"]["train"]["dataroot_gt"] = "X${scale}"
    (tmp_path / "base.yml").write_text(yaml.safe_dump(valid))
    file = tmp_path / "own.yml"
    file.write_text("_base_: base.yml\nname: x${scale}_w${network_g.nbits_w}\n")
    options = load_options(str(file), ["scale=4", "manual_seed=${network_g.nbits_w}"], check_paths=False)
    assert (options.name, options.network_g.kwargs["upscale"], options.manual_seed) == ("x4_w4", 4, 4)
    assert options.datasets["train"].dataroot_gt == "X4"
    with pytest.raises(OptionsError) as error:
        load_options(str(file), ["name=${nam}"], check_paths=False)
    assert error.value.problems == ["--set: name: ${nam}: there is no key 'nam'; did you mean 'name'?"]
    (tmp_path / "base.yml").write_text(yaml.safe_dump(valid).replace("X${scale}", "X${scales}"))
    with pytest.raises(OptionsError, match=r"base\.yml: datasets\.train\.dataroot_gt: \$\{scales\}"):
        load_options(str(file), check_paths=False)


def test_environment_variables_in_paths_go_on_working(
    load: Load, valid: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANTSR_TEST_DATA", "/data")
    monkeypatch.setenv("scale", "9")
    valid["datasets"]["train"]["dataroot_gt"] = ["${QUANTSR_TEST_DATA}/X${scale}", "${NOT_SET_ANYWHERE}/y"]
    assert load(valid).datasets["train"].dataroot_gt == ["/data/X2", "${NOT_SET_ANYWHERE}/y"]
    with pytest.raises(OptionsError, match="there is no key 'QUANTSR_TEST_DATA'"):
        load(valid, "name=${QUANTSR_TEST_DATA}")


def test_the_path_of_a_checkpoint_may_refer_and_its_scale_be_referred_to(tmp_path: Path) -> None:
    net = build.build_network("QuantSR_C", {"num_feat": 4, "num_block": 1, "upscale": 3, "depths": [1]})
    quant.calibrate(net, [torch.rand(1, 3, 8, 8)])
    checkpoint.save(tmp_path / "float.pth", network_file(net, None, iteration=1))
    file = tmp_path / "test.yml"
    file.write_text(
        "name: float\n"
        "datasets: {test: {name: t, type: PairedImageDataset, dataroot_gt: gt, dataroot_lq: 'X${scale}'}}\n"
        f"path: {{pretrain_network_g: '{tmp_path}/${{name}}.pth'}}\n"
        "val: {metrics: {psnr: {type: calculate_psnr}}}\n"
    )
    options = load_options(str(file), is_train=False, check_paths=False)
    assert (options.scale, options.datasets["test"].dataroot_lq) == (3, "X3")


def test_every_variant_of_a_comparison_has_its_own_values(tmp_path: Path, valid: dict[str, Any]) -> None:
    valid["datasets"]["train"]["name"] = "w${network_g.nbits_w}"
    valid["network_g"]["upscale"] = "${scale}"
    (tmp_path / "base.yml").write_text(yaml.safe_dump(valid))
    file = tmp_path / "compare.yml"
    file.write_text(
        "name: bits\nbase: base.yml\nseeds: [1]\n"
        "variants: {w2: {network_g.nbits_w: 2}, w3: {network_g.nbits_w: 3}}\n"
        "datasets: {test: {name: 't${scale}w${network_g.nbits_w}', type: SkimageDataset}}\n"
    )
    runs = load_comparison(str(file), check_paths=False).runs
    assert [run.training.datasets["train"].name for run in runs] == ["w2", "w3"]
    assert [run.evaluation.datasets["test"].name for run in runs] == ["t2w2", "t2w3"]
    with pytest.raises(OptionsError, match=r"compare\.yml: variants\.w2: datasets\.train\.name: \$\{nam\}"):
        load_comparison(str(file), ["variants.w2.datasets.train.name=${nam}"], check_paths=False)


def test_a_network_is_built_from_a_file_with_references(tmp_path: Path) -> None:
    file = tmp_path / "net.yml"
    file.write_text(
        "scale: 2\nnetwork_g: {type: QuantSR_C, num_feat: 4, num_block: 1, upscale: '${scale}', "
        "nbits_w: 32, nbits_a: '${network_g.nbits_w}'}\n"
    )
    arguments = {"num_feat": 4, "num_block": 1, "upscale": 2, "nbits_w": 32, "nbits_a": 32}
    torch.save({"params": build.build_network("QuantSR_C", arguments).state_dict()}, tmp_path / "net.pth")
    net, _, _ = loading.float_network(tmp_path / "net.pth", str(file))
    assert net(torch.zeros(1, 3, 8, 8)).shape[-1] == 16
