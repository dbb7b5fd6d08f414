"""The native engine: the integer reference's codes bit for bit, on every instruction set, size and
number of threads."""

from __future__ import annotations

import ctypes
import itertools
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantsr import Upscaler
from quantsr.deploy.engines import reference as integer_reference
from quantsr.deploy.engines import select
from quantsr.deploy.folded import FoldedConv
from quantsr.deploy.native import library, structures
from quantsr.deploy.native.arrays import G2, G4, Arrays, rounding_error, transformed
from quantsr.deploy.native.engine import NativeEngine
from quantsr.deploy.native.match import Unsupported
from quantsr.deploy.native.program import ConvProgram
from quantsr.deploy.native.sweep_program import SweepProgram
from quantsr.deploy.packed.model import PackedModel
from quantsr.deploy.passes.fold import fold
from quantsr.deploy.stand_ins.convolutional import random_model
from quantsr.errors import InputError
from tests.deploy.codes import (
    assert_equal_codes,
    codes_of_reference,
    with_zero_points,
)
from tests.deploy.native import (
    HERE,
    ISAS,
    assert_within_memory,
    needs_kernels,
    picture,
    some_of,
)
from tests.deploy.quantsr_t import small_model
from tests.reference import winograd

needs_amx = pytest.mark.skipif(HERE != "amx", reason="this processor, system or compiler has no AMX")

SIZES = [(18, 21), (1, 1), (1, 6), (2, 2), (2, 5), (3, 3), (4, 1), (5, 2), (7, 31)]


def model_of(**options):
    return random_model(**{"num_feat": 16, "num_block": 3, "depths": (3, 1), "first_bits": 32, **options})


def test_the_kernels_are_compiled_where_there_is_a_compiler() -> None:
    if not any(shutil.which(name) for name in ("cc", "gcc")):
        pytest.skip("no C compiler here")
    assert library.load() is not None


@pytest.mark.parametrize(("form", "matrix"), [(winograd.SMALL, G2), (winograd.LARGE, G4)], ids=["2x2", "4x4"])
@given(st.integers(0, 2**31), st.integers(2, 6), st.integers(2, 4))
def test_transforms_of_codes_are_exact(form, matrix, seed: int, bits_a: int, bits_w: int) -> None:
    rng = np.random.default_rng(seed)
    side, positions = len(form.a), len(matrix) ** 2
    tile = rng.integers(-(2 ** (bits_a - 1)), 2 ** (bits_a - 1), (5, side + 2, side + 2))
    weight = rng.integers(-(2 ** (bits_w - 1)), 2 ** (bits_w - 1), (3, 5, 3, 3))
    expected = winograd.plain_tile(tile, weight)
    np.testing.assert_array_equal(winograd.tile_of_outputs(tile, weight, form), expected)
    inputs = (form.b @ tile @ form.b.T).reshape(5, positions).T[:, :, None]
    products = transformed(weight, matrix) * inputs
    times = matrix[0, 0] ** 2
    scaled = form.a @ products.sum(1).T.reshape(3, len(matrix), len(matrix)) @ form.a.T
    np.testing.assert_array_equal(scaled, times * expected)


@pytest.mark.parametrize(
    ("form", "matrix", "most_bits_a"), [(winograd.SMALL, G2, 6), (winograd.LARGE, G4, 4)], ids=["2x2", "4x4"]
)
def test_transforms_of_few_bits_are_bytes(form, matrix, most_bits_a: int) -> None:
    """At every position, for the worst of all tiles and kernels: by the coefficients of each
    sign."""

    def bounds(rows: np.ndarray, low: int, high: int) -> tuple[int, int]:
        terms = np.einsum("ya,xb->yxab", rows, rows).reshape(len(rows) ** 2, -1)
        more, less = terms.clip(0).sum(1), terms.clip(None, 0).sum(1)
        return int((more * low + less * high).min()), int((more * high + less * low).max())

    lowest, highest = bounds(matrix, -8, 7)
    assert -128 <= lowest <= highest <= 127
    terms = np.abs(np.einsum("ya,xb->yxab", form.b, form.b)).sum((2, 3)).max()
    for bits in (most_bits_a, most_bits_a + 1):
        assert (terms * (2**bits - 1) <= 255) == (bits == most_bits_a)


