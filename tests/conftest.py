"""Fixtures for all tests: one CPU thread, fixed seeds, and the real data sets where they exist."""

from __future__ import annotations

import os
import random
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

from tests.browser import browser  # noqa: F401 (a fixture of all tests)

ROOT = Path(__file__).resolve().parents[1]

# Set before torch is imported, so that several test processes do not compete for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config: pytest.Config) -> None:
    """One intra-op thread: small tensors run faster, and sums do not depend on the number of
    cores. Hypothesis sets no time limits, which a busy machine or sanitizers would exceed."""
    try:
        from hypothesis import settings

        settings.register_profile("quantsr", deadline=None)
        settings.load_profile("quantsr")
    except ImportError:
        pass
    try:
        import torch
    except ImportError:  # the upscaling-only installation
        return
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where CUDA is absent."""
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Logs with names that are not UTF-8 can be sent between processes (``pytest -n 2``)."""
    report = yield
    report.sections = [
        (title, text.encode("utf-8", "backslashreplace").decode()) for title, text in report.sections
    ]
    return report


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """Every test starts from the same random state, independent of the tests before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (BasicSR draws from the global state)
    try:
        import torch
    except ImportError:
        return
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The checkout: the folder with train.sh, options/ and datasets/."""
    return ROOT


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder with ``benchmark/`` (Set5, Set14, B100) and ``train/``: real pictures, not part of
    the repository.

    ``QUANTSR_DATA`` names it; the default is ``../shared/data`` beside the checkout. Tests that
    need it are skipped where it is absent.
    """
    root = Path(os.environ.get("QUANTSR_DATA", ROOT.parent / "shared" / "data"))
    if not (root / "benchmark").is_dir():
        pytest.skip(
            f"no data sets in {root}; set QUANTSR_DATA to the folder that holds benchmark/ and train/"
        )
    return root
