/* Whether a program's buffers, sweeps and operations are in range: none then leads to an access beyond its memory, as long as every array is as large
 * as network.h says. */

#include "kernels.h"

enum {
    MAX_BUFFERS = 1 << 14,
    MAX_SWEEPS = 1 << 14,
    MAX_OPERATIONS = 1 << 10,
    MAX_WIDTH = 1 << 14,
    MAX_ENLARGE = 16,
    MAX_SIDE = 1 << 20,
    MAX_PIXELS = 1 << 28
};

static int is_within(int value, int least, int most) { return value >= least && value <= most; }

static int is_multiple_of_16(int value, int least, int most) { return is_within(value, least, most) && value % 16 == 0; }

/* A map of Swin layers, which only FLOATS networks give to sweeps before the body's end. */
static int is_map_of_layers(const Network *net, const Buffer *buffer) {
    if (!net->swin || (buffer->slot == LAYERS_MAP && net->after_body.kind != FLOATS)) return 0;
    return buffer->factor == 1 && buffer->kind == FLOATS && buffer->channels == net->channels;
}

static int is_buffer(const Network *net, const Buffer *buffer) {
    if (buffer->slot == START_MAP || buffer->slot == LAYERS_MAP) return is_map_of_layers(net, buffer);
    return is_within(buffer->factor, 0, MAX_ENLARGE) && is_multiple_of_16(buffer->channels, 16, MAX_WIDTH) &&
           (buffer->kind == BYTES || buffer->kind == WORDS || buffer->kind == FLOATS) && is_within(buffer->slot, 0, net->program->slots - 1);
}

/* An operation's buffer, read where it is one pixel or has the sweep's size, written where it has that. */
static int is_operand(const Program *program, const Sweep *sweep, const Elementwise *op) {
    if (!is_within(op->buffer, 0, program->buffers - 1)) return 0;
    const Buffer *buffer = program->buffer + op->buffer;
    const int factor = sweep->factor * sweep->shuffle, reads = op->kind <= DO_MULTIPLY;
    if (buffer->factor != factor && !(reads && buffer->factor == 0)) return 0;
    if (op->kind != DO_CODES && buffer->kind != FLOATS) return 0;
    if (reads && op->spread) return is_within(op->channel, 0, buffer->channels - 1);
    return is_multiple_of_16(op->channel, 0, buffer->channels - (op->last - op->first));
}

static int is_operation(const Network *net, const Sweep *sweep, const Elementwise *op) {
    const int group = sweep->channels / (sweep->shuffle * sweep->shuffle), last = op == sweep->operation + sweep->operations - 1;
    if (!is_within(op->kind, DO_LOAD, DO_SHOW) || !is_within(op->left, 0, REGISTERS - 1) || !is_within(op->result, 0, REGISTERS - 1)) return 0;
    if (!is_multiple_of_16(op->first, 0, group) || !is_multiple_of_16(op->last, op->first + 16, group)) return 0;
    if (op->kind <= DO_MULTIPLY) return is_within(op->right, 0, REGISTERS - 1) || (op->right == -1 && is_operand(net->program, sweep, op));
    if (op->kind <= DO_SLOPE) return op->values[0] != NULL;
    if (op->kind <= DO_GELU) return 1;
    if (op->kind == DO_STORE) return is_operand(net->program, sweep, op);
    if (op->kind == DO_CODES) {
        if (!is_within(op->mode, AS_IS, AFFINE) || !op->low || !is_within(op->copy, 0, MAX_BUFFERS)) return 0;
        if (op->mode != AS_IS && (!op->values[0] || !op->values[1])) return 0;
        return (op->mode != MULTIPLIED || op->values[2]) && is_operand(net->program, sweep, op);
    }
    if (!last || sweep->shuffle != 1 || sweep->factor < 1 || net->factor % sweep->factor || op->first || op->last != group) return 0;
    const int factor = net->factor / sweep->factor;
    return 3 * factor * factor <= MIN(sweep->channels, MAX_OUTPUTS);
}

static int is_conv_sweep(const Sweep *sweep, const Buffer *in) {
    const Conv *conv = &sweep->conv;
    if (in->factor != sweep->factor || conv->outputs != sweep->channels || conv->kind != in->kind) return 0;
    if (!conv->weight || !conv->scale || !conv->bias || (conv->kind == BYTES && !conv->start)) return 0;
    if (conv->blocks == 2) return sweep->form == IN_TILES && sweep->size == 5 && conv->kind != BYTES;
    if (conv->blocks != 1) return 0;
    if (sweep->form == IN_TILES) return sweep->size == 3 && (conv->kind != BYTES || conv->tile == TILE || conv->tile == LARGE_TILE);
    if (sweep->size != 1 && sweep->size != 3 && sweep->size != 5) return 0;
    if (sweep->form == IN_DOUBLES) return conv->kind == FLOATS && is_within(sweep->inputs, 1, in->channels);
    return sweep->form == IN_TAPS;
}

