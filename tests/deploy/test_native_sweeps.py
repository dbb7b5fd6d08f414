"""Sweeps of the native engine: networks of any operations that there are kernels for, against the
integer reference. `test_operations.py` tries every operation, with 2 to 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from quantsr import cpu
from quantsr.basicsr_compat import EDSR, importable
from quantsr.deploy import post_training
from quantsr.deploy.convert import convert
from quantsr.deploy.engines import reference as integer_reference
from quantsr.deploy.engines import select
from quantsr.deploy.folded import FoldedConv
from quantsr.deploy.native import structures
from quantsr.deploy.native.engine import NativeEngine
from quantsr.deploy.native.match import Unsupported
from quantsr.deploy.native.sweep_convs import form_of, wide_form
from quantsr.deploy.native.sweep_program import SweepProgram
from quantsr.deploy.native.sweeps import Map, Sweep, assign_slots
from quantsr.deploy.packed.header import check_structure
from quantsr.deploy.passes.reciprocal import exact_factors
from quantsr.errors import InputError
from tests.deploy.codes import codes_of_reference
from tests.deploy.native import (
    ISAS,
    assert_left_to_others,
    assert_within_memory,
    needs_kernels,
    picture,
    some_of,
)
from tests.deploy.random_programs import random_program
from tests.deploy.swept import NETWORKS, quantized

with importable():
    from basicsr.archs.srresnet_arch import MSRResNet

ROUNDS = ("RCAN", "SPAN", "distillation")
"""Networks with a sigmoid, a tanh or a mean, which engines round in different ways: a code behind
it may differ."""
RRDBNET = pytest.param("RRDBNet", marks=pytest.mark.integration)  # takes seconds to convert
SIZES = [(18, 21), (1, 1), (1, 9), (7, 5), (26, 3)]


@needs_kernels
@pytest.mark.parametrize(("name", "bits"), some_of(3, [*NETWORKS, "distillation"], [2, 4, 6, 8]))
def test_networks_have_the_codes_and_pictures_of_the_reference(name: str, bits: int) -> None:
    """On every instruction set and size; two threads give what one gives."""
    model = quantized(name, bits)
    depth = model.depth_or_default(None)
    images = [picture(height, width) for height, width in SIZES]
    references = [codes_of_reference(model, image, depth) for image in images]
    for isa in ISAS:
        engines = [NativeEngine(model, depth, isa=isa, threads=threads) for threads in (1, 2)]
        assert isinstance(engines[0]._program, SweepProgram)
        for image, (codes, expected) in zip(images, references, strict=True):
            found = engines[0].codes(image)
            assert len(found) > 1
            for layer, values in found.items():
                if name in ROUNDS:
                    wide = np.ptp(codes[layer]) > 255  # of 16 bits
                    off = np.abs(values - codes[layer])
                    assert wide or off.max() <= 1, layer
                    # small maps have a few hundred values
                    assert np.count_nonzero(off) <= max(2, (0.01 if wide else 0.001) * off.size), layer
                else:
                    np.testing.assert_array_equal(values, codes[layer], err_msg=layer)
            result = engines[0].run(image[None])
            difference = np.abs(result[0].astype(int) - expected)
            assert difference.max() <= 1
            assert np.count_nonzero(difference) <= max(2, 0.01 * difference.size)
            np.testing.assert_array_equal(engines[1].run(image[None]), result)


@needs_kernels
@pytest.mark.parametrize("name", ["Compact of 24 channels", RRDBNET])
@pytest.mark.parametrize(
    ("bits_w", "bits_a"), [(2, 8), (8, 2), (3, 5), (5, 3), (4, 7), (7, 4), (4, 8), (8, 4), (8, 6)]
)
def test_codes_of_other_bits_than_the_weights_are_the_references(bits_w: int, bits_a: int, name: str) -> None:
    model, image = quantized(name, bits_w, bits_a=bits_a), picture(11, 13)
    codes, _ = codes_of_reference(model, image, 1)
    for isa in ISAS:
        for layer, values in NativeEngine(model, 1, isa=isa).codes(image).items():
            np.testing.assert_array_equal(values, codes[layer], err_msg=f"{isa}: {layer}")


@needs_kernels
@pytest.mark.parametrize("head_tail_bits", [8, 16, 32])
def test_layers_that_stay_in_float_in_front_of_codes_change_none(head_tail_bits: int) -> None:
    """Those with 16-bit inputs (8) read the reference's codes as well."""
    torch.manual_seed(0)
    net = MSRResNet(3, 3, 16, 3, 2).eval()
    pictures = [picture(24, 20)]
    rules = [post_training.LayerBits("body.1.*", post_training.Bits(32, 32))]
    net = post_training.quantize(net, post_training.Bits(4, 4), pictures, rules=rules)
    model, image = convert(net, head_tail_bits=head_tail_bits, calib=pictures), picture(11, 13)
    codes, expected = codes_of_reference(model, image, 1)
    for isa in ISAS:
        engine = NativeEngine(model, 1, isa=isa)
        found = engine.codes(image)
        assert ("body.1.conv1" in found) == (head_tail_bits == 8)
        assert "body.2.conv2" in found
        for layer, values in found.items():
            np.testing.assert_array_equal(values, codes[layer], err_msg=f"{isa}: {layer}")
        assert np.abs(engine.run(image[None])[0].astype(int) - expected).max() <= 1


