"""Networks of others with their layers quantized, as `network_g` has them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import quantsr
from quantsr.archs import contract
from quantsr.archs.constructors import build_network
from quantsr.config.networks import check_network
from quantsr.config.problems import Problems
from quantsr.engine.network_file import network_file
from quantsr.errors import InputError
from quantsr.quant import calibrate, manifest
from quantsr.trained_files import checkpoint

EDSR = {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 8, "num_block": 2, "upscale": 2}
RULES = {"body.0.*": "W4A8", "body.*": 3, "conv_after_body": "float"}


def build(**changes):
    return build_network("Quantized", {"network": EDSR, "rules": RULES, **changes})


def test_rules_give_layers_their_bits_and_the_first_that_matches_decides() -> None:
    bits = {row["name"]: (row["bits_w"], row["bits_a"], row["quantizer"]) for row in manifest(build())}
    assert bits.pop("body.0.conv1") == bits.pop("body.0.conv2") == (4, 8, "RLQ")
    assert bits.pop("body.1.conv1") == bits.pop("body.1.conv2") == (3, 3, "RLQ")
    assert set(bits.values()) == {(32, 32, None)}


def test_the_contract_is_that_of_the_network_inside() -> None:
    found = contract.of(build())
    assert (found.type, found.scale) == ("Quantized", 2)
    assert found.arguments["network"] == EDSR


def test_a_checkpoint_describes_the_network(tmp_path: Path) -> None:
    net = build()
    calibrate(net, [torch.rand(1, 3, 8, 8)])
    net.eval()
    checkpoint.save(tmp_path / "net.pth", network_file(net, None, iteration=3))
    x = torch.rand(1, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(quantsr.load(tmp_path / "net.pth")(x), net(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": {"num_feat": 8}}, r"network_g.network.type: missing"),
        ({"network": {"type": "Absent"}}, "no network 'Absent'"),
        ({"rules": {"body.*": "W9A4"}}, "bits are 2 to 8"),
        ({"rules": {"body.*": "many"}}, "'many' names no bits"),
        ({"rules": {"tail.*": 4}}, r"rule 'tail\.\*' matches no layer"),
        ({"quantizer": "Absent"}, "'Absent' is not registered"),
        ({"granularity": "row"}, "must be tensor or channel"),
    ],
)
def test_wrong_arguments_are_named_in_one_line(changes, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        build(**changes)
    assert "\n" not in str(error.value)


def test_option_files_are_checked_against_the_signature() -> None:
    problems = Problems("file.yml")
    section = {"type": "Quantized", "network": EDSR, "rule": {"body.*": 4}}
    check_network("network_g", section, 2, problems)
    text = "\n".join(problems.lines)
    assert "network_g.rule: unknown option of Quantized; did you mean 'rules'?" in text
    assert "network_g.rules: missing; Quantized needs it" in text
