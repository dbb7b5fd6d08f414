"""The structures that the kernels read, which are those of `network.h`, and the numbers that stand
in them."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_double, c_float, c_int8, c_int32, c_void_p

BYTES, WORDS, FLOATS, CODES, SPLIT = range(5)
"""Kinds of a convolution's inputs and weights."""

FROM_MAPS, FROM_PICTURE, FROM_CONV, FROM_INDEX, FROM_BILINEAR, FROM_MEAN, FROM_RING = range(7)
"""Sources of a sweep."""

IN_TILES, IN_TAPS, IN_DOUBLES = range(3)
"""Forms of its convolution."""

(
    DO_LOAD,
    DO_ADD,
    DO_SUBTRACT,
    DO_MULTIPLY,
    DO_SCALE,
    DO_OFFSET,
    DO_SLOPE,
    DO_SIGMOID,
    DO_SILU,
    DO_TANH,
    DO_GELU,
    DO_STORE,
    DO_CODES,
    DO_SHOW,
) = range(14)
"""Element-wise operations of sweeps."""

AS_IS, MULTIPLIED, DIVIDED, AFFINE = range(4)
"""What DO_CODES rounds: x, (x + a) * b * c, (x + a) / b, x * b + a."""

START_MAP, LAYERS_MAP = -1, -2
"""Slots of maps of Swin layers: the first convolution's result, and what layers give to sweeps."""

REGISTERS = 6

TILE, LARGE_TILE = 2, 4
"""Outputs along one side of a tile: of F(2x2, 3x3), and of F(4x4, 3x3) in blocks of few bits."""

LARGEST_WORD = 8191
"""Of 16-bit inputs: four of them add up to 16 bits."""


F32 = POINTER(c_float)

# The structures of `network.h`, field by field, under C's names: `scale` there is what Python calls
# a multiplier, the network's `factor` the upscaling factor. Shapes: C inputs and P outputs of a
# convolution, padded to multiples of 16; I and O of a linear layer; N tokens in a window. Pointers
# are NULL, and structures all 0, where there is no such part. Arrays are float32 where nothing else
# is said.


class Conv(ctypes.Structure):
    """A 3x3 convolution in Winograd's form, or a 5x5 one as four of them (`blocks` 2)."""

    _fields_ = (
        (
            "weight",
            c_void_p,
        ),  # for each position and part [C / g][P][g]: int8 (g = 4), int16 (2) or float32 (1), by `kind`
        (
            "start",
            POINTER(c_int32),
        ),  # of BYTES: [positions][P] int32, takes the offsets of the inputs off again, or sums16.py's groups
        ("scale", F32),  # [P] real value of one unit of the sum
        ("bias", F32),  # [P] in real units, or those of the next convolution's codes
        ("kind", c_int32),  # BYTES, WORDS, FLOATS, CODES or SPLIT
        ("blocks", c_int32),  # 1 or 2, along either axis
        ("outputs", c_int32),  # P
        ("tile", c_int32),  # TILE or LARGE_TILE; only of convolutions in blocks
        # of BYTES: added to the transformed inputs at position (1, 1) ...
        ("offset_sums", c_int32),
        ("offset_mixed", c_int32),  # ... and at the others
        ("is_signed", c_int32),  # of CODES and SPLIT: whether inputs are signed bytes
        ("in_groups", c_int32),  # of BYTES: whether `weight` and `start` are those of sums16.py
    )


class Quantizer(ctypes.Structure):
    """Codes of floats: `clip(rint((x + tau[c]) * factor[0] * factor[1]), low, high)`."""

    _fields_ = (
        ("tau", F32),  # [C] in real units
        ("factor", c_float * 2),  # codes per real unit, as a product
        ("low", c_float),
        ("high", c_float),
    )


class Block(ctypes.Structure):
    """`(shortcut * x + conv2(conv1(codes of x))) * gap[0] * gap[1] ...`, x in the units of
    training."""

    _fields_ = (
        ("input", Quantizer),
        ("conv1", Conv),
        ("conv2", Conv),
        ("low", F32),  # [C] least code of conv1's output, the ReLU in it
        ("high", c_float),  # largest code
        ("shortcut", c_float),
        ("gaps", c_int32),
        ("gap", F32),  # [gaps] shortcuts of the skipped blocks behind this one
    )


