/* Whether arguments are in range: what passes is computed without an access beyond its memory, as long as every array is as large as network.h says. */

#include "kernels.h"

/* Bounds that keep products of sizes within their types; a picture of MAX_PIXELS takes tens of gigabytes. */
enum { MAX_CHANNELS = 4096, MAX_PARTS = 4096, MAX_FACTOR = 8, MAX_WINDOW = 64, MAX_SIDE = 1 << 20, MAX_PIXELS = 1 << 28 };

/* Whether a count is within 0..MAX_PARTS and its array is there. */
static int is_array(int count, const void *array) { return count >= 0 && count <= MAX_PARTS && (!count || array); }

static int is_multiple(int value, int divisor, int most) { return value > 0 && value <= most && value % divisor == 0; }

static int is_conv(const Conv *conv, int kind, int outputs, int blocks) {
    return conv->kind == kind && conv->outputs == outputs && conv->blocks == blocks && conv->weight && conv->scale && conv->bias;
}

/* A convolution of codes inside a block. */
static int is_code_conv(const Conv *conv, int channels) {
    if (conv->kind == CODES) return is_conv(conv, CODES, channels, 1) && conv->tile >= 1 && conv->tile <= LARGE_TILE;
    return is_conv(conv, BYTES, channels, 1) && conv->start && (conv->tile == TILE || conv->tile == LARGE_TILE);
}

static int is_block(const Block *block, int channels) {
    return block->input.tau && block->low && is_array(block->gaps, block->gap) && is_code_conv(&block->conv1, channels) &&
           is_code_conv(&block->conv2, channels);
}

static int is_norm(const Norm *norm) { return norm->weight && norm->bias; }

static int is_requantizer(const Requantizer *codes) { return codes->scale && codes->shift; }

static int is_linear(const Linear *linear, int inputs, int outputs) {
    return linear->inputs == inputs && linear->outputs == outputs && linear->weight && linear->start && linear->scale && linear->bias;
}

static int is_swin_layer(const Swin *swin, const SwinLayer *layer) {
    const int dim = swin->dim, hidden = swin->hidden;
    return is_norm(&layer->norm1) && is_norm(&layer->norm2) && is_linear(&layer->q, dim, dim) && is_linear(&layer->k, dim, dim) &&
           is_linear(&layer->v, dim, dim) && is_linear(&layer->proj, dim, dim) && is_linear(&layer->fc1, dim, hidden) &&
           is_linear(&layer->fc2, hidden, dim) && layer->bias && is_requantizer(&layer->mix) && is_requantizer(&layer->gelu) &&
           (!layer->probabilities.scale || layer->probabilities.shift) && (layer->shift == 0 || layer->shift == swin->window / 2) &&
           (!layer->shift || swin->mask);
}

/* What closes an RSTB: sweeps from one map of floats to another, or a convolution of the network's kind. */
static int is_closing(const Network *net, const Rstb *group) {
    const Program *program = net->program;
    if (!group->sweeps) return is_conv(&group->closing, net->after_body.kind, net->channels, 1) && (!group->codes.scale || group->codes.shift);
    if (!program || net->after_body.kind != FLOATS || group->codes.scale || group->result < 0 || group->result >= program->buffers) return 0;
    const Buffer *result = program->buffer + group->result;
    return result->factor == 1 && result->kind == FLOATS && result->channels >= net->swin->dim;
}

static int is_rstb(const Network *net, const Rstb *group) {
    if (!is_array(group->layers, group->layer) || !group->factor || !is_closing(net, group)) return 0;
    for (int i = 0; i < group->layers; i++)
        if (!is_swin_layer(net->swin, group->layer + i)) return 0;
    return 1;
}

static int is_swin(const Network *net, const PictureBuffers *picture) {
    const Swin *swin = net->swin;
    if (!is_multiple(swin->dim, 4, net->channels) || !is_multiple(swin->hidden, 4, MAX_CHANNELS) || swin->heads < 1 || swin->dim % swin->heads)
        return 0;
    if (!is_multiple(swin->window, 4, MAX_WINDOW) || picture->height % swin->window || picture->width % swin->window) return 0;
    if (!is_norm(&swin->first) || !is_norm(&swin->last) || !is_array(swin->groups, swin->group) || !net->after_body_factor) return 0;
    int left = net->program ? net->program->sweeps : 0; /* behind the groups */
    for (int g = 0; g < swin->groups; g++) {
        const Rstb *group = swin->group + g;
        if (group->sweeps < 0 || group->sweeps > left || !is_rstb(net, group)) return 0;
        left -= group->sweeps;
    }
    return !net->program || left > 0;
}

static int is_ring(const Network *net) {
    if (!net->ring.weight[0]) return 1;
    for (int i = 0; i < 9; i++)
        if (!net->ring.weight[i] || !net->ring.bias[i]) return 0;
    return net->program || (net->tail.blocks == 2 && !net->swin);
}

