"""BasicSR is imported by one module only, without its five faults."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from quantsr import basicsr_compat
from quantsr.basicsr_compat import BaseModel, importable


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_all_public_names_exist() -> None:
    for name in basicsr_compat.__all__:
        assert hasattr(basicsr_compat, name), name
    assert {"EDSR", "MSRResNet", "SwinIR"} <= set(basicsr_compat.ARCH_REGISTRY.keys())
    assert "PairedImageDataset" in basicsr_compat.DATASET_REGISTRY
    assert {"L1Loss", "MSELoss", "CharbonnierLoss"} <= set(basicsr_compat.LOSS_REGISTRY.keys())
    assert {"calculate_psnr", "calculate_ssim"} <= set(basicsr_compat.METRIC_REGISTRY.keys())


def test_a_fresh_import_is_quiet_and_leaves_the_faulty_modules_out() -> None:
    code = (
        "import sys, quantsr.basicsr_compat\n"
        "faulty = ['basicsr.utils.options', 'basicsr.models.sr_model', 'basicsr.data.degradations', 'basicsr.train',"
        " 'basicsr.test', 'torchvision.transforms.functional_tensor']\n"
        "sys.exit(','.join(name for name in faulty if name in sys.modules) or 0)"
    )
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_fault_1_missing_modules_have_substitutes_only_while_importing() -> None:
    name = "torchvision.transforms.functional_tensor"
    there = importlib.util.find_spec(name) is not None
    with importable():
        assert importlib.import_module(name).rgb_to_grayscale(torch.ones(3, 2, 2)).shape == (1, 2, 2)
    assert (name in sys.modules) == there


def test_fault_1_distutils_is_not_needed() -> None:
    version = basicsr_compat._LooseVersion
    assert version("0.29.2+cpu") >= version("0.9.0")
    assert version("0.8.1") < version("0.9.0")


def test_fault_2_a_missing_basicsr_is_one_line_with_a_remedy() -> None:
    code = (
        "import importlib.machinery as m\n"
        "found = m.PathFinder.find_spec\n"
        "m.PathFinder.find_spec = classmethod(lambda cls, name, path=None, target=None:"
        " None if name.startswith('basicsr') else found(name, path, target))\n"
        "from quantsr.errors import InputError\n"
        "try:\n"
        "    import quantsr.basicsr_compat\n"
        "except InputError as error:\n"
        "    print(error)\n"
    )
    done = run_python(code)
    assert re.fullmatch(r"basicsr: not installed for Python \S+; install .*3\.12\n", done.stdout), done.stderr


@pytest.mark.parametrize("name", ["init_dist", "_init_dist_pytorch", "_init_dist_slurm"])
def test_fault_3_no_shell_is_started(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from basicsr.utils import dist_util

    monkeypatch.setattr("subprocess.getoutput", lambda command: pytest.fail(f"a shell ran {command}"))
    monkeypatch.setenv("SLURM_NODELIST", "$(false)")
    with pytest.raises(RuntimeError, match=r"quantsr\.hardware\.processes"):
        getattr(dist_util, name)("slurm")


def test_fault_4_methods_for_files_raise() -> None:
    model = BaseModel({"num_gpu": 0, "is_train": True})
    for method in (model.save_network, model.save_training_state, model.load_network):
        with pytest.raises(RuntimeError, match=r"quantsr\.trained_files\.checkpoint"):
            method(None, "net_g", 1)


def test_faults_4_and_5_only_this_module_imports_basicsr(repo_root: Path) -> None:
    pattern = re.compile(r"^\s*(?:from|import)\s+basicsr\b|import_module\(\s*[\"']basicsr", re.MULTILINE)
    importers = [
        path.name for path in (repo_root / "quantsr").rglob("*.py") if pattern.search(path.read_text())
    ]
    assert importers == ["basicsr_compat.py"]
    source = (repo_root / "quantsr/basicsr_compat.py").read_text()
    body = source[source.index("_enter_packages()\ntry:") :]
    assert not re.search(r"basicsr\.utils\.options|basicsr\.models\.sr_model|basicsr\.(train|test)\b", body)


def test_other_modules_can_be_imported_and_register_themselves() -> None:
    with importable():
        import basicsr.archs.rcan_arch  # noqa: F401
    assert "RCAN" in basicsr_compat.ARCH_REGISTRY