class Ring(ctypes.Structure):
    """The tail's kernels at the picture's border: first, inner, last row; in each first, inner,
    last column."""

    _fields_ = (
        ("weight", F32 * 9),  # [kh][kw][C][P] each, in pixel values
        ("bias", F32 * 9),  # [P] each, in pixel values
    )


class Requantizer(ctypes.Structure):
    """`clip(rint(x * scale[c] + shift[c]), low, high)`; x itself where `scale` is NULL."""

    _fields_ = (
        ("scale", F32),  # [channels] codes per unit of x
        ("shift", F32),  # [channels] in codes
        ("low", c_float),
        ("high", c_float),
    )


class Norm(ctypes.Structure):
    """LayerNorm over channels; with `low` < `high` it gives codes."""

    _fields_ = (
        ("weight", F32),  # [channels] in real units, or those of the codes
        ("bias", F32),  # [channels] likewise
        ("low", c_float),
        ("high", c_float),
    )


class Linear(ctypes.Structure):
    """`scale[o] * sum(bytes, weight[o]) + bias[o]`, the bytes being codes less their lowest."""

    _fields_ = (
        ("weight", POINTER(c_int8)),  # [O / 4][I / 4][4 outputs][4 inputs] int8
        ("start", POINTER(c_int32)),  # [O] int32, puts back what the bytes lack
        # [O] real value of one unit of the sum, or in units of codes where it `rounds`
        ("scale", F32),
        ("bias", F32),  # [O] likewise
        ("inputs", c_int32),  # I
        ("outputs", c_int32),  # O
        ("rounds", c_int32),  # whether the result is clip(rint(.), low, high)
        ("low", c_float),
        ("high", c_float),
        ("together", c_int32),  # steps of 4 inputs that are added in 16 bits; 0: sums have 32 bits
    )


class SwinLayer(ctypes.Structure):
    """`m = x + proj(attention(norm1(x)))`, then `middle_scale * m + input_scale * x +
    fc2(gelu(fc1(norm2(m))))`."""

    _fields_ = (
        ("norm1", Norm),
        ("norm2", Norm),
        ("q", Linear),
        ("k", Linear),
        ("v", Linear),
        ("proj", Linear),
        ("fc1", Linear),
        ("fc2", Linear),
        ("bias", F32),  # [heads][N keys][N queries] added to the scores
        ("score_scale", c_float),  # real value of one unit of q k^T
        ("probabilities", Requantizer),  # [N keys], where attention is quantized
        ("mix", Requantizer),  # of proj's input
        ("gelu", Requantizer),  # of fc2's input
        ("shift", c_int32),  # of the windows, in pixels
        ("middle_scale", c_float),
        ("input_scale", c_float),
    )


class Rstb(ctypes.Structure):
    """`stream_scale * x + closing(codes(layers(start_scale * x)))`, or sweeps in place of codes and
    closing."""

    _fields_ = (
        ("start_scale", c_float),
        ("stream_scale", c_float),
        ("layers", c_int32),
        ("layer", POINTER(SwinLayer)),  # [layers]
        ("codes", Requantizer),  # of the closing convolution's input, where it is quantized
        ("closing", Conv),
        ("factor", F32),  # [C] 16-bit integers per unit of that input
        ("sweeps", c_int32),  # of the program, in place of codes and closing convolution
        ("result", c_int32),  # the buffer that they give
    )


class Swin(ctypes.Structure):
    """The body of a QuantSR-T."""

    _fields_ = (
        ("dim", c_int32),  # channels, a multiple of 4
        ("heads", c_int32),
        ("hidden", c_int32),  # channels between fc1 and fc2, a multiple of 4
        ("window", c_int32),  # side in pixels
        ("groups", c_int32),
        ("group", POINTER(Rstb)),  # [groups]
        ("first", Norm),
        ("last", Norm),
        (
            "mask",
            F32,
        ),  # [last column, last row, both][N keys][N queries] added to the scores of shifted windows
    )


class Buffer(ctypes.Structure):
    """A map of a program: floats or codes, [y][x][channel] with a border."""

    _fields_ = (
        ("factor", c_int32),  # of height and width over the picture's; 0: a single pixel
        ("channels", c_int32),  # a multiple of 16
        ("kind", c_int32),  # BYTES, WORDS or FLOATS
        ("border", c_int32),  # the byte around a map of BYTES
        ("slot", c_int32),  # maps of the same slot share memory; or START_MAP or LAYERS_MAP
    )


