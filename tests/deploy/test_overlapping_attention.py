"""Attention of windows to larger ones around them, which a module computes by products of its
own: found by lowering where it is that, else refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from quantsr.deploy import memory, windows
from quantsr.deploy.lower import lower
from quantsr.deploy.passes.fold import relative_positions
from quantsr.errors import InputError
from tests.deploy.programs import Written, refused

WINDOW, OVERLAP, HEADS, SIZE = 4, 2, 2, 3
SIDE, CHANNELS = WINDOW + 2 * OVERLAP, HEADS * SIZE


class Attending(nn.Module):
    """From windows of 4 x 4 pixels to 8 x 8 around them."""

    def __init__(self, **how: object) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, CHANNELS, 3, 1, 1), nn.Conv2d(CHANNELS, 3, 3, 1, 1)
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS)
        rows = (2 * (WINDOW + OVERLAP) - 1) ** 2
        self.relative_position_bias_table = nn.Parameter(torch.randn(rows, HEADS))
        self.scale = how.get("scale", SIZE**-0.5)
        self.shift, self.fill = how.get("shift", 0), how.get("fill", 0.0)
        self.bias: Callable[[Tensor], Tensor] = how.get("bias", lambda bias: bias)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        pad = (-width % WINDOW, -height % WINDOW)
        x = self.first(functional.pad(x, (0, pad[0], 0, pad[1]), "reflect"))
        q, k, v = self.qkv(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).chunk(3, 1)
        q = functional.unfold(q.roll(self.shift, 2), WINDOW, stride=WINDOW)
        k, v = (functional.unfold(t, SIDE, stride=WINDOW, padding=OVERLAP) for t in (k, v))
        # (G, h, N, d), (G, h, M, d) twice
        q, k, v = (t[0].reshape(HEADS, SIZE, -1, t.shape[2]).permute(3, 0, 2, 1) for t in (q, k, v))
        scores = q * self.scale @ k.transpose(2, 3)
        rows = torch.from_numpy(relative_positions(WINDOW, OVERLAP))
        scores = scores + self.bias(self.relative_position_bias_table[rows].permute(2, 0, 1))
        mixed = (scores.softmax(-1) @ v).transpose(2, 3).reshape(len(q), CHANNELS, WINDOW, WINDOW)
        rows_of_windows = x.shape[2] // WINDOW
        mixed = mixed.reshape(rows_of_windows, -1, CHANNELS, WINDOW, WINDOW).permute(2, 0, 3, 1, 4)
        return self.last(mixed.reshape(1, CHANNELS, *x.shape[2:]))[..., :height, :width]


def lowered(**how: object) -> list[dict[str, object]]:
    net = nn.Sequential(Attending(**how))
    net.window_size = WINDOW  # what the picture is padded to
    program = lower(net)
    return [dict(op.attributes) for op in program.operations if op.kind == "window_attention"]


def test_attention_to_larger_windows_is_found() -> None:
    wanted = {"heads": HEADS, "window": WINDOW, "shift": 0, "quantized": 0, "overlap": OVERLAP}
    assert lowered() == [wanted]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"scale": 0.5}, "attends to other windows"),
        ({"shift": 1}, "attends to other windows"),
        ({"bias": lambda bias: 2 * bias}, "adds other biases than those of its table"),
    ],
)
def test_other_attention_is_refused_in_one_line(how, says) -> None:
    with pytest.raises(InputError, match=says) as caught:
        lowered(**how)
    assert "\n" not in str(caught.value)


class Misusing(nn.Module):
    def __init__(self, what: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.what = nn.Conv2d(3, 3, 3, 1, 1), what

    def forward(self, x: Tensor) -> Tensor:
        return self.what(self.conv(x))


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (lambda x: x.softmax(1), "computes a softmax of other values"),
        (lambda x: torch.bmm(x[0], torch.ones(3, x.shape[3], 1)), "multiplies by a constant matrix"),
        (lambda x: (x @ x.mT).relu(), "multiplies values of the picture by each other"),
        (lambda x: functional.unfold(x, 3, padding=1).view(1, 27, *x.shape[2:]).relu(), "pads values"),
    ],
)
def test_products_that_are_no_attention_are_refused_in_one_line(what, says) -> None:
    with pytest.raises(InputError, match=f"network: its forward {says}") as caught:
        lower(Misusing(what))
    assert "\n" not in str(caught.value)


def test_tokens_of_larger_windows_are_those_of_the_map() -> None:
    grid = (8, 12)
    order = windows.order_index(grid, WINDOW, None, 0)
    places = windows.overlapping(grid, WINDOW, OVERLAP)
    tokens = windows.overlapping_tokens(grid, WINDOW, OVERLAP)
    assert places.shape == (6, SIDE**2)
    np.testing.assert_array_equal(np.append(order, 96)[tokens], places)
    assert places[0].reshape(SIDE, SIDE)[OVERLAP, OVERLAP] == 0
    assert (places[0].reshape(SIDE, SIDE)[:OVERLAP] == 96).all()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"shift": 1}, "windows that overlap are neither shifted nor of codes"),
        ({"overlap": 33}, "its attribute overlap is out of range"),
        ({"overlap": 3}, "relative_position_bias_table has shape"),
    ],
)
def test_programs_of_other_overlaps_are_refused(how, says, tmp_path: Path) -> None:
    net = Written(4)
    x = net.conv(net.conv(net.x, "first", 8, 3), "qkv", 24, 8, 0)
    net.tensor("attn.relative_position_bias_table", np.zeros((121, 2)))
    attributes = {"heads": 2, "window": 4, "shift": 0, "quantized": 0, "overlap": 2, **how}
    x = net.build.add("window_attention", x, name="attn", **attributes)
    refused(net.finish(net.conv(x, "last", 3, 8)), tmp_path, says)


def test_larger_windows_count_in_memory() -> None:
    assert memory.keys({"window": 4, "overlap": 2}) == 64
    assert memory.keys({"window": 4}) == 16
