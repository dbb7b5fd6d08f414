/* The number of the interface, and the layout of its structures, with which library.py compares those of structures.py. A field that is missing here, or there, is
 * found by tests/deploy/test_native_library.py. */

#include "kernels.h"

#define WHOLE(type) {#type, NULL, 0, sizeof(type)}
#define FIELD(type, name) {#type, #name, offsetof(type, name), sizeof(((type *)0)->name)}

/* clang-format off */
static const LayoutEntry LAYOUT[] = {
    WHOLE(Conv), FIELD(Conv, weight), FIELD(Conv, start), FIELD(Conv, scale), FIELD(Conv, bias), FIELD(Conv, kind), FIELD(Conv, blocks),
    FIELD(Conv, outputs), FIELD(Conv, tile), FIELD(Conv, offset_sums), FIELD(Conv, offset_mixed), FIELD(Conv, is_signed),
    FIELD(Conv, in_groups),
    WHOLE(Quantizer), FIELD(Quantizer, tau), FIELD(Quantizer, factor), FIELD(Quantizer, low), FIELD(Quantizer, high),
    WHOLE(Block), FIELD(Block, input), FIELD(Block, conv1), FIELD(Block, conv2), FIELD(Block, low), FIELD(Block, high), FIELD(Block, shortcut),
    FIELD(Block, gaps), FIELD(Block, gap),
    WHOLE(Ring), FIELD(Ring, weight), FIELD(Ring, bias),
    WHOLE(Requantizer), FIELD(Requantizer, scale), FIELD(Requantizer, shift), FIELD(Requantizer, low), FIELD(Requantizer, high),
    WHOLE(Norm), FIELD(Norm, weight), FIELD(Norm, bias), FIELD(Norm, low), FIELD(Norm, high),
    WHOLE(Linear), FIELD(Linear, weight), FIELD(Linear, start), FIELD(Linear, scale), FIELD(Linear, bias), FIELD(Linear, inputs),
    FIELD(Linear, outputs), FIELD(Linear, rounds), FIELD(Linear, low), FIELD(Linear, high), FIELD(Linear, together),
    WHOLE(SwinLayer), FIELD(SwinLayer, norm1), FIELD(SwinLayer, norm2), FIELD(SwinLayer, q), FIELD(SwinLayer, k), FIELD(SwinLayer, v),
    FIELD(SwinLayer, proj), FIELD(SwinLayer, fc1), FIELD(SwinLayer, fc2), FIELD(SwinLayer, bias), FIELD(SwinLayer, score_scale),
    FIELD(SwinLayer, probabilities), FIELD(SwinLayer, mix), FIELD(SwinLayer, gelu), FIELD(SwinLayer, shift), FIELD(SwinLayer, middle_scale),
    FIELD(SwinLayer, input_scale),
    WHOLE(Rstb), FIELD(Rstb, start_scale), FIELD(Rstb, stream_scale), FIELD(Rstb, layers), FIELD(Rstb, layer), FIELD(Rstb, codes),
    FIELD(Rstb, closing), FIELD(Rstb, factor), FIELD(Rstb, sweeps), FIELD(Rstb, result),
    WHOLE(Swin), FIELD(Swin, dim), FIELD(Swin, heads), FIELD(Swin, hidden), FIELD(Swin, window), FIELD(Swin, groups), FIELD(Swin, group),
    FIELD(Swin, first), FIELD(Swin, last), FIELD(Swin, mask),
    WHOLE(Buffer), FIELD(Buffer, factor), FIELD(Buffer, channels), FIELD(Buffer, kind), FIELD(Buffer, border), FIELD(Buffer, slot),
    WHOLE(Elementwise), FIELD(Elementwise, kind), FIELD(Elementwise, mode), FIELD(Elementwise, result), FIELD(Elementwise, left),
    FIELD(Elementwise, right), FIELD(Elementwise, buffer), FIELD(Elementwise, channel), FIELD(Elementwise, first), FIELD(Elementwise, last),
    FIELD(Elementwise, spread), FIELD(Elementwise, values), FIELD(Elementwise, low), FIELD(Elementwise, high), FIELD(Elementwise, offset),
    FIELD(Elementwise, copy),
    WHOLE(Sweep), FIELD(Sweep, source), FIELD(Sweep, input), FIELD(Sweep, factor), FIELD(Sweep, channels), FIELD(Sweep, shuffle),
    FIELD(Sweep, enlarge), FIELD(Sweep, form), FIELD(Sweep, size), FIELD(Sweep, inputs), FIELD(Sweep, conv), FIELD(Sweep, index), FIELD(Sweep, mean),
    FIELD(Sweep, range), FIELD(Sweep, operations), FIELD(Sweep, operation),
    WHOLE(Program), FIELD(Program, buffers), FIELD(Program, slots), FIELD(Program, sweeps), FIELD(Program, buffer), FIELD(Program, sweep),
    WHOLE(Network), FIELD(Network, channels), FIELD(Network, blocks), FIELD(Network, gaps), FIELD(Network, factor), FIELD(Network, head),
    FIELD(Network, head_bias), FIELD(Network, mean), FIELD(Network, range), FIELD(Network, gap), FIELD(Network, body), FIELD(Network, after_body),
    FIELD(Network, tail), FIELD(Network, after_body_factor), FIELD(Network, tail_factor), FIELD(Network, ring), FIELD(Network, swin),
    FIELD(Network, program),
    WHOLE(PictureBuffers), FIELD(PictureBuffers, image), FIELD(PictureBuffers, out), FIELD(PictureBuffers, height), FIELD(PictureBuffers, width),
    FIELD(PictureBuffers, is_float), FIELD(PictureBuffers, threads), FIELD(PictureBuffers, codes),
    {NULL, NULL, 0, 0},
};
/* clang-format on */

int quantsr_abi(void) { return QUANTSR_ABI; }

const LayoutEntry *quantsr_layout(void) { return LAYOUT; }