def test_the_tails_weights_keep_flat_regions() -> None:
    """Inputs of 16 bits leave the tail's weights few bits of 32: rounded one by one, nine errors
    would add up where neighbours are alike."""
    rng = np.random.default_rng(4)
    weight, step = rng.normal(0, 0.05, (16, 32, 3, 3)), rng.uniform(1e-3, 4e-3, 32)
    arrays = Arrays()  # what conv points into lives as long
    conv = arrays.wide_conv(weight, np.zeros(16), step, 1)
    laid_out = np.frombuffer((ctypes.c_int16 * (16 * 32 * 16)).from_address(conv.weight), np.int16)
    flat = 5  # of 16 positions the only one where inputs without differences are not 0
    by_pairs = laid_out.reshape(16, 16, 16, 2)[flat]  # pairs of inputs, outputs, of a pair
    sums = by_pairs.transpose(1, 0, 2).reshape(16, 32)
    multiplier = 4 * np.ctypeslib.as_array(conv.scale, (16, 1)).astype(np.float64)
    assert np.abs(sums - weight.sum((2, 3)) * step / multiplier).max() <= 0.5 + 1e-3
    assert np.abs(sums).max() > 100


def test_as_many_channels_as_sums_of_32_bits_hold_are_laid_out_and_no_more() -> None:
    """Transformed weights of 9 * 127 times transformed inputs of 4 * 255, for each channel."""
    most = (2**31 - 1) // (9 * 127 * 4 * 255)
    ones = np.ones(1, np.float32)
    for channels in (most, most + 1):
        weight = np.full((1, channels, 3, 3), 127, np.int8)
        conv = FoldedConv("after_body", weight, ones, ones, (0, 255))
        if channels == most:
            Arrays().code_words(conv)
        else:
            with pytest.raises(Unsupported, match="after_body has too many channels"):
                Arrays().code_words(conv)


@needs_kernels
@pytest.mark.parametrize(
    ("num_feat", "bits", "zero_points"),
    some_of(5, [16, 32, 48, 64], [(2, 2), (3, 3), (4, 4), (2, 6), (4, 5), (4, 6)], [False, True]),
)
def test_codes_of_2_to_6_bits_are_the_references_bit_for_bit(
    bits: tuple[int, int], num_feat: int, zero_points: bool
) -> None:
    """Those that every convolution of every block reads, at every depth, on every instruction set;
    of more bits, the kernels refuse (below)."""
    model = model_of(
        num_feat=num_feat,
        num_block=2,
        depths=(2, 1),
        bits_w=bits[0],
        bits_a=bits[1],
        head_tail_bits=32,
        per_channel=num_feat == 32,
        upsampler="pixelshuffledirect",  # is laid out faster
    )
    model = with_zero_points(model) if zero_points else model
    image = picture(18, 21)
    for depth in model.header.depths:
        expected, _ = codes_of_reference(model, image, depth)
        assert len(expected) == 2 * depth
        for isa in ISAS:
            assert_equal_codes(NativeEngine(model, depth, isa=isa, threads=2).codes(image), expected)


@pytest.fixture(scope="module")
def codes_of_sizes() -> tuple[PackedModel, list[tuple[np.ndarray, dict[str, np.ndarray]]]]:
    """A network, and pictures of many sizes with the reference's codes."""
    model = model_of(bits_w=3, bits_a=3, head_tail_bits=32, upsampler="pixelshuffledirect")
    images = [picture(height, width) for height, width in [*SIZES, (64, 57)]]
    return model, [(image, codes_of_reference(model, image, 3)[0]) for image in images]


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 3, 6])
def test_copies_of_codes_are_whole_at_every_size_and_change_nothing(
    codes_of_sizes, isa: str, threads: int
) -> None:
    """Bytes beside the picture, which tiles beyond it write, are no codes."""
    model, pictures = codes_of_sizes
    engine = NativeEngine(model, 3, isa=isa, threads=threads)
    for image, expected in pictures:
        before = engine.run(image[None])
        got = engine.codes(image)
        assert list(got) == list(expected)
        for name, codes in expected.items():
            np.testing.assert_array_equal(got[name], codes, err_msg=name)
        np.testing.assert_array_equal(engine.run(image[None]), before)


