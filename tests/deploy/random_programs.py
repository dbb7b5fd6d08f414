"""Random networks of the operations that the native engine has, of multiples of powers of two where
they are `exact`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from quantsr.deploy.packed.description import Header
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.program import used
from tests.deploy.test_operations import RANGES, Net

_MOST_CHANNELS = 120


@dataclass(frozen=True)
class Made:
    """A value of the network in the making."""

    value: int
    channels: int
    factor: int


def random_program(seed: int, *, exact: bool) -> PackedModel:
    """Some 3 to 13 operations between two convolutions. Not `exact`, with some that every engine
    rounds in its own way."""
    return _Random(seed, exact).make()


class _Random:
    def __init__(self, seed: int, exact: bool) -> None:
        self.rng = np.random.default_rng(seed)
        bits, limits = int(self.rng.integers(2, 9)), str(self.rng.choice(RANGES))
        self.net, self.exact = Net(bits=bits, range=limits, seed=seed), exact
        self.made = [Made(self.net.start, 8, 1)]

    def make(self) -> PackedModel:
        kinds: list[Callable[[Made], Made | None]] = [
            *[self._conv] * 4,
            *[self._activation, self._binary, self._concat, self._slice] * 2,
            self._scale,
            self._shuffle,
            self._nearest,
        ]
        if not self.exact:
            kinds += [self._bilinear, self._gate_of_mean, self._gate_of_a_pixel]
        for _ in range(int(self.rng.integers(3, 14))):
            found = self._one_of(kinds)(self._one_of(self.made[-4:]))
            self.made += [found] if found is not None else []
        return self._finish(self.made[-1])

    def _one_of(self, choices):
        return choices[int(self.rng.integers(len(choices)))]

    def _add(
        self, kind: str, source: Made, *others: int, channels: int = 0, times: int = 1, **attributes
    ) -> Made:
        value = self.net.build.add(kind, source.value, *others, **attributes)
        return Made(value, channels or source.channels, source.factor * times)

    def _conv(self, x: Made) -> Made:
        outputs, size = int(self.rng.integers(1, 40)), self._one_of([1, 3, 3, 5])
        quantized = bool(self.rng.random() < 0.7)
        value = self.net.layer(x.value, x.channels, outputs, size=size, quantized=quantized)
        return Made(value, outputs, x.factor)

    def _activation(self, x: Made) -> Made:
        kind = self._one_of(["relu", "leaky_relu", "prelu"] + ["sigmoid", "silu"] * (not self.exact))
        if kind == "prelu":
            name = f"slopes{len(self.made)}.{x.value}"
            self.net.tensor(f"{name}.weight", self.rng.choice([0.5, 0.25, -0.5], x.channels))
            return self._add(kind, x, name=name)
        return self._add(kind, x, slope=0.25) if kind == "leaky_relu" else self._add(kind, x)

    def _like(self, x: Made) -> list[Made]:
        return [y for y in self.made if (y.channels, y.factor) == (x.channels, x.factor)]

    def _binary(self, x: Made) -> Made:
        return self._add(self._one_of(["add", "subtract"]), x, self._one_of(self._like(x)).value)

    def _concat(self, x: Made) -> Made | None:
        others = [self._one_of([y for y in self.made if y.factor == x.factor]) for _ in range(2)]
        channels = x.channels + sum(y.channels for y in others)
        if channels > _MOST_CHANNELS:
            return None
        return self._add("concat", x, *(y.value for y in others), channels=channels)

    def _slice(self, x: Made) -> Made:
        start = int(self.rng.integers(x.channels))
        stop = int(self.rng.integers(start, x.channels)) + 1
        return self._add("slice", x, channels=stop - start, start=start, stop=stop)

    def _scale(self, x: Made) -> Made:
        return self._add("scale", x, factor=float(self._one_of([0.5, 2.0, 0.75])))

    def _shuffle(self, x: Made) -> Made | None:
        if x.channels % 4 or x.factor > 2:
            return None
        return self._add("pixel_shuffle", x, channels=x.channels // 4, times=2, factor=2)

    def _nearest(self, x: Made) -> Made | None:
        return None if x.factor > 2 else self._add("upsample_nearest", x, times=2, factor=2)

    def _bilinear(self, x: Made) -> Made | None:
        return None if x.factor > 2 else self._add("upsample_bilinear", x, times=2, factor=2)

    def _gate(self, x: Made, gate: Made) -> Made:
        small = self._add("scale", gate, factor=1 / 16)
        return self._add("multiply", x, self._add("sigmoid", small).value)

    def _gate_of_mean(self, x: Made) -> Made:
        return self._gate(x, self._add("mean", x))

    def _gate_of_a_pixel(self, x: Made) -> Made:
        return self._gate(x, self._add("slice", x, channels=1, start=x.channels - 1, stop=x.channels))

    def _finish(self, x: Made) -> PackedModel:
        last = self.net.layer(x.value, x.channels, 3, quantized=False, gain=0.5)
        self.net.build.add("picture", last, **self.net.colours)
        whole = self.net.build.finish()
        program = replace(whole, operations=used(whole.operations, whole.operations[-1].output)).renumbered()
        names = {op.name for op in program.operations}
        header = Header({"type": "OfATest"}, x.factor, (1,), 1, (1.0,), rgb_mean=(0.4, 0.2, 0.6))
        model = PackedModel(
            header,
            {name: layer for name, layer in self.net.layers.items() if name in names},
            {},
            {name: x for name, x in self.net.floats.items() if name.rpartition(".")[0] in names},
            program,
        )
        return replace(model, header=replace(header, format_version=model.format_version))