@needs_kernels
@pytest.mark.parametrize(("size", "form"), [(3, structures.IN_TILES), (1, structures.IN_TAPS)])
def test_layers_of_16_bit_inputs_behind_all_codes_multiply_words(size: int, form: int) -> None:
    model, image = quantized("MSRResNet", 4, 8), picture(11, 13)
    layer = model.layers["conv_hr"]
    middle = slice(1 - size // 2, 2 + size // 2)
    layer = replace(layer, weight=np.ascontiguousarray(layer.weight[:, :, middle, middle]))
    model = replace(model, layers={**model.layers, layer.name: layer})
    found = wide_form(layer)
    assert found is not None
    assert (found.form, found.kind) == (form, structures.WORDS)
    _, expected = codes_of_reference(model, image, 1)
    for isa in ISAS:
        program = NativeEngine(model, 1, isa=isa)._program
        swept = program.network.program.contents
        kinds = [(swept.sweep[i].conv.kind, swept.sweep[i].form) for i in range(swept.sweeps)]
        assert (structures.WORDS, form) in kinds
        got = NativeEngine(model, 1, isa=isa).run(image[None])[0]
        assert np.abs(got.astype(int) - expected).max() <= 1
    assert wide_form(replace(layer, bits_a=8)) is None


@needs_kernels
@pytest.mark.parametrize("head_tail_bits", [16, 32])
@pytest.mark.parametrize("name", NETWORKS)
def test_float_networks_are_within_1_of_the_reference(name: str, head_tail_bits: int) -> None:
    model = quantized(name, 32, head_tail_bits)
    image = picture(18, 21)
    _, expected = codes_of_reference(model, image, 1)
    for isa in ISAS:
        difference = np.abs(NativeEngine(model, 1, isa=isa).run(image[None])[0].astype(int) - expected)
        assert difference.max() <= 1
        assert (difference > 0).mean() <= 0.01


@needs_kernels
@pytest.mark.parametrize("name", ["Compact", "MSRResNet", RRDBNET])
def test_float_pictures_are_not_rounded(name: str) -> None:
    model = quantized(name)
    image = picture(9, 11)
    bytes_, floats = (NativeEngine(model, 1).run(x[None]) for x in (image, image.astype(np.float32)))
    np.testing.assert_array_equal(np.rint(floats).astype(np.uint8), bytes_)
    assert (floats != np.rint(floats)).mean() > 0.5


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["Compact", "MSRResNet", RRDBNET, "RCAN"])
def test_the_kernels_stay_within_their_memory(name: str, isa: str) -> None:
    model = quantized(name)
    for size in SIZES:
        assert_within_memory(NativeEngine(model, 1, isa=isa), isa, size)


