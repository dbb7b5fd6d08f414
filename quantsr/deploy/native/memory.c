/* Where maps, plan and scratch lie in a picture's memory, and what they hold before the first phase. */

#include "kernels.h"

#include <string.h>

/* `bytes` of free memory, on to the next multiple of 64. */
void *take(char **free, size_t bytes) {
    void *taken = *free;
    *free += (bytes + 63) / 64 * 64;
    return taken;
}

/* So many pixels, and as many more as make whole tiles of either size. */
static size_t whole_tiles(int pixels) { return (pixels + LARGE_TILE - 1) / LARGE_TILE * LARGE_TILE; }

/* Lays out maps, plan and scratch from `memory` on, and gives the number of bytes that takes. */
size_t lay_out(const Network *net, const PictureBuffers *picture, char *memory, Maps *maps, Plan *plan, Scratch *scratch) {
    const size_t channels = net->channels, widest = MAX(net->channels, net->tail.outputs);
    const size_t tall = whole_tiles(picture->height), wide = whole_tiles(picture->width);
    char *end = memory;
    maps->row = wide + 2 * BORDER;
    maps->code_row = wide + 2;
    maps->pixels = take(&end, (picture->height + 2) * (size_t)(picture->width + HEAD + 1) * 3 * sizeof(double));
    maps->start = take(&end, ((tall + 2 * BORDER) * maps->row + SLACK) * channels * sizeof(float));
    const Swin *swin = net->swin;
    const int words = net->after_body.kind == WORDS;
    maps->plane = net->after_body.kind == SPLIT ? (tall + 2 * BORDER) * maps->row * channels : 0;
    maps->body_planes = take(&end, 3 * maps->plane);
    maps->tail_planes = take(&end, 3 * maps->plane);
    maps->stream = swin && words ? NULL : take(&end, ((tall + 2 * BORDER) * maps->row + SLACK) * channels * sizeof(float));
    maps->body_words = maps->tail_words = NULL;
    if (words) {
        maps->body_words = take(&end, (tall + 2 * BORDER) * maps->row * channels * sizeof(int16_t));
        maps->tail_words = take(&end, (tall + 2 * BORDER) * maps->row * channels * sizeof(int16_t));
    }
    maps->token_row = ((picture->width + 15) / 16 | 1) * 16; /* an odd number of cache lines: channels do not compete for the same ones */
    if (swin) {
        maps->tokens = take(&end, picture->height * maps->token_row * swin->dim * sizeof(float));
        maps->inner = take(&end, picture->height * maps->token_row * swin->dim * sizeof(float));
    } else {
        maps->codes1 = take(&end, (tall + 2) * maps->code_row * channels);
        maps->codes2 = take(&end, (tall + 2) * maps->code_row * channels);
    }
    const SweepScratch sweeps = net->program ? scratch_of_sweeps(net->program) : (SweepScratch){0};
    if (net->program) maps->frame = (Frame){net, picture, place_buffers(net, picture, maps, &end, memory != NULL)};
    plan->phases = phases_of(net);
    plan->units = 0;
    for (int phase = 0; phase < plan->phases; phase++) plan->units += units_of(net, picture, phase);
    plan->order = take(&end, plan->units * sizeof(Unit));
    plan->first = take(&end, plan->phases * sizeof(int32_t));
    plan->done = take(&end, plan->units);
    for (int i = 0; i < picture->threads; i++) {
        const size_t tiles = 2 * (CHUNK + 1) + CHUNK; /* products take several tiles at once, also where fewer are left */
        scratch[i].inputs = take(&end, tiles * MAX(POSITIONS * channels * sizeof(float) + 64, sweeps.inputs));
        const size_t sums = MAX(POSITIONS * widest, swin ? 0 : LARGE_POSITIONS * channels);
        scratch[i].sums = take(&end, CHUNK * MAX(sums + 16, sweeps.sums) * sizeof(int32_t));
        scratch[i].shown = take(&end, RUN * sweeps.shown * sizeof(float));
        scratch[i].spare_codes = take(&end, HEAD * channels);
        scratch[i].spare_words = take(&end, HEAD * channels * sizeof(int16_t));
        scratch[i].spare_floats = take(&end, HEAD * channels * sizeof(float));
        if (swin) {
            const size_t tokens = swin->window * swin->window, map = (swin->dim + CHANNELS_AT_ONCE) * tokens * sizeof(float);
            Window *window = &scratch[i].window;
            float **maps_of_window[] = {&window->x, &window->q, &window->k, &window->v, &window->mixed};
            for (int m = 0; m < 5; m++) *maps_of_window[m] = take(&end, map);
            window->codes = take(&end, swin->dim * tokens);
            window->hidden = take(&end, swin->hidden * tokens);
            window->scores = take(&end, tokens * 2 * 16 * sizeof(float));
        }
    }
    return end - memory;
}

