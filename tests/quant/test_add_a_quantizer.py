"""The example of docs/how-to/add_a_quantizer.md as a file: it is imported, checked and trained."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quantsr import cli, quant
from quantsr.archs import QuantSR_C
from quantsr.quant import QUANTIZER_REGISTRY, calibrate, get_quantizer, manifest, quantizer_names

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "add_a_quantizer.md"
OPTIONS = ROOT / "options" / "train" / "QuantSR_C" / "mini_w4a4_x2.yml"
FILE = "max_abs_quantizer.py"


def example() -> str:
    text = PAGE.read_text(encoding="utf-8")
    assert f"`quantsr/quant/{FILE}`" in text
    return re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose files are modules of quantsr.quant during the test only."""
    quantizer_names()  # registers all existing ones before the registry is copied
    monkeypatch.setattr(quant, "__path__", [*quant.__path__, str(tmp_path)])
    monkeypatch.setattr(QUANTIZER_REGISTRY, "_obj_map", dict(QUANTIZER_REGISTRY._obj_map))
    known = set(sys.modules)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("quantsr.quant.")]:
        module = sys.modules[name]
        if name not in known and str(tmp_path) in str(module.__file__):
            del sys.modules[name]
            vars(quant).pop(name.rpartition(".")[2], None)


def test_the_example_is_found_and_trains_in_a_network(folder, capsys):
    words = ["check", "-opt", str(OPTIONS), "--set", "network_g.quantizer=MaxAbs"]
    assert cli.main(words) == 2
    assert "no quantizer 'MaxAbs' is registered" in capsys.readouterr().err
    (folder / FILE).write_text(example(), encoding="utf-8")
    assert cli.main(words) == 0
    assert "4 for weights, 4 for activations (MaxAbs)" in capsys.readouterr().out
    for granularity in ("tensor", "channel"):
        how = {"quantizer": "MaxAbs", "weight_granularity": granularity}
        net = QuantSR_C(num_feat=4, num_block=2, upscale=2, nbits_w=3, nbits_a=4, **how)
        calibrate(net, [torch.rand(1, 3, 8, 8)])
        for amp in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=amp):
                net(torch.rand(1, 3, 8, 8)).float().square().mean().backward()
        assert net.body[0].conv1.weight.grad.abs().sum() > 0
        assert net.body[1].conv2.weight_codes().unique().numel() <= 2**3
        assert {r["quantizer"] for r in manifest(net) if r["bits_w"] == 3} == {"MaxAbs"}


def test_get_quantizer_imports_the_file(folder):
    (folder / FILE).write_text(example(), encoding="utf-8")
    assert get_quantizer("MaxAbs").__name__ == "MaxAbs"


def test_a_file_that_cannot_be_imported_is_one_line(folder, capsys):
    (folder / "broken_quantizer.py").write_text("import no_such_module\n", encoding="utf-8")
    assert cli.main(["check", "-opt", str(OPTIONS), "--set", "network_g.quantizer=PACT"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(folder / "broken_quantizer.py") in error
    assert "No module named 'no_such_module'" in error
    assert get_quantizer("RLQ")  # registered before the files are imported


@pytest.mark.integration
def test_the_example_is_found_in_a_copy_of_the_package(tmp_path):
    unneeded = shutil.ignore_patterns("__pycache__", "*.safetensors")
    shutil.copytree(ROOT / "quantsr", tmp_path / "quantsr", ignore=unneeded)
    (tmp_path / "quantsr" / "quant" / FILE).write_text(example(), encoding="utf-8")
    words = ["check", "-opt", str(OPTIONS), "--no-paths", "--set", "network_g.quantizer=MaxAbs"]
    done = subprocess.run(
        [sys.executable, "-m", "quantsr", *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "(MaxAbs)" in done.stdout