@needs_kernels
@pytest.mark.parametrize(
    "part", [pytest.param(i, marks=[pytest.mark.integration] * (i > 1)) for i in range(8)]
)
def test_random_programs_give_the_pictures_of_the_reference(part: int) -> None:
    """Each with other fusions, concatenated, split and repeated channels, and sizes."""
    for seed in range(20 * part, 20 * part + 20):
        model = random_program(seed, exact=seed % 2 == 0)
        check_structure(model)
        rng = np.random.default_rng(seed)
        image = rng.integers(0, 256, (*rng.integers(1, 13, 2), 3), np.uint8)
        expected = integer_reference.run(model, image)
        for isa in ISAS:
            found = NativeEngine(model, 1, isa=isa, threads=1 + seed % 3).run(image[None])[0]
            difference = np.abs(found.astype(int) - expected)
            if seed % 2 == 0:
                assert difference.max() <= 1, seed
            # behind a gate some codes may differ
            assert (difference > 1).mean() <= 0.05, seed


# Convolutions


def conv_of(bits_w: int, limits: tuple[int, int], size: int = 3, channels: int = 16) -> FoldedConv:
    """With the largest weights of these bits."""
    weight = np.full((16, channels, size, size), -(2 ** (bits_w - 1)), np.int8)
    ones = np.ones(16, np.float32)
    return FoldedConv("layer", weight, ones, ones, limits)


@pytest.mark.parametrize(
    ("bits_w", "limits", "size", "forms"),
    [
        (4, (-8, 7), 3, {"plain": "16 bytes", "avx2": "4 bytes", "avx512_vnni": "16 bytes"}),
        (4, (0, 63), 3, {"plain": "4 bytes", "avx2": "4 words", "avx512_vnni": "4 bytes"}),
        (8, (-128, 127), 3, {"plain": "4 words", "avx2": "4 words", "avx512_vnni": "bytes"}),
        (8, (-85, 170), 3, {"plain": "4 words", "avx2": "4 words", "avx512_vnni": "bytes"}),
        (8, (-128, 127), 1, {"plain": "bytes", "avx2": "words", "avx512_vnni": "bytes"}),
        (6, (0, 255), 1, {"plain": "bytes", "avx2": "bytes", "avx512_vnni": "bytes"}),
        (8, (0, 255), 5, {"plain": "bytes", "avx2": "words", "avx512_vnni": "bytes"}),
    ],
)
def test_convolutions_take_the_fastest_exact_form(bits_w, limits, size, forms) -> None:
    """Outputs of a tile, or tap by tap; AVX2 adds two products of bytes in 16 bits."""
    tiles = {structures.LARGE_TILE: "16 ", structures.TILE: "4 "}
    forms = {
        **forms,
        "neon": forms["plain"],
        "avx_vnni": forms["avx512_vnni"],
        "neon_i8mm": forms["avx512_vnni"],
    }
    for isa, expected in forms.items():
        form = form_of(conv_of(bits_w, limits, size), isa)
        tile = tiles[form.tile] if form.form == structures.IN_TILES else ""
        assert f"{tile}{'bytes' if form.kind == structures.BYTES else 'words'}" == expected, isa


@pytest.mark.parametrize("isa", ["plain", "avx2", "avx512_vnni"])
def test_sums_beyond_32_bits_are_refused(isa: str) -> None:
    wide = conv_of(8, (-(2**15), 2**15 - 1), 5, 4096)
    with pytest.raises(Unsupported, match="layer has too many bits or inputs for sums of 32 bits"):
        form_of(wide, isa)


@given(st.floats(2.0**-12, 4.0, width=32), st.sampled_from([(-8, 7), (0, 15), (-128, 127), (-85, 170)]))
def test_factors_give_the_codes_of_a_division(step: float, limits: tuple[int, int]) -> None:
    """At the float32 numbers on both sides of every edge, and at others."""
    factors = exact_factors(np.array([step], np.float32), limits)
    if factors is None:  # the kernels divide
        return
    edges = ((np.arange(*limits) + 0.5) * step).astype(np.float32)
    others = np.random.default_rng(0).uniform(2 * limits[0] * step, 2 * limits[1] * step, 999)
    x = np.concatenate([np.nextafter(edges, np.float32(side)) for side in (-1e9, 1e9)] + [edges, others])
    x = x.astype(np.float32)
    expected = np.rint(np.clip(x / np.float32(step), *limits))
    np.testing.assert_array_equal(np.rint(np.clip(x * factors[0] * factors[1], *limits)), expected)


