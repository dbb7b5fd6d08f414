"""Attention in rectangles and between channels, which modules compute by products of their own:
found by lowering where it is that, else refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from quantsr.deploy import rectangles
from quantsr.deploy.convert import convert
from quantsr.deploy.engines.reference import run
from quantsr.deploy.lower import lower, lowered
from quantsr.errors import InputError

HEADS, SIZE = 2, 3
CHANNELS = HEADS * SIZE


class Parts(nn.Module):
    """q, k and v of a map in parts of a linear layer, and what an attention makes of them."""

    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.how = how
        self.first, self.last = nn.Conv2d(3, CHANNELS, 3, 1, 1), nn.Conv2d(CHANNELS, 3, 3, 1, 1)
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        parts = self.qkv(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).chunk(3, 1)
        return self.last(self.attend(*parts))


class Rectangles(Parts):
    """In windows of 2 x 4 pixels, with biases that a small network computes of positions."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.window = how.get("window", (2, 4))
        self.positions = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, HEADS))
        self.shift, self.multiple = how.get("shift", (0, 0)), how.get("multiple", 4)

    def biases(self) -> Tensor:
        """(h, N, N)"""
        (rows, columns), index = self.window, torch.from_numpy(rectangles.relative_positions(self.window))
        y, x = torch.meshgrid(torch.arange(1 - rows, rows), torch.arange(1 - columns, columns), indexing="ij")
        table = self.positions(torch.stack([y, x], -1).flatten(0, 1).float())
        bias: Tensor = table[index].permute(2, 0, 1)
        return bias

    def mask(self, grid: tuple[int, int]) -> Tensor:
        """(G, 1, N, N)"""
        return torch.from_numpy(rectangles.mask(grid, self.window, self.shift, self.multiple))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        (height, width), tokens = q.shape[2:], self.window[0] * self.window[1]
        beyond = (0, -width % self.multiple, 0, -height % self.multiple)
        scale = self.how.get("scale", 0.5)
        parts = [functional.pad(x, beyond, value=self.how.get("fill", 0.0)) for x in (q, k, v)]
        whole = parts[0].shape[2:]
        count = (whole[0] // self.window[0], whole[1] // self.window[1])
        parts = [x.roll((-self.shift[0], -self.shift[1]), (2, 3)) for x in parts]
        shape = (1, CHANNELS, count[0], self.window[0], count[1], self.window[1])
        parts = [x.reshape(shape).permute(0, 2, 4, 3, 5, 1).reshape(-1, tokens, HEADS, SIZE) for x in parts]
        q, k, v = (x.transpose(1, 2) for x in parts)  # (G, h, N, d)
        if self.how.get("heads_first"):
            q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        if "temperature" in self.how:
            q, k = (functional.normalize(x, dim=-1) for x in (q, k))
        scores = (
            q
            * (1.0 if "temperature" in self.how else scale)
            @ k.transpose(2, 3)
            * self.how.get("factor", 1.0)
        )
        scores = scores * self.how["temperature"] if "temperature" in self.how else scores
        bias, mask = self.how.get("bias", lambda bias: bias)(self.biases()), self.mask((height, width))
        if self.how.get("heads_first"):
            bias, mask = bias[:, None], mask.transpose(0, 1)
        scores = scores + bias
        if any(self.shift) and self.how.get("masked", True) == "infinite":
            scores = scores.masked_fill(mask < 0, -torch.inf)
        elif any(self.shift) and self.how.get("masked", True):
            scores = scores + mask
        mixed = scores.softmax(-1) @ v
        if self.how.get("heads_first"):
            mixed = mixed.transpose(0, 1)
        mixed = mixed.transpose(1, 2).reshape(*count, *self.window, CHANNELS)
        x = mixed.permute(4, 0, 2, 1, 3).reshape(1, CHANNELS, *whole)
        x = x.roll(self.shift, (2, 3))
        return x if self.how.get("whole") else x[..., :height, :width]


class Channels(Parts):
    """Between channels, with a temperature for each head."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.temperature = nn.Parameter(torch.tensor([3.0, -1.0]).view(HEADS, 1, 1))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        shape = v.shape
        q, k, v = (x.reshape(1, HEADS, SIZE, -1) for x in (q, k, v))
        q, k = (self.how.get("norm", lambda x: functional.normalize(x, dim=-1))(x) for x in (q, k))
        scores = self.how.get("times", lambda scores, by: scores * by)(q @ k.mT, self.temperature)
        return (scores.softmax(-1) @ self.how.get("values", lambda v: v)(v)).reshape(shape)


class PaddedFirst(nn.Module):
    """Attention in windows of 4 x 4 pixels, whose layers read zeros beyond the map, with biases of
    pairs of pixels."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, CHANNELS, 3, 1, 1), nn.Conv2d(CHANNELS, 3, 3, 1, 1)
        self.qkv, self.proj = nn.Linear(CHANNELS, 3 * CHANNELS, bias=bias), nn.Linear(CHANNELS, CHANNELS)
        self.bias = nn.Parameter(torch.randn(HEADS, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        height, width = x.shape[2:]
        x = functional.pad(x, (0, -width % 4, 0, -height % 4))
        rows, columns = (side // 4 for side in x.shape[2:])
        x = x.reshape(1, CHANNELS, rows, 4, columns, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, CHANNELS)
        q, k, v = self.qkv(x).view(-1, 16, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)  # (G, h, N, d)
        scores = (q * 0.5) @ k.mT + self.bias
        x = self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, 16, CHANNELS))
        x = x.view(1, rows, columns, 4, 4, CHANNELS).permute(0, 5, 1, 3, 2, 4)
        return self.last(x.reshape(1, CHANNELS, 4 * rows, 4 * columns)[..., :height, :width])


class Everywhere(nn.Module):
    """Attention of all pixels to a pool of the map."""

    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.how = how
        self.first, self.last = nn.Conv2d(3, CHANNELS, 3, 1, 1), nn.Conv2d(CHANNELS, 3, 3, 1, 1)
        self.q, self.kv = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, 2 * CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        height, width = x.shape[2:]
        small = functional.adaptive_max_pool2d(x, (max(1, height // 3), max(1, width // 3)))
        q = self.q(x.flatten(2).mT)  # (1, L, C)
        k, v = self.kv(small.flatten(2).mT).chunk(2, 2)
        q, k, v = (y.unflatten(2, (HEADS, SIZE)).transpose(1, 2) for y in (q, k, v))
        scores = self.how.get("scores", lambda s: s)(q @ k.mT * 0.5)
        y = (scores.softmax(-1) @ self.how.get("values", lambda v: v)(v)).transpose(1, 2).flatten(2)
        return self.last(x + y.mT.unflatten(2, (height, width)))


def test_attention_to_all_pixels_is_found() -> None:
    assert attributes(Everywhere(), "global_attention") == [{"heads": HEADS}]


@pytest.mark.parametrize("bias", [False, True])
def test_layers_of_zeros_beyond_the_map_give_constants(bias: bool) -> None:
    net = PaddedFirst(bias=bias)
    found = lowered(net)
    (op,) = (op for op in found.program.operations if op.kind == "rectangle_attention")
    assert op.attributes["pairs"] == 1
    assert ("beyond" in op.attributes) == bias
    if bias:
        assert net.qkv.bias is not None
        for part, values in zip("kv", net.qkv.bias.detach().chunk(3)[1:], strict=True):
            np.testing.assert_array_equal(found.constants[f".beyond_{part}"], values)


def attributes(net: nn.Module, kind: str) -> list[dict[str, object]]:
    return [dict(op.attributes) for op in lower(net).operations if op.kind == kind]


@pytest.mark.parametrize(
    ("window", "shift", "multiple"),
    [
        ((2, 4), (0, 0), 4),
        ((2, 4), (1, 2), 4),
        ((4, 2), (3, 0), 8),
        ((1, 6), (0, 5), 12),
        ((5, 5), (2, 2), 5),
        ((8, 32), (4, 16), 32),
    ],
)
def test_windows_of_rows_and_columns_are_found(window, shift, multiple) -> None:
    net = Rectangles(window=window, shift=shift, multiple=multiple)
    wanted = {"heads": HEADS, "window": list(window), "shift": list(shift), "multiple": multiple}
    assert attributes(net, "rectangle_attention") == [wanted]
    (table,) = lowered(net).constants.values()
    found = table[rectangles.relative_positions(window)].transpose(2, 0, 1)
    np.testing.assert_array_equal(found, net.biases().detach().numpy())


@pytest.mark.parametrize("how", [{}, {"factor": 0.25}, {"scale": 1.0}])
def test_queries_have_a_scale_of_their_own(how) -> None:
    factors = [float(entry["factor"]) for entry in attributes(Rectangles(**how), "scale")]
    assert np.prod(factors) == how.get("scale", 0.5) * how.get("factor", 1.0)


def test_queries_and_keys_of_length_1_have_a_temperature() -> None:
    net = Rectangles(temperature=torch.tensor([3.0, 0.5]).view(HEADS, 1, 1))
    (found,) = attributes(net, "rectangle_attention")
    assert found["cosine"] == 1
    assert [x.tolist() for name, x in lowered(net).constants.items() if "temp" in name] == [[3, 0.5]]


def test_attention_between_channels_is_found() -> None:
    assert attributes(Channels(), "channel_attention") == [{"heads": HEADS}]
    assert {name: list(x) for name, x in lowered(Channels()).constants.items()} == {".temperature": [3, -1]}
    plain = Channels(times=lambda scores, by: scores)
    assert [list(x) for x in lowered(plain).constants.values()] == [[1, 1]]


@pytest.mark.parametrize("size", [(7, 10), (4, 8), (1, 3)])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Rectangles(shift=(1, 2)),
        lambda: Rectangles(factor=0.5, multiple=8),
        lambda: Rectangles(shift=(1, 2), heads_first=True, masked="infinite"),
        lambda: Rectangles(shift=(1, 2), temperature=4.0),
        Channels,
        PaddedFirst,
        Everywhere,
    ],
)
def test_the_packed_network_computes_what_the_module_does(make: Callable[[], nn.Module], size) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(make())
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    with torch.no_grad():
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        wanted = (255 * net(x)[0].permute(1, 2, 0)).clamp(0, 255).round().numpy()
    found = run(convert(net, head_tail_bits=32), image)
    assert wanted.std() > 5
    assert np.abs(found - wanted).max() <= 1


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (lambda: Rectangles(fill=1.0), "pads with 1"),
        (lambda: Rectangles(shift=(1, 2), masked=False), "attends across the border that its windows"),
        (
            lambda: Rectangles(factor=torch.arange(1.0, 9.0)),
            "multiplies products by other numbers in some windows than in others",
        ),
        (
            lambda: Rectangles(temperature=torch.arange(1.0, 9.0)),
            "multiplies products by other numbers than one for each head",
        ),
        (lambda: Everywhere(scores=lambda s: s + torch.ones(s.shape)), "adds biases to products of all"),
        (lambda: Everywhere(values=lambda v: v.flip(2)), "attends to other windows than those around"),
        (lambda: Rectangles(whole=True), "reads what its attention gives beyond the map"),
        (lambda: Channels(norm=lambda x: x), "attends to other windows than rectangles of pixels"),
        (
            lambda: Channels(norm=lambda x: x / x.norm(dim=-1, keepdim=True)),
            "divides by lengths of at least 0",
        ),
        (lambda: Channels(norm=lambda x: x / x.mT.norm(dim=-1, keepdim=True).mT), "divides by a value|other"),
        (
            lambda: Channels(norm=lambda x: x.norm(dim=-1, keepdim=True) * x),
            "computes with lengths of vectors",
        ),
        (
            lambda: Channels(norm=lambda x: functional.normalize(x, dim=-1) + 1),
            "computes with vectors of length 1",
        ),
        (lambda: Channels(norm=lambda x: functional.normalize(x, 1, dim=-1)), "computes another norm"),
        (lambda: Channels(norm=lambda x: x.clamp_min(0)), "calls aten.clamp_min"),
        (lambda: Channels(times=lambda scores, by: scores + by), "adds a constant to products of channels"),
        (
            lambda: Channels(times=lambda scores, by: scores * torch.arange(1.0, 4.0)),
            "multiplies products of channels by other numbers than one for each head",
        ),
        (
            lambda: Channels(times=lambda scores, by: (scores + by) * by),
            "multiplies products of values of the",
        ),
        (lambda: Channels(values=lambda v: v.flip(3)), "attends to other channels than all of a head"),
    ],
)
def test_other_attention_is_refused_in_one_line(net: Callable[[], nn.Module], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        lower(net())
    assert "\n" not in str(caught.value)
