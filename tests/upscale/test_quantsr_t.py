"""QuantSR-T through `Upscaler`, engines, tiles and the command line."""

from __future__ import annotations

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantsr import Upscaler, cli
from quantsr.deploy.engines import reference as integer_reference
from quantsr.deploy.engines import select
from quantsr.deploy.packed import packing
from quantsr.deploy.upscale import tiling
from quantsr.errors import InputError
from tests.deploy.quantsr_t import small_model


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("quantsr_t") / "network.safetensors"
    packing.save(small_model(), path)
    return path


@pytest.mark.parametrize("name", ["openvino", "onnxruntime", "torch"])
def test_every_engine_at_every_depth(name, file, picture) -> None:
    pytest.importorskip(name)
    image = picture(13, 18)
    model = packing.load(file)
    if (
        name != "onnxruntime"
    ):  # these leave 16-bit inputs in float, and the next RSTB of a random network amplifies that
        model = model.with_wide_inputs_in_float()
    for depth in model.header.depths:
        result = Upscaler(file, name, depth=depth)(image)
        difference = np.abs(result.astype(int) - integer_reference.run(model, image, depth))
        assert (difference <= 1).mean() >= 0.999


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_sixteen_bits_keep_their_precision(name, picture) -> None:
    pytest.importorskip(name)
    image = picture(12, 14, np.uint16)
    result = Upscaler(small_model(), name)(image)
    assert result.dtype == np.uint16
    assert len(np.unique(result % 257)) > 100  # not merely 8 bits spread out


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    halo=st.integers(0, 20),
    grid=st.sampled_from([4, 8]),
    tile=st.one_of(st.none(), st.integers(1, 70)),
)
def test_tiles_lie_on_the_grid_and_cover_once(height, width, halo, grid, tile) -> None:
    plan = tiling.plan(height, width, halo, tile, 3000, grid=grid)
    for spans, length in ((plan.rows, height), (plan.columns, width)):
        kept = [i for span in spans for i in range(span.keep_start, span.keep_stop)]
        assert kept == list(range(length))
        padded = -(-length // grid) * grid
        for span in spans:
            assert span.start % grid == span.size % grid == span.keep_start % grid == 0
            assert span.start == 0 or span.keep_start - span.start >= halo
            assert span.start + span.size == padded or span.start + span.size - span.keep_stop >= halo
            assert span.start + span.size <= padded


def test_tiles_continue_the_picture_by_reflection(picture) -> None:
    image = picture(11, 18)
    (row,), (*_, column) = tiling.plan(11, 18, 4, 8, grid=4).rows, tiling.plan(11, 18, 4, 8, grid=4).columns
    part = tiling.read(image, row, column)
    assert part.shape == (12, 16, 3)
    whole = np.pad(image, [(0, 1), (0, 2), (0, 0)], "reflect")
    np.testing.assert_array_equal(part, whole[row.read, column.read])


def test_tiles_that_see_everything_are_the_whole_picture(picture) -> None:
    """With a halo as wide as the picture nothing but the reflection at the border can differ, and
    does not."""
    image = picture(29, 42)
    whole = Upscaler(small_model(), "torch")(image)
    np.testing.assert_array_equal(Upscaler(small_model(), "torch", tile=44)(image), whole)
    upscaler = Upscaler(small_model(), "torch", tile=8)
    upscaler.halo = 44
    np.testing.assert_array_equal(upscaler(image), whole)


def test_border_effect_of_tiles(picture) -> None:
    """Small at the default overlap, and larger without: the overlap does its work."""
    image = picture(40, 96)
    model = small_model(num_block=1, head_tail_bits=32)
    whole = Upscaler(model, "openvino")(image).astype(int)
    upscaler = Upscaler(model, "openvino", tile=16)
    assert (upscaler.halo, upscaler.halo % 4) == (32, 0)
    with_overlap = np.abs(upscaler(image) - whole)
    upscaler.halo = 0
    without = np.abs(upscaler(image) - whole)
    assert with_overlap.mean() < 0.02 < 0.2 < without.mean()
    assert (with_overlap <= 1).mean() > 0.999


def test_bf16_is_openvinos_and_close(picture) -> None:
    pytest.importorskip("openvino")
    model, image = small_model(num_block=1), picture(24, 24)
    fast = Upscaler(model, precision="bf16")
    assert fast.engine == "openvino"
    assert fast._engine._config["INFERENCE_PRECISION_HINT"] == "bf16"
    difference = np.abs(fast(image).astype(int) - Upscaler(model, "openvino")(image))
    assert np.sqrt((difference**2).mean()) < 10  # a random network amplifies the codes that flip
    with pytest.raises(InputError, match="precision: engine torch has f32 only"):
        Upscaler(model, "torch", precision="bf16")
    with pytest.raises(InputError, match="precision: must be one of f32, bf16, got 'int3'"):
        Upscaler(model, precision="int3")


def test_compiled_shapes_are_few(picture) -> None:
    pytest.importorskip("openvino")
    engine = select.create("openvino", small_model(num_block=1), threads=1)
    upscaler = Upscaler(small_model(num_block=1), "openvino", tile=16)
    upscaler._engine = engine
    upscaler(picture(45, 101))
    assert len(engine._requests) == 1


def test_command_line(file, picture, tmp_path, capsys) -> None:
    cv2.imwrite(str(tmp_path / "in.png"), picture(11, 13))
    words = ["upscale", str(tmp_path / "in.png"), "-o", str(tmp_path / "out.png"), "--model", str(file)]
    assert cli.main([*words, "--depth", "1"]) == 0
    assert cv2.imread(str(tmp_path / "out.png")).shape == (22, 26, 3)
    assert cli.main(["cost", "-m", str(file), "--size", "6x9", "--json"]) == 0
    assert cli.main(["bench", "-m", str(file), "--size", "6x9", "--runs", "1", "--engine", "torch"]) == 0
    out = capsys.readouterr().out
    assert [row["depth"] for row in json.loads(out[out.index("{") : out.rindex("}") + 1])["depths"]] == [2, 1]


def test_imports_neither_torch_nor_basicsr(file) -> None:
    code = (
        "import sys, numpy as np\n"
        "from quantsr import Upscaler\n"
        f"Upscaler({str(file)!r}, 'openvino')(np.zeros((8, 8, 3), np.uint8))\n"
        "print(sorted({'torch', 'basicsr', 'torchvision', 'cv2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
