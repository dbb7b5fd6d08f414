"""Networks in files, with pictures and what the integer reference and this processor's kernels make
of them: kernels of another processor, in an emulator where torch would take hours, are compared
with them.

    python -m tests.deploy.recorded FOLDER [--all]    records CHOSEN, or all networks

`test_recorded.py` compares.

Needs torch to record, and none to compare.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from quantsr.deploy.native import library
from quantsr.deploy.native.engine import NativeEngine
from quantsr.deploy.packed import packing
from quantsr.deploy.packed.model import PackedModel
from quantsr.trained_files.names import find_packed, shipped
from tests.deploy.native import picture

Models = dict[str, Callable[[], PackedModel]]

SIZES = [(18, 21), (7, 31), (2, 5), (1, 1)]
SEEDS = range(12)
FUSED, SEPARATE = "fused", "separate"
"""Whether a processor rounds products in float layers before it adds them: of one kind all give the
same floats."""


CHOSEN = (
    "blocks_16_w2a2_8",  # one column of outputs, 8-bit tail, in 5x5
    "blocks_32_w4a6_8",  # tiles of 2x2
    "blocks_48_w4a4_32",  # a rest of columns, float tail
    "blocks_64_w4a4_16_zero",  # tiles of 4x4, 16-bit tail, in 3x3, ranges that are no two's complement
    "swin_QuantSR_4",
    "swin_2DQuant_8",
    "swin_60_zero",  # windows of 8x8, as shipped
    "swin_and_sweeps",
    "swin_3conv",  # floats between sweeps and Swin layers
    "swin_3conv_codes",
    "sweeps_Compact_4",
    "sweeps_EDSR_4",
    "sweeps_RCAN_4",
    "sweeps_SPAN_8",
    "sweeps_distillation_4",
    "zoo_quantsr_c_small_x3_w4a6",
)
"""Networks that together run every kernel."""


def rounding_of(isa: str) -> str:
    """The kind of an instruction set."""
    return SEPARATE if isa == "plain" else FUSED


def blocks() -> Models:
    """Networks of residual blocks: channels and bits that differ in tiles and in columns, and with
    ranges of codes that are no two's complement."""
    from quantsr.deploy.stand_ins.convolutional import random_model
    from tests.deploy.codes import with_zero_points

    def make(num_feat: int, bits: tuple[int, int], head_tail_bits: int, zero_points: bool) -> PackedModel:
        model = random_model(
            num_feat=num_feat,
            num_block=2,
            depths=(2,),
            bits_w=bits[0],
            bits_a=bits[1],
            head_tail_bits=head_tail_bits,
            first_bits=32,
            per_channel=num_feat == 32,
            upsampler="pixelshuffledirect" if zero_points else "pixelshuffle",
        )
        return with_zero_points(model) if zero_points else model

    models: Models = {}
    for i, bits in enumerate([(2, 2), (3, 3), (4, 4), (2, 6), (4, 5), (4, 6)]):
        for j, num_feat in enumerate([16, 32, 48, 64]):
            zero_points, head_tail_bits = (i + j) % 2 == 1, (8, 32, 16)[(i + j) % 3]
            name = f"blocks_{num_feat}_w{bits[0]}a{bits[1]}_{head_tail_bits}{'_zero' * zero_points}"
            arguments = (num_feat, bits, head_tail_bits, zero_points)
            models[name] = lambda arguments=arguments: make(*arguments)  # type: ignore[misc]
    return models


def transformers() -> Models:
    """Networks of Swin layers of every protocol, and of channels, heads and windows with and
    without a rest."""
    from tests.deploy.codes import with_zero_points
    from tests.deploy.quantsr_t import PROTOCOLS, small_model

    models: Models = {}
    for protocol, options in PROTOCOLS.items():
        for bits in (2, 3, 4, 8):
            kept = {"num_block": 1, "bits_w": bits, "bits_a": bits, "head_tail_bits": 32 if bits < 8 else 8}
            models[f"swin_{protocol}_{bits}"] = lambda kept=kept, options=options: small_model(  # type: ignore[misc]
                **kept, **options
            )
    for options in (
        {"embed_dim": 60, "num_heads": 6, "window_size": 8},
        {"embed_dim": 36, "num_heads": 4, "window_size": 8, "quantize_attention": True},
        {"embed_dim": 16, "num_heads": 1, "window_size": 12},
    ):
        models[f"swin_{options['embed_dim']}_zero"] = lambda options=options: with_zero_points(  # type: ignore[misc]
            small_model(num_block=1, head_tail_bits=32, **options)
        )
    tail = {"upsampler": "pixelshuffle", "scale": 4}
    models["swin_and_sweeps"] = lambda: small_model(num_block=1, head_tail_bits=32, **tail)
    three = {"embed_dim": 40, "num_heads": 4, "resi_connection": "3conv", "head_tail_bits": 32}
    models["swin_3conv"] = lambda: small_model(num_block=1, upsampler="pixelshuffle", **three)
    models["swin_3conv_codes"] = lambda: small_model(num_block=1, quantize_conv=True, **three)
    return models