@needs_kernels
@pytest.mark.parametrize(
    ("isa", "num_feat"),
    [  # amx's convolutions have no transforms, plain C is slow
        pytest.param(isa, feat, marks=[pytest.mark.integration] if isa == "plain" and feat > 16 else [])
        for isa in ISAS
        if isa != "amx"
        for feat in (16, 32, 64)
    ],
)
def test_tiles_of_either_size_give_the_same_picture(isa: str, num_feat: int, monkeypatch) -> None:
    """And both in one network, whose layers then have strips of two and of four rows."""
    # of the two tails the one that is laid out faster: the tiles are the blocks'
    model = model_of(num_feat=num_feat, bits_w=3, bits_a=3, upsampler="pixelshuffledirect")
    large = NativeEngine(model, 3, isa=isa)
    others = []
    for sizes in ([structures.TILE], [structures.TILE, structures.LARGE_TILE, structures.LARGE_TILE]):
        tiles = itertools.cycle(sizes)
        monkeypatch.setattr(
            ConvProgram, "_code_conv", lambda self, conv, tiles=tiles: self._tiled(conv, next(tiles))
        )
        others += [NativeEngine(model, 3, isa=isa, threads=threads) for threads in (1, 6)]
    used = [
        {conv.tile for block in engine._program.network.body[:3] for conv in (block.conv1, block.conv2)}
        for engine in (large, others[0], others[-1])
    ]
    assert used == [{structures.LARGE_TILE}, {structures.TILE}, {structures.TILE, structures.LARGE_TILE}]
    for height, width in [*SIZES, (64, 57)] if isa != "plain" else SIZES:  # plain C is slow
        image = picture(height, width)[None]
        expected = large.run(image)
        for engine in others:
            np.testing.assert_array_equal(engine.run(image), expected)


@needs_kernels
@pytest.mark.parametrize(("bits_w", "bits_a", "tile"), [(4, 4, 4), (2, 2, 4), (4, 5, 2), (2, 6, 2)])
def test_tiles_are_large_where_their_transforms_are_bytes(bits_w: int, bits_a: int, tile: int) -> None:
    model = model_of(bits_w=bits_w, bits_a=bits_a)
    body = ConvProgram(fold(model, 3, wide_inputs=False), model, "plain").network.body
    assert {conv.tile for block in body[:3] for conv in (block.conv1, block.conv2)} == {tile}


@needs_kernels
@pytest.mark.parametrize(
    ("scale", "head_tail_bits", "upsampler"),
    some_of(7, [1, 2, 3, 4, 8], [8, 16, 32], ["pixelshuffle", "pixelshuffledirect"]),
)
def test_every_size_and_scale(scale: int, head_tail_bits: int, upsampler: str) -> None:
    model = model_of(scale=scale, head_tail_bits=head_tail_bits, upsampler=upsampler)
    engine = NativeEngine(model, 3, threads=2)
    for height, width in SIZES:
        image = picture(height, width)
        expected = integer_reference.run(model, image)
        got = engine.run(image[None])[0]
        assert got.shape == expected.shape
        difference = np.abs(got.astype(int) - expected)
        # The reference rounds the inputs of 16 bits, the kernels to 14, and the tail's stages in
        # between not at all.
        assert (difference > 1).mean() <= (0.001 if scale < 8 else 0.005), (height, width)
        assert difference.max() <= 2
        assert (difference > 0).mean() <= 0.2


@needs_kernels
def test_threads_instruction_sets_and_neighbours_change_nothing() -> None:
    model = model_of(num_feat=32)
    images = np.stack([picture(13, 40, seed) for seed in range(3)])
    expected = NativeEngine(model, 3, isa="plain", threads=1).run(images)
    for isa, threads in itertools.product(ISAS, (1, 2, 5)):
        engine = NativeEngine(model, 3, isa=isa, threads=threads)
        np.testing.assert_array_equal(engine.run(images), expected)
        np.testing.assert_array_equal(engine.run(images[1:2])[0], expected[1])
        tiles = dict(engine.run_tiles(enumerate(images)))
        np.testing.assert_array_equal(np.stack(list(tiles.values())), expected)