/* Zeros around a map of `size` bytes a pixel and at its right and bottom where its last tiles reach beyond the picture. */
static void clear_border(void *map, size_t border, size_t row, const PictureBuffers *picture, size_t size) {
    const size_t rows = whole_tiles(picture->height) + 2 * border;
    for (size_t y = 0; y < rows; y++) {
        char *line = (char *)map + y * row * size;
        const int inside = y >= border && y < border + picture->height;
        const size_t right = border + picture->width;
        if (!inside) memset(line, 0, row * size);
        else memset(line, 0, border * size), memset(line + right * size, 0, (row - right) * size);
    }
}

static float head_input(const Network *net, float pixel, int colour) { return (pixel / 255 - net->mean[colour]) * net->range; }

/* The head's input, float32 values as doubles, with a border of zeros. */
static void read_pixels(const Network *net, const PictureBuffers *picture, double *pixels) {
    const int height = picture->height, width = picture->width;
    double of_byte[256][3];
    for (int i = 0; i < 256 * 3; i++) of_byte[i / 3][i % 3] = head_input(net, i / 3, i % 3);
    memset(pixels, 0, (size_t)(height + 2) * (width + HEAD + 1) * 3 * sizeof(double));
    for (int y = 0; y < height; y++) {
        double *out = pixels + ((size_t)(y + 1) * (width + HEAD + 1) + 1) * 3;
        const size_t at = (size_t)y * width * 3;
        for (int x = 0; x < width; x++)
            for (int c = 0, i = x * 3; c < 3; c++, i++)
                out[i] = picture->is_float ? head_input(net, ((const float *)picture->image)[at + i], c)
                                           : of_byte[((const uint8_t *)picture->image)[at + i]][c];
    }
}

/* Zeros at the borders of the maps, and the picture as the head's input. */
void fill_maps(const Network *net, const PictureBuffers *picture, const Maps *maps) {
    const Swin *swin = net->swin;
    const size_t channels = net->channels;
    const size_t pixels = (picture->height + 2 * BORDER) * maps->row;
    clear_border(maps->start, BORDER, maps->row, picture, channels * sizeof(float));
    if (maps->stream) {
        if (swin) memset(maps->stream, 0, pixels * channels * sizeof(float)); /* padded channels as well */
        else clear_border(maps->stream, BORDER, maps->row, picture, channels * sizeof(float));
    }
    if (maps->body_words) {
        if (swin) memset(maps->body_words, 0, pixels * channels * sizeof(int16_t));
        else clear_border(maps->body_words, BORDER, maps->row, picture, channels * sizeof(int16_t));
        clear_border(maps->tail_words, BORDER, maps->row, picture, channels * sizeof(int16_t));
    }
    for (int plane = 0; maps->plane && plane < 3; plane++) {
        clear_border(maps->body_planes + plane * maps->plane, BORDER, maps->row, picture, channels);
        clear_border(maps->tail_planes + plane * maps->plane, BORDER, maps->row, picture, channels);
    }
    if (!swin) {
        clear_border(maps->codes1, 1, maps->code_row, picture, channels);
        clear_border(maps->codes2, 1, maps->code_row, picture, channels);
    }
    read_pixels(net, picture, maps->pixels);
}
