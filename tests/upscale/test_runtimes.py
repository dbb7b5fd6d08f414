"""Engines behind one interface: the same picture from each, and clear words where one is
missing."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from quantsr.deploy.engines import openvino, select
from quantsr.deploy.engines import reference as integer_reference
from quantsr.errors import InputError
from tests.deploy import quantsr_t


@pytest.mark.parametrize("engine", ["openvino", "ncnn", "onnxruntime", "torch"])
@pytest.mark.parametrize("head_tail_bits", [32, 8])
def test_engines_agree_with_the_reference(engine: str, head_tail_bits: int, picture) -> None:
    from quantsr.deploy.stand_ins.convolutional import random_model

    pytest.importorskip(engine)
    model = random_model(
        num_feat=16, num_block=2, depths=(2, 1), head_tail_bits=head_tail_bits, first_bits=32
    )
    options = {"tail": "layers"} if engine == "openvino" else {}
    image = picture(18, 22)
    for depth in (2, 1):
        result = select.create(engine, model, depth, threads=1, **options).run(image[None])[0]
        difference = np.abs(result.astype(int) - integer_reference.run(model, image, depth))
        assert result.dtype == np.uint8
        assert (difference > 1).mean() <= 0.001
        # PyTorch, ONNX Runtime, and OpenVINO on most processors, leave 16-bit inputs in float.
        assert (difference > 0).mean() <= 0.05


@pytest.mark.parametrize("engine", ["openvino", "ncnn", "onnxruntime", "torch"])
def test_batches_and_tiles_come_back_in_order(engine: str, small, picture) -> None:
    pytest.importorskip(engine)
    net = select.create(engine, small, 1, threads=2)
    images = np.stack([picture(9, 11, seed=seed) for seed in range(5)])
    batch = net.run(images)
    tiles = dict(net.run_tiles((index, image) for index, image in enumerate(images)))
    assert list(tiles) == list(range(5))
    difference = np.abs(np.stack(list(tiles.values())).astype(int) - batch)
    assert (difference > 1).mean() == 0
    # The two graphs compute with integers; torch sums floats in an order that depends on the batch.
    assert (difference > 0).mean() <= (0.001 if engine == "torch" else 0)


def test_signals_are_survived_after_engines_that_died_in_any_order() -> None:
    """OpenVINO's cores exchange the thread's signal stack on processors with AMX; see
    openvino_core.core."""
    pytest.importorskip("openvino")
    code = (
        "import faulthandler, os, signal, numpy as np\n"
        "from quantsr.deploy.engines import openvino, select\n"
        "from quantsr.deploy.stand_ins.convolutional import random_model\n"
        "faulthandler.enable()\n"  # has a signal stack of its own, which comes back at the end
        "signal.signal(signal.SIGUSR1, lambda *_: print('handled'))\n"
        "model, image = random_model(num_feat=16, num_block=1, depths=(1,)), np.zeros((1, 8, 8, 3), np.uint8)\n"
        "engines = [select.create('openvino', model, threads=1) for _ in range(2)]\n"
        "for engine in engines: engine.run(image)\n"
        "engine = None\n"
        "while engines: del engines[0]\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "handled\n")


def test_tiles_of_two_shapes_may_alternate(small, picture) -> None:
    net = select.create("openvino", small, 1, threads=2)
    images = [picture(9, 11) if index % 2 else picture(8, 6) for index in range(6)]
    for index, result in net.run_tiles(enumerate(images)):
        np.testing.assert_array_equal(result, net.run(images[index][None])[0])


def test_tiles_left_and_interleaved_disturb_no_others(small, picture) -> None:
    net = select.create("openvino", small, 1, threads=2)
    images = [picture(9, 11, seed=seed) for seed in range(6)]
    expected = [net.run(image[None])[0] for image in images]
    left = net.run_tiles(enumerate(images))
    assert next(left)[0] == 0
    pairs = zip(net.run_tiles(enumerate(images)), net.run_tiles(enumerate(images[::-1])), strict=True)
    for (index, one), (_, other) in pairs:
        np.testing.assert_array_equal(one, expected[index])
        np.testing.assert_array_equal(other, expected[5 - index])
    left.close()
    np.testing.assert_array_equal([result for _, result in net.run_tiles(enumerate(images))], expected)


def test_pictures_of_several_threads_share_an_engine(small, picture) -> None:
    net = select.create("openvino", small, 1, threads=2)
    images = [picture(9, 11, seed=seed) for seed in range(8)]
    expected = [net.run(image[None])[0] for image in images]
    with ThreadPoolExecutor(4) as pool:
        got = pool.map(lambda image: dict(net.run_tiles([(0, image), (1, image)]))[1], images)
        np.testing.assert_array_equal(list(got), expected)
        np.testing.assert_array_equal(list(pool.map(lambda image: net.run(image[None])[0], images)), expected)


def test_missing_package_names_its_install_line(small, monkeypatch) -> None:
    monkeypatch.setattr(select, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"engine onnxruntime: .*pip install onnxruntime"):
        select.create("onnxruntime", small)
    with pytest.raises(InputError, match=r"engine ncnn: .*pip install ncnn"):
        select.create("ncnn", small)
    monkeypatch.setattr(select, "native_is_fastest", lambda _: False)
    with pytest.raises(InputError, match="pip install openvino"):
        select.create("auto", small)


def test_auto_takes_what_is_there(small, monkeypatch) -> None:
    pytest.importorskip("onnxruntime")
    real = select.find_spec
    monkeypatch.setattr(select, "find_spec", lambda name: None if name == "openvino" else real(name))
    monkeypatch.setattr(select, "native_is_fastest", lambda _: False)
    assert select.create("auto", small).name.startswith("onnxruntime")


def test_auto_takes_the_next_where_an_engine_lacks_an_operation(small, monkeypatch) -> None:
    pytest.importorskip("ncnn")
    real, absent = select.find_spec, {"openvino", "onnxruntime"}
    monkeypatch.setattr(select, "find_spec", lambda name: None if name in absent else real(name))
    monkeypatch.setattr(select, "native_is_fastest", lambda model: False)
    assert select.create("auto", small).name == "ncnn"
    assert select.create("auto", quantsr_t.small_model()).name.startswith("torch")


def test_unknown_engine_and_depth_are_named(small) -> None:
    with pytest.raises(InputError, match="engine: 'tensorrt' is not known; choose one of auto, native"):
        select.create("tensorrt", small)
    with pytest.raises(InputError, match="depth: 7"):
        select.create("openvino", small, 7)


@pytest.mark.parametrize("engine", ["auto", "native", "openvino", "ncnn", "onnxruntime", "torch"])
@pytest.mark.parametrize("threads", [0, -3])
def test_threads_are_at_least_one(engine: str, threads: int, small) -> None:
    with pytest.raises(InputError, match=f"threads: must be at least 1, got {threads}"):
        select.create(engine, small, threads=threads)


def test_compiled_graphs_are_kept_in_the_users_cache(small, picture, tmp_path) -> None:
    select.create("openvino", small, 1).run(picture(8, 8)[None])
    assert any((tmp_path / "cache" / "quantsr" / "openvino").iterdir())


def test_the_cache_keeps_what_was_used_last(tmp_path) -> None:
    for age, name in enumerate("abcd"):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    openvino._drop_oldest(tmp_path, 25)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_cache_that_cannot_be_written_is_done_without(small, picture, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert openvino.cache_folder() is None
    assert select.create("openvino", small, 1).run(picture(8, 8)[None]).shape == (1, 32, 32, 3)


def test_a_user_without_a_home_has_no_cache(monkeypatch) -> None:
    def home() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(openvino.Path, "home", home)
    assert openvino.cache_folder() is None


@pytest.mark.gpu
def test_torch_runs_on_cuda(small, picture) -> None:
    net = select.create("torch", small, 3)
    assert net.name == "torch:cuda"
    difference = np.abs(
        net.run(picture(18, 22)[None])[0].astype(int) - integer_reference.run(small, picture(18, 22), 3)
    )
    assert (difference > 1).mean() <= 0.01