def sweeps() -> Models:
    """Networks that run in sweeps."""
    from tests.deploy.swept import NETWORKS, quantized

    return {
        f"sweeps_{name}_{bits}".replace(" ", "_"): lambda name=name, bits=bits: quantized(name, bits)  # type: ignore[misc]
        for name in [*NETWORKS, "distillation"]
        for bits in (2, 4, 6, 8)
    }


def zoo() -> Models:
    """The shipped networks."""
    return {f"zoo_{name}": lambda name=name: packing.load(find_packed(name)) for name in shipped()}  # type: ignore[misc]


def record(folder: Path, models: Models) -> None:
    """One packed file for each network, and one of arrays: `image.I` (h, w, 3), `codes.I.LAYER`,
    which are the integer reference's, and `result.I.KIND`, float32 (H, W, 3) of this processor's
    kernels."""
    folder.mkdir(parents=True, exist_ok=True)
    isas = {rounding_of(isa): isa for isa in library.isas() if isa != "amx"}
    for name, make in models.items():
        model = make()
        depth = model.depth_or_default(None)
        packing.save(model, folder / f"{name}.safetensors")
        arrays = {}
        for i, (image, codes) in enumerate(_pictures(name, model, depth)):
            arrays[f"image.{i}"] = image
            arrays.update({f"codes.{i}.{layer}": values for layer, values in codes.items()})
            for kind, isa in isas.items():
                result = NativeEngine(model, depth, isa=isa, threads=1).run(image[None].astype(np.float32))
                arrays[f"result.{i}.{kind}"] = result[0]
        np.savez_compressed(folder / f"{name}.npz", **arrays)


def _pictures(
    name: str, model: PackedModel, depth: int
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Pictures with the reference's codes of what the native engine reads; none where float32's
    rounding may decide about codes."""
    from tests.deploy.codes import codes_of_reference
    from tests.deploy.test_native_sweeps import ROUNDS
    from tests.deploy.test_native_t import codes_with_room

    if name.startswith("swin"):
        multiple = NativeEngine(model, depth)._program.multiple
        images = [picture(multiple, 2 * multiple, seed) for seed in SEEDS]
        read = NativeEngine(model, depth).codes(images[0])
        found = [(image, codes_with_room(model, image)) for image in images]
        certain = [(image, {layer: codes[layer] for layer in read}) for image, codes in found if codes]
        yield from certain[:2]
        yield picture(13, 11), {}
        return
    sizes = [(9, 13)] if name.startswith("zoo") else SIZES
    certain_name = "quantsr_t" not in name and not any(part in name for part in ROUNDS)
    for height, width in sizes:
        image = picture(height, width)
        if not certain_name:
            yield image, {}
            continue
        read = NativeEngine(model, depth).codes(image)
        expected, _ = codes_of_reference(model, image, depth)
        yield image, {layer: expected[layer].astype(np.int16) for layer in read}


def differences(folder: Path, name: str, isa: str) -> tuple[list[str], int]:
    """What the kernels compute otherwise than was recorded, and the number of codes and floats that
    were compared. Nothing may differ by a single bit."""
    model = packing.load(folder / f"{name}.safetensors")
    depth = model.depth_or_default(None)
    one, several = (NativeEngine(model, depth, isa=isa, threads=threads) for threads in (1, 3))
    found, compared = [], 0
    with np.load(folder / f"{name}.npz") as arrays:
        for i in range(sum(key.startswith("image.") for key in arrays.files)):
            image = arrays[f"image.{i}"][None]
            result = arrays[f"result.{i}.{rounding_of(isa)}"]
            pairs = {
                "floats": (one.run(image.astype(np.float32))[0], result),
                "bytes": (several.run(image)[0], np.rint(result)),
            }
            prefix = f"codes.{i}."
            expected = {key.removeprefix(prefix): key for key in arrays.files if key.startswith(prefix)}
            if expected:
                got = several.codes(image[0])
                assert got.keys() == expected.keys()
                pairs |= {layer: (got[layer], arrays[key]) for layer, key in expected.items()}
            for what, (here, there) in pairs.items():
                compared += there.size
                if not np.array_equal(here, there):
                    found.append(
                        f"picture {i}, {what}: {np.count_nonzero(here != there)} of {there.size} values"
                    )
    return found, compared


def every() -> Models:
    """All networks."""
    return {**blocks(), **transformers(), **sweeps(), **zoo()}


if __name__ == "__main__":
    networks = every()
    record(Path(sys.argv[1]), networks if "--all" in sys.argv else {name: networks[name] for name in CHOSEN})
