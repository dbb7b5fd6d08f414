"""`quantsr.Upscaler`: types, bands, self-ensemble, depth by budget, and what it does not import."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from quantsr import Upscaler
from quantsr.deploy.engines import reference as integer_reference
from quantsr.deploy.stand_ins.convolutional import random_model
from quantsr.deploy.upscale import upscaler
from quantsr.errors import InputError
from quantsr.trained_files import names
from tests.deploy import quantsr_t


def test_from_file_at_every_depth(network_file, small, picture) -> None:
    image = picture(15, 17)
    for depth in small.header.depths:
        upscale = Upscaler(network_file, depth=depth)
        assert (upscale.depth, upscale.scale, upscale.depths) == (depth, 4, (3, 2, 1))
        result = upscale(image)
        assert result.shape == (60, 68, 3)
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, Upscaler(small, depth=depth)(image))


def test_is_the_reference_with_a_float_tail(picture) -> None:
    model = random_model(num_feat=16, num_block=2, depths=(2,), head_tail_bits=32)
    difference = np.abs(
        Upscaler(model, "openvino")(picture(30, 20)).astype(int)
        - integer_reference.run(model, picture(30, 20))
    )
    assert difference.max() <= 1


def test_sixteen_bits_keep_their_precision(small, picture) -> None:
    image = picture(12, 14, np.uint16)
    upscale = Upscaler(small, "openvino")
    result = upscale(image)
    assert result.dtype == np.uint16
    assert len(np.unique(result % 257)) > 100  # not merely 8 bits spread out
    coarse = (np.rint(image / 257.0) * 257).astype(np.uint16)
    exact = upscale(coarse)
    np.testing.assert_array_equal(np.rint(exact / 257.0), upscale((coarse // 257).astype(np.uint8)))
    np.testing.assert_array_equal(Upscaler(small, "openvino", tile=5)(image), result)


def test_sixteen_bits_pass_through_eight_where_the_engine_takes_no_more(small, picture) -> None:
    pytest.importorskip("onnxruntime")
    image = picture(9, 8, np.uint16)
    expected = Upscaler(small, "onnxruntime")(np.rint(image / np.float32(257)).astype(np.uint8))
    np.testing.assert_array_equal(Upscaler(small, "onnxruntime")(image), expected.astype(np.uint16) * 257)


def test_bands_are_the_picture_in_order(small, picture) -> None:
    image = picture(50, 30)
    upscale = Upscaler(small, tile=16)
    bands = list(upscale.bands(image))
    assert len(bands) > 1
    assert [top for top, _ in bands] == [0, *np.cumsum([len(band) for _, band in bands])[:-1]]
    np.testing.assert_array_equal(np.concatenate([band for _, band in bands]), upscale(image))


def test_writes_into_a_given_array(small, picture, tmp_path) -> None:
    image = picture(20, 10)
    out = np.memmap(tmp_path / "out", np.uint8, "w+", shape=(80, 40, 3))
    assert Upscaler(small)(image, out=out) is out
    np.testing.assert_array_equal(out, Upscaler(small)(image))
    with pytest.raises(ValueError, match="out must be uint8"):
        Upscaler(small)(image, out=np.empty((80, 40, 3), np.float32))


def mean_over_symmetries(upscale: Upscaler, image: np.ndarray) -> np.ndarray:
    results = []
    for mirrored in (False, True):
        for turns in range(4):
            turned = np.rot90(image[:, ::-1] if mirrored else image, turns)
            back = np.rot90(upscale(np.ascontiguousarray(turned)), -turns)
            results.append(back[:, ::-1] if mirrored else back)
    return np.rint(np.mean(results, 0)).astype(np.uint8)


def test_self_ensemble_is_the_mean_over_eight_symmetries(small, picture) -> None:
    image = picture(13, 18)
    expected = mean_over_symmetries(Upscaler(small), image)
    np.testing.assert_array_equal(Upscaler(small, self_ensemble=True)(image), expected)
    np.testing.assert_array_equal(Upscaler(small, self_ensemble=True, tile=6)(image), expected)


def test_self_ensemble_turns_the_picture_without_its_padding(picture) -> None:
    """As evaluation does: this picture is no multiple of the window."""
    image, model = picture(13, 18), quantsr_t.small_model()
    expected = mean_over_symmetries(Upscaler(model, "torch"), image)
    np.testing.assert_array_equal(Upscaler(model, "torch", self_ensemble=True)(image), expected)


def test_budget_takes_the_deepest_that_meets_it(small, picture, monkeypatch, caplog) -> None:
    measured = []

    def measure(self, image):
        measured.append(self.depth)
        return {3: 30.0, 2: 20.0, 1: 10.0}[self.depth]

    monkeypatch.setattr(upscaler.Upscaler, "measure", measure)
    upscale = Upscaler(small)
    image = picture(8, 8)
    assert (upscale.choose_depth(image, 25), upscale.depth) == (20.0, 2)
    assert (upscale.choose_depth(image, 25), measured) == (20.0, [3, 2])  # measured once per size and budget
    assert (upscale.choose_depth(image, 100), upscale.depth) == (30.0, 3)
    assert (upscale.choose_depth(image, 1), upscale.depth) == (10.0, 1)
    assert "more than the budget of 1 ms" in caplog.text


def test_measures_a_positive_time(small, picture) -> None:
    assert Upscaler(small, depth=1).measure(picture(8, 8), runs=1) > 0


def test_bad_arguments_are_named(small, network_file, tmp_path) -> None:
    with pytest.raises(InputError, match="tile: must be at least 1"):
        Upscaler(small, tile=0)
    with pytest.raises(InputError, match=r"no such file or name .*--model FILE"):
        Upscaler("no-such-network")
    with pytest.raises(InputError, match=r"net\.safetensors: there is no such file"):
        Upscaler(tmp_path / "net.safetensors")
    checkpoint = tmp_path / "net.pth"
    checkpoint.write_bytes(b"")
    with pytest.raises(InputError, match="quantsr export -m"):
        Upscaler(checkpoint)


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 4), (0, 4, 3)])
def test_other_shapes_are_refused(small, shape) -> None:
    with pytest.raises(ValueError, match="a picture is an array"):
        Upscaler(small)(np.zeros(shape, np.uint8))


def test_float_arrays_are_refused(small) -> None:
    with pytest.raises(ValueError, match="uint8 or uint16"):
        Upscaler(small)(np.zeros((4, 4, 3), np.float32))


def test_a_name_is_looked_up_in_the_zoo(network_file, monkeypatch) -> None:
    monkeypatch.setattr(names, "ZOO", network_file.parent)
    assert Upscaler("network").scale == 4
    with pytest.raises(InputError, match="come with quantsr are network"):
        Upscaler("other")


def test_imports_neither_torch_nor_basicsr(network_file) -> None:
    code = (
        "import sys, numpy as np\n"
        "from quantsr import Upscaler\n"
        f"Upscaler({str(network_file)!r}, 'openvino')(np.zeros((8, 8, 3), np.uint8))\n"
        "print(sorted({'torch', 'basicsr', 'torchvision', 'cv2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