class Elementwise(ctypes.Structure):
    """An operation on registers, each of which holds a vector of channels of several pixels."""

    _fields_ = (
        ("kind", c_int32),  # DO_...
        ("mode", c_int32),  # of DO_CODES: AS_IS, MULTIPLIED, DIVIDED or AFFINE
        ("result", c_int32),  # registers
        ("left", c_int32),
        ("right", c_int32),  # -1: the buffer
        ("buffer", c_int32),
        ("channel", c_int32),  # of the buffer, which goes with the sweep's channel `first`
        ("first", c_int32),  # channels of the sweep, up to `last` without it
        ("last", c_int32),
        ("spread", c_int32),  # whether one channel of the buffer goes with all
        ("values", F32 * 3),  # [channels] of the sweep each
        ("low", F32),  # [channels] in codes
        ("high", c_float),
        ("offset", c_int32),  # taken off codes where they are stored
        ("copy", c_int32),  # 1 + place in PictureBuffers.codes
    )


class Sweep(ctypes.Structure):
    """A source of values for every pixel of a map, and operations on them."""

    _fields_ = (
        ("source", c_int32),  # FROM_...
        ("input", c_int32),  # a buffer
        ("factor", c_int32),  # of the source's pixels, as a buffer's
        ("channels", c_int32),  # of the source, a multiple of 16
        ("shuffle", c_int32),  # r: r * r groups of channels go to as many pixels
        ("enlarge", c_int32),  # of FROM_INDEX and FROM_BILINEAR: over the input
        ("form", c_int32),  # of a convolution: IN_TILES, IN_TAPS or IN_DOUBLES
        ("size", c_int32),  # side of its kernel
        ("inputs", c_int32),  # of IN_DOUBLES
        ("conv", Conv),
        ("index", POINTER(c_int32)),  # [enlarge * enlarge][channels] channels of the input, -1 for 0
        ("mean", F32),  # [3] of FROM_PICTURE
        ("range", c_float),
        ("operations", c_int32),
        ("operation", POINTER(Elementwise)),
    )


class Program(ctypes.Structure):
    """A network as a list of sweeps over its maps, in order."""

    _fields_ = (
        ("buffers", c_int32),
        ("slots", c_int32),
        ("sweeps", c_int32),
        ("buffer", POINTER(Buffer)),
        ("sweep", POINTER(Sweep)),
    )


class Network(ctypes.Structure):
    """A whole network at one depth: with `body`, or with `swin`, or with `program` alone."""

    _fields_ = (
        ("channels", c_int32),  # C of the features, padded
        ("blocks", c_int32),  # 0 with `swin`
        ("gaps", c_int32),
        ("factor", c_int32),  # of upscaling
        ("head", POINTER(c_double)),  # [3][3][3 colours][C] float64, of conv_first
        ("head_bias", F32),  # [C]
        ("mean", F32),  # [3] of pixels in 0..1
        ("range", c_float),  # conv_first reads (pixel / 255 - mean) * range
        ("gap", F32),  # [gaps] shortcuts of the skipped blocks before the first
        ("body", POINTER(Block)),  # [blocks]
        ("after_body", Conv),  # all 0 but for its kind where sweeps follow the last LayerNorm
        ("tail", Conv),  # gives pixel values in the order (row phase, column phase, colour)
        ("after_body_factor", F32),  # of WORDS: [C] 16-bit integers per unit of its input
        ("tail_factor", F32),  # the same for the tail
        ("ring", Ring),
        ("swin", POINTER(Swin)),
        ("program", POINTER(Program)),
    )


class PictureBuffers(ctypes.Structure):
    """One picture to upscale, and where the result goes."""

    _fields_ = (
        ("image", c_void_p),  # (height, width, 3) RGB: uint8, or float32 in 0..255
        ("out", c_void_p),  # (height * factor, width * factor, 3) of the same type
        ("height", c_int32),  # of `image`, in pixels
        ("width", c_int32),
        ("is_float", c_int32),  # whether both are float32, then not rounded
        ("threads", c_int32),
        # NULL, or where copies of the codes go, those of `Program.code_maps` in order
        ("codes", POINTER(c_void_p)),
    )


STRUCTURES: tuple[type[ctypes.Structure], ...] = (
    Conv,
    Quantizer,
    Block,
    Ring,
    Requantizer,
    Norm,
    Linear,
    SwinLayer,
    Rstb,
    Swin,
    Buffer,
    Elementwise,
    Sweep,
    Program,
    Network,
    PictureBuffers,
)
"""All of them."""