@needs_amx
@pytest.mark.parametrize("upsampler", ["pixelshuffle", "pixelshuffledirect"])
@pytest.mark.parametrize("head_tail_bits", [8, 32])
@pytest.mark.parametrize(("bits_w", "bits_a"), [(2, 2), (4, 4), (2, 6)])
@pytest.mark.parametrize("num_feat", [16, 32, 48, 64, 80])
def test_amx_gives_the_same_floats(num_feat, bits_w, bits_a, head_tail_bits, upsampler) -> None:
    """Not rounded to bytes, on sizes around those of tiles and with several threads."""
    model = model_of(
        num_feat=num_feat, bits_w=bits_w, bits_a=bits_a, head_tail_bits=head_tail_bits, upsampler=upsampler
    )
    vnni, amx = NativeEngine(model, 3, isa="avx512_vnni"), NativeEngine(model, 3, isa="amx", threads=3)
    for height, width in [(1, 1), (5, 2), (3, 16), (6, 17), (4, 33), (18, 47)]:
        image = picture(height, width)[None].astype(np.float32)
        np.testing.assert_array_equal(amx.run(image), vnni.run(image))


@needs_amx
@pytest.mark.parametrize(("bits_w", "bits_a"), [(8, 6), (6, 5), (8, 4)])
def test_amx_runs_weights_of_up_to_8_bits(bits_w: int, bits_a: int) -> None:
    model = model_of(num_feat=48, bits_w=bits_w, bits_a=bits_a)
    image = picture(18, 21)
    difference = np.abs(
        NativeEngine(model, 3, isa="amx").run(image[None])[0].astype(int)
        - integer_reference.run(model, image)
    )
    assert difference.max() <= 2
    assert (difference > 1).mean() <= 0.001