def test_factors_are_found_for_few_bits_and_not_for_several_steps() -> None:
    steps = np.random.default_rng(1).uniform(0.01, 1, 50).astype(np.float32)
    found = [exact_factors(step.reshape(1), (-8, 7)) is not None for step in steps]
    assert np.mean(found) > 0.9
    assert exact_factors(steps, (-8, 7)) is None


# What is fused


class Network(nn.Module):
    """A convolution, `middle`, and a convolution."""

    def __init__(self, middle: Callable[[Tensor], Tensor] | nn.Module, feat: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, feat, 3, padding=1)
        self.second = nn.Conv2d(feat, feat, 3, padding=1)
        self.middle = middle
        self.last = nn.Conv2d(feat, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) to the same."""
        return self.last(self.middle(self.second(self.first(x))))


def swapped(x: Tensor) -> Tensor:
    return x + torch.cat([x[:, 4:], x[:, :4]], 1)


def gated_by_a_pixel(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x[:, 2:3])


def many_at_once(x: Tensor) -> Tensor:
    kept = [x]
    for _ in range(9):
        kept.append(kept[-1].relu() * 0.75 - x)
    for value in kept:
        x = x + value
    return x


@needs_kernels
@pytest.mark.parametrize(
    "middle",
    [
        swapped,
        gated_by_a_pixel,
        many_at_once,
        lambda x: torch.cat([x, x], 1)[:, 3:11] * x,
        lambda x: torch.cat([x.relu(), x[:, :3]], 1)[:, 3:] - torch.cat([x, x], 1)[:, 5:13],
        lambda x: x.mean((2, 3), keepdim=True) + x,
        lambda x: x.mean((2, 3), keepdim=True) * x.mean((2, 3), keepdim=True).sigmoid() * x,
    ],
)
def test_channels_that_lie_elsewhere_are_found(middle) -> None:
    torch.manual_seed(1)
    model = convert(Network(middle).eval(), head_tail_bits=32)
    image = picture(9, 14)
    _, expected = codes_of_reference(model, image, 1)
    assert expected.std() > 0.5
    for isa in ISAS:
        engine = NativeEngine(model, 1, isa=isa)
        assert np.abs(engine.run(image[None])[0].astype(int) - expected).max() <= 1


@needs_kernels
def test_the_shuffle_of_a_compact_network_is_its_last_step() -> None:
    """One sweep for each convolution, one for the picture and one for the base that is added."""
    program = NativeEngine(quantized("Compact"), 1)._program.network.program[0]
    assert [sweep.source for sweep in program.sweep[: program.sweeps]] == [
        structures.FROM_PICTURE,
        *[structures.FROM_CONV] * 5,
        structures.FROM_INDEX,
        structures.FROM_CONV,
    ]
    assert {sweep.factor for sweep in program.sweep[: program.sweeps]} == {1}


@needs_kernels
@pytest.mark.parametrize("gain", [0.5, 20.0])
def test_a_tail_runs_on_integers_where_rounding_its_weights_adds_little(gain: float) -> None:
    torch.manual_seed(0)
    net = EDSR(3, 3, num_feat=24, num_block=1, upscale=2).eval()
    with torch.no_grad():
        net.conv_last.weight *= gain
        net.conv_last.bias += 0.5
    pictures = [picture(24, 20)]
    net = post_training.quantize(net, post_training.Bits(4, 4), pictures)
    model, image = convert(net, calib=pictures), picture(11, 13)
    _, expected = codes_of_reference(model, image, 1)
    assert expected.std() > 1
    for isa in ISAS:
        engine = NativeEngine(model, 1, isa=isa)
        program = engine._program.network.program[0]
        tail = program.sweep[program.sweeps - 2].conv
        assert (tail.blocks, tail.kind) == (2, structures.WORDS if gain < 1 else structures.FLOATS)
        assert np.abs(engine.run(image[None])[0].astype(int) - expected).max() <= 1


class GrayBase(nn.Module):
    """A pixel shuffle, and a single enlarged channel that is added to all colours."""

    def __init__(self, *, gray: str) -> None:
        super().__init__()
        self.first, self.base = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 1, 1)
        self.last = nn.Conv2d(8, 4 if gray == "shuffled" else 12, 3, padding=1)
        self.gray = gray

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, h, w) to (B, 3, 2h, 2w)."""
        features = self.first(x)
        base = x if self.gray == "shuffled" else self.base(features)
        enlarged = nn.functional.interpolate(base, scale_factor=2, mode="nearest")
        return nn.functional.pixel_shuffle(self.last(features), 2) + enlarged