static int is_index(const Sweep *sweep, const Buffer *in) {
    if (!sweep->index) return sweep->channels == in->channels;
    for (int i = 0; i < sweep->enlarge * sweep->enlarge * sweep->channels; i++)
        if (!is_within(sweep->index[i], -1, in->channels - 1)) return 0;
    return 1;
}

/* A ring's input, and its kernels. */
static int is_ring_sweep(const Network *net, const Sweep *sweep, const Buffer *in) {
    for (int i = 0; i < 9; i++)
        if (!net->ring.weight[i] || !net->ring.bias[i]) return 0;
    return in->factor == 1 && sweep->factor == 1 && sweep->channels <= MAX_OUTPUTS && sweep->operations == 1 && sweep->operation->kind == DO_SHOW;
}

static int is_source(const Network *net, const Sweep *sweep) {
    const Program *program = net->program;
    if (sweep->source == FROM_MAPS) return 1;
    if (sweep->source == FROM_PICTURE) return sweep->factor == 1;
    if (!is_within(sweep->input, 0, program->buffers - 1)) return 0;
    const Buffer *in = program->buffer + sweep->input;
    if (sweep->source == FROM_CONV) return is_conv_sweep(sweep, in);
    if (in->kind != FLOATS) return 0;
    if (sweep->source == FROM_RING) return is_ring_sweep(net, sweep, in);
    if (sweep->source == FROM_MEAN) return sweep->factor == 0 && sweep->channels == in->channels;
    if (!is_within(sweep->enlarge, 1, MAX_ENLARGE) || in->factor * sweep->enlarge != sweep->factor) return 0;
    if (sweep->source == FROM_BILINEAR) return sweep->channels == in->channels;
    return sweep->source == FROM_INDEX && is_index(sweep, in);
}

static int is_sweep(const Network *net, const Sweep *sweep) {
    if (!is_within(sweep->factor, 0, MAX_ENLARGE) || !is_within(sweep->shuffle, 1, MAX_ENLARGE)) return 0;
    if (sweep->factor * sweep->shuffle > MAX_ENLARGE) return 0;
    if (!is_multiple_of_16(sweep->channels, 16, MAX_WIDTH) || sweep->channels % (16 * sweep->shuffle * sweep->shuffle)) return 0;
    if (!is_within(sweep->operations, 1, MAX_OPERATIONS) || !sweep->operation || !is_source(net, sweep)) return 0;
    for (int i = 0; i < sweep->operations; i++)
        if (!is_operation(net, sweep, sweep->operation + i)) return 0;
    return 1;
}

/* Whether places for copies of the codes, if any, are complete. */
static int has_copies(const Program *program, const PictureBuffers *picture) {
    for (int s = 0; picture->codes && s < program->sweeps; s++)
        for (int i = 0; i < program->sweep[s].operations; i++) {
            const Elementwise *op = program->sweep[s].operation + i;
            if (op->kind == DO_CODES && op->copy && !picture->codes[op->copy - 1]) return 0;
        }
    return 1;
}

/* Whether the kernels of any instruction set can run a program on a picture. */
int is_program(const Network *net, const PictureBuffers *picture) {
    const Program *program = net->program;
    const int64_t height = picture->height, width = picture->width;
    if (!picture->image || !picture->out || !is_within(picture->threads, 1, MAX_THREADS) || !is_within(net->factor, 1, 8)) return 0;
    if (height < 1 || width < 1 || height > MAX_SIDE || width > MAX_SIDE || height * width > MAX_PIXELS) return 0;
    if (!is_within(program->buffers, 1, MAX_BUFFERS) || !is_within(program->slots, 1, program->buffers) || !program->buffer) return 0;
    if (!is_within(program->sweeps, 1, MAX_SWEEPS) || !program->sweep) return 0;
    for (int b = 0; b < program->buffers; b++)
        if (!is_buffer(net, program->buffer + b)) return 0;
    int64_t units = 0;
    for (int s = 0; s < program->sweeps; s++) {
        const Sweep *sweep = program->sweep + s;
        if (!is_sweep(net, sweep)) return 0;
        units += side_of_map(picture->height, sweep->factor);
    }
    const Sweep *last = program->sweep + program->sweeps - 1;
    return units <= INT32_MAX && last->operation[last->operations - 1].kind == DO_SHOW && has_copies(program, picture);
}
