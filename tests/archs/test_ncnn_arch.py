"""Networks read from ncnn's files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from quantsr.archs.ncnn_arch import NcnnNetwork
from quantsr.errors import InputError
from tests.archs import ncnn_files
from tests.archs.ncnn_files import weight, write

ONE = np.ones((3, 3, 1, 1), np.float32)
CONV = "Convolution conv 1 1 data a 0=3 1=1 5=1 6=9"
ZERO = np.zeros(3, np.float32).tobytes()


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_a_network_gives_what_its_layers_say(tmp_path: Path, half: bool) -> None:
    net = NcnnNetwork(str(ncnn_files.compact(tmp_path, half=half)))
    state = net.state_dict()
    x = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(1))
    y = F.conv2d(x, state["conv_0.weight"], state["conv_0.bias"], padding=1)
    y = torch.where(y > 0, y, y * state["act.weight"].view(-1, 1, 1))
    y = F.conv2d(y, state["conv_1.weight"], state["conv_1.bias"], padding=1)
    expected = F.pixel_shuffle(y, 2) + x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(net(x), expected)


def test_weights_are_those_of_the_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((3, 3, 1, 1), (3,)))
    path = write(tmp_path, ["Input data 0 1 data", CONV], [weight(values), bias.tobytes()])
    net = NcnnNetwork(str(path))
    assert np.array_equal(net.state_dict()["conv.weight"].numpy(), values)
    assert np.array_equal(net.state_dict()["conv.bias"].numpy(), bias)


LAYERS = {
    "BinaryOp mul 2 1 a b output 0=2": lambda a, b: a * b,
    "BinaryOp sub 2 1 a b output 0=1": lambda a, b: a - b,
    "Concat cat 2 1 a b output": lambda a, b: torch.cat([a, b], 1),
    "Eltwise sum 2 1 a b output 0=1 -23301=2,2.0e-1,1.0": lambda a, b: 0.2 * a + b,
    "Eltwise sum 2 1 a b output 0=1": lambda a, b: a + b,
    "Eltwise product 2 1 a b output 0=0": lambda a, b: a * b,
}


@pytest.mark.parametrize("line", LAYERS, ids=lambda line: " ".join(line.split()[:2]))
def test_layers_of_two_inputs(tmp_path: Path, line: str) -> None:
    lines = ["Input data 0 1 data", "Split split 1 2 data a x", "Sigmoid s 1 1 x b", line]
    path = write(tmp_path, lines, [])
    x = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(NcnnNetwork(str(path))(x), LAYERS[line](x, x.sigmoid()))


ALONE = {
    "BinaryOp add 1 1 data output 0=0 1=1 2=-5.0e-1": lambda x: x - 0.5,
    "Interp resize 1 1 data output 0=2 1=3.0 2=3.0": lambda x: F.interpolate(
        x, scale_factor=3, mode="bilinear"
    ),
    "ReLU relu 1 1 data output": lambda x: x.relu(),
    "ReLU relu 1 1 data output 0=1.0e-1": lambda x: F.leaky_relu(x, 0.1),
    "Swish swish 1 1 data output": lambda x: x * x.sigmoid(),
    "TanH tanh 1 1 data output": lambda x: x.tanh(),
}


@pytest.mark.parametrize("line", ALONE)
def test_layers_of_one_input(tmp_path: Path, line: str) -> None:
    path = write(tmp_path, ["Input data 0 1 data", line], [])
    x = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1)) - 0.5
    torch.testing.assert_close(NcnnNetwork(str(path))(x), ALONE[line](x))


@pytest.mark.parametrize(
    ("option", "activation"),
    [("9=1", F.relu), ("9=2 -23310=1,2.0e-1", lambda x: F.leaky_relu(x, 0.2))],
)
def test_activations_of_convolutions(tmp_path: Path, option: str, activation) -> None:
    path = write(tmp_path, ["Input data 0 1 data", f"{CONV} {option}"], [weight(-ONE), ZERO])
    x = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    expected = activation(-x.sum(1, keepdim=True).expand(-1, 3, -1, -1))
    torch.testing.assert_close(NcnnNetwork(str(path))(x), expected)


def test_a_constant_has_a_value_for_each_channel(tmp_path: Path) -> None:
    lines = ["Input data 0 1 data", "MemoryData mean 0 1 m 0=1 1=1 2=3", "BinaryOp sub 2 1 data m output 0=1"]
    path = write(tmp_path, lines, [np.array([0.1, 0.2, 0.3], np.float32).tobytes()])
    x = torch.rand(1, 3, 4, 4)
    expected = x - torch.tensor([0.1, 0.2, 0.3]).view(-1, 1, 1)
    torch.testing.assert_close(NcnnNetwork(str(path))(x), expected)


@pytest.mark.parametrize(
    ("lines", "data", "message"),
    [
        (["Input data 0 1 data", "Softmax soft 1 1 data output"], [], "Softmax soft: is a layer that no"),
        (["Input data 0 1 data", CONV.replace("1=1", "1=1 3=2")], [weight(ONE), ZERO], "has stride 2"),
        (
            ["Input data 0 1 data", CONV.replace("6=9", "6=10")],
            [weight(ONE), ZERO],
            "has padding 0 and 10 weights",
        ),
        (["Input data 0 1 data", CONV], [weight(ONE)], "which the .bin file does not hold"),
        (["Input data 0 1 data", CONV], [weight(ONE), ZERO, ZERO], "another network's weights"),
        (["Input data 0 1 data", CONV], [b"\x01\x00\x00\x00" + ONE.tobytes(), ZERO], "another type"),
        (["Input data 0 1 data", f"{CONV} 9=4"], [weight(ONE), ZERO], "an activation of type 4"),
        (["Input data 0 1 data", "ReLU relu 1 1 lost output"], [], "relu reads lost, which no layer before"),
        (["Input data 0 1 data", "Split split 1 2 data a b"], [], "1 inputs and 2 outputs"),
        (["Input data 0 1 data", "PixelShuffle shuffle 1 1 data output 0=2"], [], "cannot be run"),
        (["Input data 0 1 data", "Interp half 1 1 data output 0=1 1=0.5 2=0.5"], [], "to a multiple"),
        (["Input data 0 1 data", "BinaryOp div 2 1 data data output 0=3"], [], "is of type 3"),
        (["Input data 0 x data"], [], "cannot be read"),
        (["Input data"], [], "cannot be read"),
    ],
)
def test_other_networks_are_refused_in_one_line(tmp_path: Path, lines, data, message: str) -> None:
    path = write(tmp_path, lines, data)
    with pytest.raises(InputError, match=message) as error:
        NcnnNetwork(str(path))
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_absent_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent.param: cannot be read"):
        NcnnNetwork(str(tmp_path / "absent.param"))
    (tmp_path / "other.param").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"other.param: cannot be read"):
        NcnnNetwork(str(tmp_path / "other.param"))


def test_another_scale_is_refused(tmp_path: Path) -> None:
    path = str(ncnn_files.compact(tmp_path))
    assert NcnnNetwork(path, scale=2).input == "data"
    with pytest.raises(InputError, match="is a network of x2, not of x4"):
        NcnnNetwork(path, scale=4)