static int is_tail(const Network *net) {
    const int kind = net->after_body.kind, blocks = net->tail.blocks, outputs = net->tail.outputs, factor = net->factor;
    if (net->program) return 1;
    if (kind != FLOATS && !net->tail_factor) return 0;
    if (!is_multiple(outputs, 16, MAX_OUTPUTS) || (blocks != 1 && blocks != 2)) return 0;
    return factor >= 1 && factor <= MAX_FACTOR && 3 * factor * factor <= outputs && is_conv(&net->tail, kind, outputs, blocks);
}

/* What stands around the body. */
static int is_outer(const Network *net) {
    const int kind = net->after_body.kind;
    if (!net->head || !net->head_bias || !net->mean || !is_array(net->gaps, net->gap)) return 0;
    if (kind != FLOATS && kind != WORDS && kind != SPLIT) return 0;
    if (kind != FLOATS && !net->after_body_factor) return 0;
    const int in_sweeps = net->swin && net->program && kind == FLOATS && !net->after_body.weight;
    return (in_sweeps || is_conv(&net->after_body, kind, net->channels, 1)) && is_tail(net) && is_ring(net);
}

static int is_picture(const Network *net, const PictureBuffers *picture) {
    const int64_t height = picture->height, width = picture->width;
    if (!picture->image || !picture->out || picture->threads < 1 || picture->threads > MAX_THREADS) return 0;
    if (height < 1 || width < 1 || height > MAX_SIDE || width > MAX_SIDE || height * width > MAX_PIXELS) return 0;
    return (width + CHUNK * LARGE_TILE) * net->channels <= INT32_MAX;
}

/* Whether places for copies of the codes, if any, are complete, and the number of units is within 31 bits. */
static int is_plannable(const Network *net, const PictureBuffers *picture) {
    int64_t units = 0;
    int maps = 2 * net->blocks;
    for (int phase = 0; phase < phases_of(net); phase++) units += units_of(net, picture, phase);
    for (int g = 0; net->swin && g < net->swin->groups; g++) maps += 4 * net->swin->group[g].layers;
    for (int i = 0; picture->codes && i < maps; i++)
        if (!picture->codes[i]) return 0;
    return units <= INT32_MAX;
}

/* Whether the kernels of some instruction set can run a network on a picture. */
int is_in_range(const Network *net, const PictureBuffers *picture) {
    if (net && picture && net->program && (!is_program(net, picture) || !net->swin)) return is_program(net, picture);
    if (!net || !picture || !is_multiple(net->channels, 16, MAX_CHANNELS) || !is_picture(net, picture) || !is_outer(net)) return 0;
    if (net->swin ? net->blocks != 0 : net->blocks < 1 || !is_array(net->blocks, net->body)) return 0;
    for (int b = 0; b < net->blocks; b++)
        if (!is_block(net->body + b, net->channels)) return 0;
    return (!net->swin || is_swin(net, picture)) && is_plannable(net, picture);
}

/* Whether sums of bytes are laid out for the 16 bits of AVX2, or for the 32 of others. */
static int is_conv_for_isa(const Conv *conv, int isa) { return conv->kind != BYTES || !conv->start || !conv->in_groups == (isa != AVX2); }

static int is_body_conv_for_isa(const Conv *conv, int isa) { return (conv->kind == CODES) == (isa == AMX) && is_conv_for_isa(conv, isa); }

static int is_layer_for_isa(const SwinLayer *layer, int isa) {
    const Linear *linears[] = {&layer->q, &layer->k, &layer->v, &layer->proj, &layer->fc1, &layer->fc2};
    for (int i = 0; i < 6; i++)
        if ((linears[i]->together > 0) != (isa == AVX2)) return 0;
    return 1;
}

/* Whether this processor has an instruction set, and a network in range is laid out for it. */
int is_for_isa(const Network *net, int isa) {
    if (isa < PLAIN || isa > AVX_VNNI || !(quantsr_isas() >> isa & 1)) return 0;
    for (int i = 0; net->program && i < net->program->sweeps; i++)
        if (!is_conv_for_isa(&net->program->sweep[i].conv, isa)) return 0;
    if (net->program && !net->swin) return 1;
    for (int b = 0; b < net->blocks; b++)
        if (!is_body_conv_for_isa(&net->body[b].conv1, isa) || !is_body_conv_for_isa(&net->body[b].conv2, isa)) return 0;
    for (int g = 0; net->swin && g < net->swin->groups; g++)
        for (int i = 0; i < net->swin->group[g].layers; i++)
            if (!is_layer_for_isa(net->swin->group[g].layer + i, isa)) return 0;
    return net->after_body.kind != SPLIT || (isa == AMX && !net->swin);
}
