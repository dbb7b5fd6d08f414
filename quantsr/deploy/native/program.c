/* Networks that are programs: where their maps lie in a picture's memory, and their sweeps, one after the other, on several threads. */

#include "kernels.h"

#include <pthread.h>
#include <sched.h>
#include <string.h>

/* How often a thread looks for what it waits for before it leaves its core to others. */
enum { SPINS = 2000 };

int side_of_map(int side, int factor) { return factor ? side * factor : 1; }

/* So many pixels, as many more as make whole tiles of either size, and a border. */
static size_t padded_side(int side, int factor) { return (side_of_map(side, factor) + LARGE_TILE - 1) / LARGE_TILE * LARGE_TILE + 2 * BORDER; }

size_t row_of_map(int width, int factor) { return padded_side(width, factor); }

static size_t size_of(int kind) { return kind == BYTES ? 1 : kind == WORDS ? 2 : 4; }

static size_t bytes_of(const Buffer *buffer, const PictureBuffers *picture) {
    const size_t pixels = padded_side(picture->height, buffer->factor) * row_of_map(picture->width, buffer->factor) + SLACK;
    return (pixels * buffer->channels * size_of(buffer->kind) + 63) / 64 * 64;
}

int rows_of_sweep(const Sweep *sweep) {
    if (sweep->source == FROM_CONV && sweep->form == IN_TILES) return sweep->conv.kind == BYTES ? sweep->conv.tile : TILE;
    return SWEEP_ROWS;
}

int units_of_sweep(const Sweep *sweep, const PictureBuffers *picture) {
    const int rows = rows_of_sweep(sweep);
    return (side_of_map(picture->height, sweep->factor) + rows - 1) / rows;
}

static Place place_of(const Buffer *buffer, const PictureBuffers *picture, void *start) {
    return (Place){
        .start = start,
        .row = row_of_map(picture->width, buffer->factor),
        .height = side_of_map(picture->height, buffer->factor),
        .width = side_of_map(picture->width, buffer->factor),
        .channels = buffer->channels,
        .size = size_of(buffer->kind),
    };
}

/* Lays out a program's maps from `end` on, beside those of Swin layers, and, with `fill`, notes where they are. */
Place *place_buffers(const Network *net, const PictureBuffers *picture, const Maps *maps, char **end, int fill) {
    const Program *program = net->program;
    Place *places = take(end, program->buffers * sizeof(Place));
    for (int slot = LAYERS_MAP; slot < program->slots; slot++) {
        size_t largest = 0;
        void *start = slot == LAYERS_MAP ? maps->stream : slot == START_MAP ? maps->start : (void *)*end;
        for (int b = 0; b < program->buffers; b++) {
            const Buffer *buffer = program->buffer + b;
            if (buffer->slot != slot) continue;
            largest = MAX(largest, bytes_of(buffer, picture));
            if (fill) places[b] = place_of(buffer, picture, start);
        }
        if (slot >= 0) take(end, largest);
    }
    return places;
}

SweepScratch scratch_of_sweeps(const Program *program) {
    SweepScratch most = {0, 0, 16};
    for (int s = 0; s < program->sweeps; s++) {
        const Sweep *sweep = program->sweep + s;
        most.shown = MAX(most.shown, (size_t)sweep->channels + 16);
        if (sweep->source != FROM_CONV) continue;
        const Buffer *in = program->buffer + sweep->input;
        const int tiles = sweep->form == IN_TILES, large = tiles && sweep->conv.kind == BYTES && sweep->conv.tile == LARGE_TILE;
        const size_t positions = !tiles ? 1 : large ? LARGE_POSITIONS : POSITIONS;
        most.inputs = MAX(most.inputs, positions * in->channels * size_of(in->kind) + 64);
        most.sums = MAX(most.sums, positions * sweep->channels + 16);
    }
    return most;
}

/* Lays out maps and scratch from `memory` on, and gives the number of bytes that takes. With `fill`, notes where the maps are. */
static size_t lay_out_program(const Network *net, const PictureBuffers *picture, char *memory, int fill, Place **places, int32_t **first,
                              Scratch *scratch) {
    const Maps none = {0};
    const SweepScratch sizes = scratch_of_sweeps(net->program);
    char *end = memory;
    *first = take(&end, (net->program->sweeps + 1) * sizeof(int32_t));
    *places = place_buffers(net, picture, &none, &end, fill);
    for (int i = 0; i < picture->threads; i++) {
        scratch[i] = (Scratch){0};
        scratch[i].inputs = take(&end, (2 * (CHUNK + 1) + CHUNK) * sizes.inputs); /* products take several tiles at once, also where fewer are left */
        scratch[i].sums = take(&end, CHUNK * sizes.sums * sizeof(int32_t));
        scratch[i].shown = take(&end, RUN * sizes.shown * sizeof(float));
    }
    return end - memory;
}

