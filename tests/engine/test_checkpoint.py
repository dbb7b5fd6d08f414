"""Checkpoints are complete or absent, never unpickled, and their problems are named."""

from __future__ import annotations

import errno
import os
import pickle
import random
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quantsr import files, quant
from quantsr.archs.released import RANKING
from quantsr.basicsr_compat import EDSR
from quantsr.engine import build, training_state
from quantsr.engine.network_file import network_file
from quantsr.errors import InputError, WorkError
from quantsr.trained_files import checkpoint
from tests.engine.test_commands import released_names

CONTENT = {"params": {"a": torch.arange(6.0).reshape(2, 3)}, "n": 3, "names": ["x", None]}


def small_net(**changes: Any) -> torch.nn.Module:
    net = build.build_network("QuantSR_C", {"num_feat": 4, "num_block": 4, "upscale": 2, **changes})
    return quant.calibrate(net, [torch.rand(1, 3, 6, 6)])


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.pth"
    checkpoint.save(path, CONTENT)
    found = checkpoint.load(path)
    assert torch.equal(found["params"]["a"], CONTENT["params"]["a"])
    assert (found["n"], found["names"]) == (3, ["x", None])
    assert [p.name for p in path.parent.iterdir()] == ["a.pth"]


@pytest.mark.parametrize("kept", [0, 1, 50, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "cut.pth"
    checkpoint.save(path, CONTENT)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match=r"cut\.pth: (truncated|not a checkpoint)"):
        checkpoint.load(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_truncated_file_of_an_old_torch_is_named(tmp_path: Path) -> None:
    """torch's reader of this format also raises IndexError and struct.error."""
    whole, path = tmp_path / "old.pth", tmp_path / "cut.pth"
    torch.save(CONTENT, whole, _use_new_zipfile_serialization=False)
    content = whole.read_bytes()
    for size in range(0, len(content) - 1, 7):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match=r"cut\.pth: (truncated|not a checkpoint)"):
            checkpoint.load(path)


def test_files_of_other_formats_are_named(tmp_path: Path) -> None:
    for name, content in {
        "text.pth": b"hello, not a checkpoint",
        "zip.pth": b"PK\x05\x06" + bytes(18),
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            checkpoint.load(tmp_path / name)
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(InputError, match=r"list\.pth: holds a list"):
        checkpoint.load(tmp_path / "list.pth")
    with pytest.raises(InputError, match=r"gone\.pth: no such file"):
        checkpoint.load(tmp_path / "gone.pth")


def test_weights_of_an_ncnn_file_name_the_file_with_its_structure(tmp_path: Path) -> None:
    (tmp_path / "net.bin").write_bytes(b"\0\0\0\0\1\2\3\4")
    (tmp_path / "net.param").write_text("7767517\n")
    with pytest.raises(InputError, match=r"net\.bin: not a checkpoint; .* of ncnn: name .*net\.param$"):
        checkpoint.load(tmp_path / "net.bin")


class Malicious:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_never_runs(tmp_path: Path, legacy: bool) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    if legacy:
        path.write_bytes(pickle.dumps({"params": Malicious(trace)}))
    else:
        torch.save({"params": Malicious(trace)}, path)
    with pytest.raises(InputError, match=r"evil\.pth"):
        checkpoint.load(path)
    assert not trace.exists()


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_raises_and_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "a.pth"
    checkpoint.save(path, CONTENT)
    before = path.read_bytes()

    def fail(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(WorkError, match=r"a\.pth: cannot be written \(No space left on device\)"):
        checkpoint.save(path, {"params": {}})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_a_file_size_limit_leaves_the_earlier_file(tmp_path: Path) -> None:
    """The kernel stops the write half way, as a full disk does."""
    path = tmp_path / "a.pth"
    checkpoint.save(path, CONTENT)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(WorkError, match=r"a\.pth: cannot be written"):
            checkpoint.save(path, {"params": {"big": torch.zeros(100_000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_the_rename_comes_after_the_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            files.os, name, lambda *a, real=real, name=name: (calls.append(name), real(*a))[1]
        )
    files.write_text(tmp_path / "a.txt", "x")
    assert calls == ["fsync", "replace", "fsync"]  # the file, its name, the folder


def test_random_states_are_restored(tmp_path: Path) -> None:
    def draw() -> tuple[Any, ...]:
        legacy = np.random.normal(size=3).tolist()  # noqa: NPY002
        return random.random(), random.gauss(0, 1), legacy, torch.rand(3).tolist()

    draw()  # leaves a cached normal value in Python's and NumPy's generators
    random.gauss(0, 1)
    checkpoint.save(tmp_path / "r.state", training_state.random_states())
    first = draw()
    draw()
    training_state.set_random_states(checkpoint.load(tmp_path / "r.state"))
    assert draw() == first


def test_a_network_file_rebuilds_its_network(tmp_path: Path) -> None:
    """From ``quantsr`` and ``params_ema`` alone: architecture, ranking, depths and parameters."""
    from quantsr.loading import load

    net, ema = small_net(depths=[4, 3]), small_net(depths=[4, 3])
    for either in (net, ema):
        either.set_ranking([2, 0, 3, 1])
    path = tmp_path / "net.pth"
    checkpoint.save(path, network_file(net, ema, iteration=7))
    found = load(path)
    x = torch.rand(1, 3, 7, 5)
    assert found.ranking == (2, 0, 3, 1)
    assert found.depths == (4, 3)
    assert not found.training
    with torch.no_grad():
        for depth in (4, 3):
            assert torch.equal(found(x, depth=depth), ema.eval()(x, depth=depth))
    content = checkpoint.load(path)
    assert content["quantsr"]["iteration"] == 7
    assert {r["bits_w"] for r in content["quantsr"]["manifest"]} == {4, 32}


def test_basicsr_reads_a_network_file(tmp_path: Path) -> None:
    """BasicSR's loader uses ``torch.load(path)[param_key]``."""
    net = small_net()
    path = tmp_path / "net.pth"
    checkpoint.save(path, network_file(net, None, iteration=1))
    state = torch.load(path, map_location="cpu", weights_only=True)["params"]
    assert small_net().load_state_dict(state).missing_keys == []


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "new.pth"
    content = network_file(small_net(), None, iteration=1)
    content["quantsr"]["format_version"] = checkpoint.FORMAT_VERSION + 1
    checkpoint.save(path, content)
    with pytest.raises(InputError, match=r"new\.pth: checkpoint format 2.*upgrade"):
        build.load_checkpoint(small_net(), str(path))


def test_parameters_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    checkpoint.save(path, network_file(small_net(), None, iteration=1))
    with pytest.raises(
        InputError, match=r"net\.pth: not a checkpoint of this QuantSR_C .*of another shape body"
    ):
        build.load_checkpoint(small_net(num_feat=6), str(path))
    with pytest.raises(InputError, match="unknown body"):
        build.load_checkpoint(small_net(num_block=2), str(path))


@pytest.mark.parametrize(("bits", "wanted"), [(4, RANKING), (2, None)])
def test_the_released_checkpoint_is_ranked_as_in_its_test_script(
    bits: int, wanted: Any, tmp_path: Path
) -> None:
    """Not by its shortcuts, which training at all depths has changed."""
    shape = {
        "num_in_ch": 3,
        "num_out_ch": 3,
        "num_feat": 2,
        "num_block": 32,
        "nbits_w": bits,
        "nbits_a": bits,
    }
    net = build.build_network("QEDSR_Ours", shape)
    torch.save({"params": released_names(net.state_dict())}, tmp_path / "released.pth")
    build.load_checkpoint(net, str(tmp_path / "released.pth"))
    assert net.ranking == wanted
    assert wanted is None or net.blocks_kept(16)[-3:] == (29, 30, 31)


def test_param_key_selects_the_state_dict(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a, b = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
    both = {"params": a, "params_ema": b}
    assert checkpoint.parameters(both, "f", "params")["w"] == 0
    assert checkpoint.parameters(both, "f", "params_ema")["w"] == 1
    assert checkpoint.parameters(both, "f")["w"] == 1
    assert checkpoint.parameters({"params": a}, "f", "params_ema")["w"] == 0
    assert checkpoint.parameters({"module.w": a["w"]}, "f", "params")["w"] == 0
    with pytest.raises(InputError, match="no entry 'other', only params, params_ema"):
        checkpoint.parameters(both, "f", "other")


def test_a_float_network_of_basicsr_is_rebuilt_from_its_options(make_options: Any, tmp_path: Path) -> None:
    from quantsr.loading import load

    shape = {"num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1, "upscale": 2}
    net = EDSR(**shape)
    options = make_options(network_g={"type": "EDSR", **shape})
    path = tmp_path / "edsr.pth"
    checkpoint.save(path, network_file(net, None, iteration=1, options=options.dump()))
    picture = torch.rand(1, 3, 5, 6)
    with torch.no_grad():
        assert torch.equal(load(path)(picture), net.eval()(picture))


def test_a_network_is_loaded_by_the_name_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from quantsr.loading import load

    monkeypatch.chdir(tmp_path)
    models = Path("experiments/mine/models")
    checkpoint.save(models / "net_g_latest.pth", network_file(small_net(), None, iteration=1))
    assert load("mine").depths == (4, 2, 1)
    with pytest.raises(InputError, match="other: no such checkpoint"):
        load("other")
    checkpoint.save(Path("bare.pth"), {"params": checkpoint.cpu_state(small_net())})
    with pytest.raises(InputError, match="has no description of its network"):
        load("bare.pth")
