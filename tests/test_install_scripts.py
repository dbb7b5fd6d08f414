"""`scripts/check_installed.py` and `check_install.sh` notice what they are there for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.scripts import load_script

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """checked(pictures by engine): runs the check as in an installation with one x2 network."""
    script = load_script("check_installed")
    import quantsr
    from quantsr.trained_files import names

    place = tmp_path / "site-packages" / "quantsr" / "__init__.py"
    monkeypatch.setattr(quantsr, "__file__", str(place))
    monkeypatch.setattr(names, "shipped", lambda: ["some"])

    def run(pictures: dict[str, np.ndarray]) -> None:
        monkeypatch.setattr(script, "upscaled", lambda folder, name, engine: pictures[engine])
        script.main(list(pictures))

    run.small = script.picture()  # type: ignore[attr-defined]
    return run


def test_good_pictures_pass_and_wrong_ones_do_not(checked) -> None:
    good = checked.small.astype(int).repeat(2, 0).repeat(2, 1)
    checked({"native": good})
    checked({"native": good, "openvino": good + 1})
    with pytest.raises(SystemExit, match="wrong picture"):
        checked({"native": good[::-1]})
    other = good.copy()
    other[:4] += 2
    with pytest.raises(SystemExit, match=r"engines differ in 5\.00%"):
        checked({"native": good, "openvino": other})


def test_a_checkout_is_no_installation() -> None:
    words = [sys.executable, str(ROOT / "scripts" / "check_installed.py")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 1
    assert "is a checkout; run the interpreter of an environment" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"), [(["--nonsense"], "unknown argument"), (["none.whl"], "there is no such file")]
)
def test_bad_arguments_end_with_2(words: list[str], message: str) -> None:
    script = ROOT / "scripts" / "check_install.sh"
    done = subprocess.run(["sh", str(script), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