size_t program_memory(const Network *net, const PictureBuffers *picture) {
    Place *places;
    int32_t *first;
    Scratch scratch[MAX_THREADS];
    return lay_out_program(net, picture, NULL, 0, &places, &first, scratch);
}

/* Work of one picture that its threads share. */
typedef struct {
    Frame frame;
    SweepWork work;
    const int32_t *first; /* of each sweep: how many units the sweeps before have */
    atomic_int next;      /* the unit to take next */
    atomic_int done;      /* units that are done */
} Team;

typedef struct {
    Team *team;
    Scratch *scratch;
} Member;

/* The value of a border's bytes, for a range of channels of pixels one behind the other. */
static void fill_pixels(const Place *place, size_t first, size_t count, int channel, int channels, int value) {
    char *at = place->start + (first * place->channels + channel) * place->size;
    if (channels == place->channels) {
        memset(at, value, count * channels * place->size);
        return;
    }
    for (size_t i = 0; i < count; i++, at += (size_t)place->channels * place->size) memset(at, value, (size_t)channels * place->size);
}

/* The border around the rows [top, bottom) of a map, and above and below where they are its first or last. */
static void fill_border(const Place *place, size_t rows, int top, int bottom, int channel, int channels, int value) {
    const size_t right = place->width + BORDER;
    size_t from = top + BORDER, to = bottom + BORDER;
    if (top == 0) fill_pixels(place, 0, BORDER * place->row, channel, channels, value);
    for (size_t y = from; y < to; y++) {
        fill_pixels(place, y * place->row, BORDER, channel, channels, value);
        fill_pixels(place, y * place->row + right, place->row - right, channel, channels, value);
    }
    if (bottom == place->height) fill_pixels(place, to * place->row, (rows - to) * place->row, channel, channels, value);
}

/* Borders of what a unit wrote, and copies of codes. */
void finish_unit(const Frame *frame, const Sweep *sweep, int unit) {
    const int rows = rows_of_sweep(sweep), groups = sweep->shuffle * sweep->shuffle, group = sweep->channels / groups;
    const int top = unit * rows * sweep->shuffle;
    for (int i = 0; i < sweep->operations; i++) {
        const Elementwise *op = sweep->operation + i;
        if (op->kind != DO_STORE && op->kind != DO_CODES) continue;
        const Place *place = frame->places + op->buffer;
        const Buffer *buffer = frame->net->program->buffer + op->buffer;
        const int bottom = MIN(top + rows * sweep->shuffle, place->height);
        fill_border(place, padded_side(frame->picture->height, buffer->factor), top, bottom, op->channel, MIN(op->last, group) - op->first,
                    buffer->kind == BYTES ? buffer->border : 0);
        if (op->kind != DO_CODES || !op->copy || !frame->picture->codes) continue;
        const size_t bytes = (size_t)place->width * place->channels * place->size;
        for (int y = top; y < bottom; y++)
            memcpy(frame->picture->codes[op->copy - 1] + y * bytes,
                   place->start + ((y + BORDER) * place->row + BORDER) * place->channels * place->size, bytes);
    }
}

static void *run_member(void *argument) {
    Member *member = argument;
    Team *team = member->team;
    const Program *program = team->frame.net->program;
    const int units = team->first[program->sweeps];
    for (int unit, s = 0; (unit = atomic_fetch_add(&team->next, 1)) < units;) {
        while (unit >= team->first[s + 1]) s++;
        for (int spins = 0; atomic_load_explicit(&team->done, memory_order_acquire) < team->first[s]; spins++)
            if (spins >= SPINS) sched_yield();
        team->work(&team->frame, program->sweep + s, unit - team->first[s], member->scratch);
        finish_unit(&team->frame, program->sweep + s, unit - team->first[s]);
        atomic_fetch_add_explicit(&team->done, 1, memory_order_release);
    }
    return NULL;
}

/* A network that is nothing but a program. */
void run_program(const Network *net, const PictureBuffers *picture, int isa, void *memory) {
    Place *places;
    int32_t *first;
    Scratch scratch[MAX_THREADS];
    Member members[MAX_THREADS];
    pthread_t threads[MAX_THREADS];
    lay_out_program(net, picture, memory, 1, &places, &first, scratch);
    first[0] = 0;
    for (int s = 0; s < net->program->sweeps; s++) first[s + 1] = first[s] + units_of_sweep(net->program->sweep + s, picture);
    Team team = {.frame = {net, picture, places}, .work = sweep_work_of(isa), .first = first};
    int started = 1;
    for (int i = 0; i < picture->threads; i++) members[i] = (Member){&team, &scratch[i]};
    for (; started < picture->threads; started++)
        if (pthread_create(&threads[started], NULL, run_member, &members[started])) break;
    run_member(&members[0]);
    for (int i = 1; i < started; i++) pthread_join(threads[i], NULL);
}