@needs_kernels
@pytest.mark.parametrize("gray", ["shuffled", "enlarged"])
def test_one_channel_goes_with_all_colours(gray: str) -> None:
    torch.manual_seed(0)
    model = convert(GrayBase(gray=gray).eval(), head_tail_bits=32)
    image = picture(9, 7)
    _, expected = codes_of_reference(model, image, 1)
    for isa in ISAS:
        found = NativeEngine(model, 1, isa=isa).run(image[None])[0]
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_maps_share_memory_when_they_are_not_needed_at_once() -> None:
    def used(written: list[int], read: list[int]) -> Map:
        made = [[Sweep(n, structures.FROM_MAPS, 1, 16) for n in numbers] for numbers in (written, read)]
        return Map(1, 16, structures.BYTES, written=made[0], read=made[1])

    assert assign_slots([used([0], [1]), used([1], [2]), used([2], [3]), used([3], [4])]) == [0, 1, 0, 1]
    assert assign_slots([used([0], [3]), used([1, 2], [4]), used([4], [5])]) == [0, 1, 0]


# What is refused


@needs_kernels
@pytest.mark.parametrize(
    ("middle", "why"),
    [
        (nn.Conv2d(8, 8, 7, padding=3), "middle has a kernel of 7 x 7"),
    ],
)
def test_what_it_cannot_run_is_said_and_left_to_others(middle, why: str) -> None:
    assert_left_to_others(convert(Network(middle).eval(), head_tail_bits=32), why)


@needs_kernels
def test_steps_without_kernels_are_named() -> None:
    from tests.deploy.test_operations import Net, layer_norm

    with pytest.raises(
        InputError, match=r"engine native: .*no kernel for Norm layer2.input; use --engine openvino"
    ):
        NativeEngine(layer_norm(Net()), 1)


@needs_kernels
def test_auto_takes_it(monkeypatch: Any) -> None:
    monkeypatch.setattr(select, "native_is_fastest", lambda _: True)
    monkeypatch.setattr(cpu, "describe", lambda: ("a processor", frozenset()))
    model = quantized("MSRResNet")
    assert select.create("auto", model).name == "native"
    # sweeps have no kernels for matrix units
    monkeypatch.setattr(cpu, "describe", lambda: ("a processor", frozenset({"amx_int8"})))
    assert select.create("auto", model).name != "native"
    assert select.create("native", model).name == "native"
    monkeypatch.setattr(select, "find_spec", lambda _: None)
    assert select.create("auto", model).name == "native"


@needs_kernels
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_linear_tail_is_one_convolution_and_the_border(scale: int) -> None:
    torch.manual_seed(0)
    model = convert(EDSR(3, 3, num_feat=24, num_block=1, upscale=scale).eval(), head_tail_bits=32)
    images = [picture(height, width) for height, width in [*SIZES, (2, 2), (3, 3), (5, 2)]]
    references = [codes_of_reference(model, image, 1)[1] for image in images]
    for isa in ISAS:
        engine = NativeEngine(model, 1, isa=isa, threads=2)
        program = engine._program.network.program[0]
        sources = [sweep.source for sweep in program.sweep[: program.sweeps]]
        assert sources[-2:] == [structures.FROM_CONV, structures.FROM_RING]
        for image, expected in zip(images, references, strict=True):
            assert np.abs(engine.run(image[None])[0].astype(int) - expected).max() <= 1


@needs_kernels
def test_a_scale_above_8_is_refused() -> None:
    model = quantized("Compact")
    with pytest.raises(InputError, match="it upscales by 9"):
        NativeEngine(replace(model, header=replace(model.header, scale=9)), 1)