@needs_kernels
@pytest.mark.parametrize("upsampler", ["pixelshuffle", "pixelshuffledirect"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_tiled_equals_whole_bit_for_bit(scale: int, upsampler: str) -> None:
    model = model_of(scale=scale, upsampler=upsampler)
    image = picture(47, 61)
    whole = Upscaler(model, "native")(image)
    for tile in (9, 20, 33):
        np.testing.assert_array_equal(Upscaler(model, "native", tile=tile)(image), whole)


@needs_kernels
def test_sixteen_bits_are_kept() -> None:
    model = model_of(head_tail_bits=32)
    image = picture(12, 14).astype(np.uint16) * 257
    result = Upscaler(model, "native")(image)
    difference = np.abs(result.astype(int) - Upscaler(model, "torch")(image))
    assert difference.max() <= 2
    assert len(np.unique(result % 257)) > 100


@needs_kernels
@pytest.mark.parametrize(
    ("model", "why"),
    [
        (model_of(num_feat=24), "24 channels are not a multiple of 16"),
        (model_of(first_bits=8), "conv_first is quantized"),
        (model_of(bits_w=8), "too many bits"),
        (model_of(bits_a=7), "too many bits"),
        (model_of(bits_a=8), "too many bits"),
        (model_of(bits_w=32), "Activation relu comes where its kernels have FoldedConv"),
    ],
)
def test_what_the_kernels_of_blocks_lack_runs_in_sweeps(model, why: str) -> None:
    isa = "avx512_vnni" if HERE == "amx" else HERE  # amx runs blocks of more bits
    with pytest.raises(Unsupported, match=why):
        ConvProgram(fold(model, 3, wide_inputs=False), model, isa)
    image = picture(12, 9)
    codes, expected = codes_of_reference(model, image, 3)
    engine = NativeEngine(model, 3, isa=isa)
    assert isinstance(engine._program, SweepProgram)
    for name, found in engine.codes(image).items():
        np.testing.assert_array_equal(found, codes[name], err_msg=name)
    assert np.abs(engine.run(image[None])[0].astype(int) - expected).max() <= 1


@needs_kernels
def test_blocks_whose_sums_of_two_products_exceed_16_bits_run_in_sweeps_on_avx2() -> None:
    if "avx2" not in ISAS:
        pytest.skip("no AVX2 here")
    model = model_of(bits_a=6)
    layer = model.layers["body.0.conv1"]
    layers = {**model.layers, layer.name: replace(layer, weight=np.full_like(layer.weight, -8))}
    model = replace(model, layers=layers)
    with pytest.raises(Unsupported, match=r"body.0.conv1 do not fit in this processor's 16 bits"):
        ConvProgram(fold(model, 3, wide_inputs=False), model, "avx2")
    image = picture(12, 9)
    codes, _ = codes_of_reference(model, image, 3)
    for name, found in NativeEngine(model, 3, isa="avx2").codes(image).items():
        np.testing.assert_array_equal(found, codes[name], err_msg=name)


@needs_kernels
def test_auto_takes_it_where_it_is_fastest(monkeypatch) -> None:
    model = model_of()
    monkeypatch.setattr(select, "native_is_fastest", lambda _: True)
    assert Upscaler(model).engine == "native"
    monkeypatch.setattr(select, "native_is_fastest", lambda _: False)
    assert Upscaler(model).engine != "native"


def test_matrix_units_without_kernels_are_left_to_openvino(monkeypatch) -> None:
    from quantsr import cpu

    monkeypatch.setattr(library, "best_isa", lambda: "avx512_vnni")
    monkeypatch.setattr(cpu, "describe", lambda: ("a processor", frozenset({"amx_int8"})))
    assert not select.native_is_fastest(model_of())  # kernels compiled without AMX
    assert select.native_is_fastest(small_model())  # of QuantSR-T, where products are a small part
    monkeypatch.setattr(cpu, "describe", lambda: ("a processor", frozenset()))
    assert select.native_is_fastest(model_of())
    monkeypatch.setattr(library, "best_isa", lambda: "amx")
    monkeypatch.setattr(cpu, "describe", lambda: ("a processor", frozenset({"amx_int8"})))
    assert select.native_is_fastest(model_of())
    for isa in (None, "plain"):
        monkeypatch.setattr(library, "best_isa", lambda isa=isa: isa)
        assert not select.native_is_fastest(model_of())


def test_without_kernels_the_remedy_is_named(monkeypatch) -> None:
    monkeypatch.setattr(library, "load", lambda: None)
    with pytest.raises(InputError, match="install a C compiler"):
        select.create("native", model_of())


@needs_kernels
def test_an_instruction_set_that_there_is_not() -> None:
    with pytest.raises(InputError, match="isa: 'sse9' is not one that this processor has"):
        select.create("native", model_of(), isa="sse9")


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", SIZES)
def test_the_kernels_stay_within_their_memory(isa: str, size: tuple[int, int]) -> None:
    assert_within_memory(NativeEngine(model_of(), 3, isa=isa), isa, size)


@needs_kernels
@pytest.mark.parametrize(
    ("num_feat", "scale", "bits", "least"), [(112, 3, (2, 6), 15), (32, 4, (3, 4), 7), (16, 2, (4, 4), 0)]
)
def test_the_distance_from_the_reference_is_that_of_the_tails_weights(
    num_feat: int, scale: int, bits: tuple[int, int], least: float, monkeypatch
) -> None:
    """docs/explanation/numerics.md states the bound. With a float tail the same network keeps to 1
    of 255."""
    errors: list[float] = []
    integers_of = Arrays._wide_integers

    def noted(self: Arrays, weight: Any, step: Any, blocks: int) -> Any:
        errors.append(rounding_error(weight, step, blocks))
        return integers_of(self, weight, step, blocks)

    monkeypatch.setattr(Arrays, "_wide_integers", noted)
    image = np.random.default_rng(0).integers(0, 256, (24, 28, 3), dtype=np.uint8)
    for head_tail_bits in (8, 16, 32):
        model = model_of(
            num_feat=num_feat, scale=scale, bits_w=bits[0], bits_a=bits[1], head_tail_bits=head_tail_bits
        )
        found = NativeEngine(model, 3).run(image[None])[0].astype(int) - integer_reference.run(model, image)
        if head_tail_bits == 8:
            assert errors[-1] >= least
            spread = 0.3 + 0.05 * errors[-1]
            assert found.std() <= spread
            assert abs(found).max() <= 8 * spread
        else:
            assert abs(found).max() <= 1
