/* QuantSR-C's convolutions as products of AMX tiles, exact, with the vectors and roundings of the AVX-512 VNNI kernels.
 *
 * With AMX a 3x3 or 5x5 convolution is fastest in its plain form, without Winograd's transforms: a tile of inputs is 16 pixels beside each other
 * times 64 bytes, and as a map's channels lie together, the taps of one kernel row are one run of bytes in memory, from which tiles are loaded in
 * place, rows one pixel apart. Where a run is no multiple of 64 bytes, the weights are padded with zeros, and what the last tile reads beyond the run
 * counts for nothing; nor do pixels beyond the picture's right border, which are not stored.
 *
 * Codes are bytes. 14-bit inputs and weights (SPLIT) are each taken apart, x = 128 h + l, both within signed bytes, and as
 * sums over hh, ll and (h + l)(h + l) three products of bytes give the whole (Karatsuba): a map has three planes, of h, l and h + l.
 */

#include "isa.h"

#if defined(HAS_AMX_KERNELS)
#include <immintrin.h>

BEGIN_TARGET(AVX512_VNNI_TARGET ",amx-tile,amx-int8")
#include "avx512_vnni.inc"
#include "vectors.inc"
#define STORE_LOW_BYTES(p, v) _mm_storeu_si128((__m128i *)(p), _mm512_cvtepi32_epi8(v))

enum { PIXELS = 16, TILE_BYTES = 1024, ROW_BYTES = 64, STRIDE = 2 * PIXELS };

/* Palette 1, and all eight tiles of 16 rows of 64 bytes. */
typedef struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} TileConfig;

void load_tile_config(void) {
    TileConfig config = {.palette = 1};
    for (int i = 0; i < 8; i++) config.row_bytes[i] = ROW_BYTES, config.rows[i] = PIXELS;
    __asm__ volatile("" : : "r"(&config) : "memory"); /* GCC takes it that only 8 bytes of it are read */
    _tile_loadconfig(&config);
}

void release_tiles(void) { _tile_release(); }

/* The sums of up to 32 pixels beside each other at up to 32 outputs, [plane][pixel][STRIDE], and where they belong. */
typedef struct {
    int32_t sums[3][2 * PIXELS][STRIDE] __attribute__((aligned(64)));
    int y, x, count; /* first pixel, number of pixels */
    int output, n;   /* first output, vectors of 16 */
} Sums;

/* Tiles 0..3 += inputs of `m` tiles x weights of `n`. */
#define TILE_PRODUCTS(dot)                \
    do {                                  \
        dot(0, 4, 6);                     \
        if (m > 1) dot(1, 5, 6);          \
        if (n > 1) dot(2, 4, 7);          \
        if (n > 1 && m > 1) dot(3, 5, 7); \
    } while (0)
INLINE void multiply_tiles(const uint8_t *in, int channels, const int8_t *weight, size_t next_weight, int is_signed, const int m, const int n) {
    _tile_loadd(4, in, channels);
    if (m > 1) _tile_loadd(5, in + PIXELS * channels, channels);
    _tile_loadd(6, weight, ROW_BYTES);
    if (n > 1) _tile_loadd(7, weight + next_weight, ROW_BYTES);
    if (is_signed) TILE_PRODUCTS(_tile_dpbssd);
    else TILE_PRODUCTS(_tile_dpbusd);
}
#undef TILE_PRODUCTS

INLINE void clear_tiles(void) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

INLINE void store_tiles(int32_t (*sums)[STRIDE], const int m, const int n) {
    _tile_stored(0, sums[0], sizeof sums[0]);
    if (m > 1) _tile_stored(1, sums[PIXELS], sizeof sums[0]);
    if (n > 1) _tile_stored(2, &sums[0][PIXELS], sizeof sums[0]);
    if (n > 1 && m > 1) _tile_stored(3, &sums[PIXELS][PIXELS], sizeof sums[0]);
}

/* What follows a convolution. */
enum { TO_CODES, TO_STREAM, TO_WORDS, TO_SPLIT, TO_TAIL, TO_PIXELS };

/* A convolution of one strip, and what its results become. */
typedef struct {
    const Network *net;
    const PictureBuffers *picture;
    const Maps *maps;
    const Block *block; /* of TO_CODES .. TO_SPLIT */
    const Conv *conv;
    const uint8_t *in; /* the input of the picture's pixel (0, 0) */
    size_t row, plane; /* bytes in a row of it, and in one plane of SPLIT */
    int kernel;        /* 3 or 5 */
    float *values;     /* of TO_PIXELS: [2 * PIXELS][outputs] */
} Task;

/* x, within 14 bits, at a pixel of the three planes. */
INLINE void write_split(uint8_t *p, size_t plane, __m512 x, __m512 factor) {
    const __m512 limit = _mm512_set1_ps(LARGEST_WORD);
    const __m512i whole = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(x * factor, -limit), limit));
    const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(whole, _mm512_set1_epi32(64)), 7);
    const __m512i low = _mm512_sub_epi32(whole, _mm512_slli_epi32(high, 7));
    STORE_LOW_BYTES(p, high);
    STORE_LOW_BYTES(p + plane, low);
    STORE_LOW_BYTES(p + 2 * plane, _mm512_add_epi32(high, low));
}

/* Pixels `from` up to `to` of a task's sums: what the VNNI kernels do with theirs, operation by operation. */
INLINE void finish(const Task *task, const Sums *sums, int from, int to, const int after, const int planes, const int channels) {
    const Network *net = task->net;
    const Maps *maps = task->maps;
    const Block *block = task->block;
    const Conv *conv = task->conv;
    for (int v = 0; v < sums->n; v++) {
        const int c = sums->output + v * PIXELS;
        const __m512 scale = _mm512_loadu_ps(conv->scale + c), bias = _mm512_loadu_ps(conv->bias + c);
        const size_t code = ((sums->y + 1) * maps->code_row + sums->x + 1) * channels + c;
        const size_t at = ((sums->y + BORDER) * maps->row + sums->x + BORDER) * channels + c;
        for (int i = from; i < to; i++) {
            __m512i sum = _mm512_load_si512(&sums->sums[0][i][v * PIXELS]);
            if (planes == 3) {
                const __m512i low = _mm512_load_si512(&sums->sums[1][i][v * PIXELS]), both = _mm512_load_si512(&sums->sums[2][i][v * PIXELS]);
                const __m512i mixed = _mm512_sub_epi32(both, _mm512_add_epi32(sum, low));
                sum = _mm512_add_epi32(_mm512_add_epi32(_mm512_slli_epi32(sum, 14), _mm512_slli_epi32(mixed, 7)), low);
            }
            __m512 value = _mm512_cvtepi32_ps(sum) * scale + bias;
            const size_t step = (size_t)i * channels;
            if (after == TO_CODES) {
                value = _mm512_min_ps(_mm512_max_ps(value, _mm512_loadu_ps(block->low + c)), _mm512_set1_ps(block->high));
                STORE_LOW_BYTES(maps->codes2 + code + step, _mm512_cvtps_epi32(value));
            } else if (after == TO_PIXELS) {
                _mm512_storeu_ps(task->values + i * conv->outputs + c, value);
            } else if (after == TO_TAIL) {
                value = value + _mm512_loadu_ps(maps->start + at + step);
                _mm512_storeu_ps(maps->start + at + step, value);
                write_split(maps->tail_planes + at + step, maps->plane, value, _mm512_loadu_ps(net->tail_factor + c));
            } else {
                value = _mm512_loadu_ps(maps->stream + at + step) * _mm512_set1_ps(block->shortcut) + value;
                for (int g = 0; g < block->gaps; g++) value *= _mm512_set1_ps(block->gap[g]);
                if (after == TO_SPLIT) {
                    write_split(maps->body_planes + at + step, maps->plane, value, _mm512_loadu_ps(net->after_body_factor + c));
                } else if (after == TO_WORDS) {
                    write_words_avx512_vnni(maps->body_words + at + step, value, _mm512_loadu_ps(net->after_body_factor + c));
                } else {
                    const Quantizer *next = &block[block + 1 == net->body + net->blocks ? 0 : 1].input;
                    _mm512_storeu_ps(maps->stream + at + step, value);
                    STORE_LOW_BYTES(maps->codes1 + code + step,
                                    (__m512i)quantized_avx512_vnni(value, _mm512_loadu_ps(next->tau + c), _mm512_set1_ps(next->factor[0]),
                                                                   _mm512_set1_ps(next->factor[1]), _mm512_set1_ps(next->low),
                                                                   _mm512_set1_ps(next->high)));
                }
            }
        }
    }
}

/* Sums of `m` tiles of pixels and `n` of outputs. Meanwhile the vector units finish `before`, the sums of the products before these. */
INLINE void tile_sums(const Task *task, Sums *sums, const Sums *before, const int after, const int planes, const int channels, const int m,
                      const int n) {
    const Conv *conv = task->conv;
    const int runs = (task->kernel * channels + ROW_BYTES - 1) / ROW_BYTES, products = task->kernel * runs;
    const size_t next_weight = (size_t)products * TILE_BYTES, next_plane = next_weight * (conv->outputs / PIXELS);
    const int8_t *weight = (const int8_t *)conv->weight + sums->output / PIXELS * next_weight;
    const ptrdiff_t corner = (ptrdiff_t)(sums->y - task->kernel / 2) * task->row + (sums->x - task->kernel / 2) * channels;
    const int at_once = (before->count + planes * products - 1) / (planes * products);
    int done = 0;
    for (int plane = 0; plane < planes; plane++) {
        clear_tiles();
        const int8_t *w = weight + plane * next_plane;
        for (int ky = 0; ky < task->kernel; ky++) {
            const uint8_t *in = task->in + plane * task->plane + corner + ky * task->row;
            for (int run = 0; run < runs; run++, in += ROW_BYTES, w += TILE_BYTES) {
                multiply_tiles(in, channels, w, next_weight, conv->is_signed, m, n);
                if (done < before->count) {
                    const int to = MIN(done + at_once, before->count);
                    finish(task, before, done, to, after, planes, channels);
                    done = to;
                }
            }
        }
        store_tiles(sums->sums[plane], m, n);
    }
}

/* Rows top .. bottom - 1 of a convolution and what follows it. */
INLINE void tile_strip(const Task *task, int top, int bottom, const int after, const int planes, const int channels) {
    const int width = task->picture->width, outputs = task->conv->outputs;
    Sums sums[2];
    int turn = 0;
    sums[0].count = sums[1].count = 0;
    __asm__ volatile("" ::: "memory"); /* GCC's loads of tiles do not say that they read memory */
    for (int output = 0; output < outputs; output += 2 * PIXELS)
        for (int x = 0; x < width; x += 2 * PIXELS)
            for (int y = top; y < bottom; y++) {
                const int n = MIN(2, (outputs - output) / PIXELS), m = width - x > PIXELS ? 2 : 1;
                Sums *now = &sums[turn], *before = &sums[turn ^= 1];
                now->y = y, now->x = x, now->output = output, now->n = n;
                if (m == 2 && n == 2) tile_sums(task, now, before, after, planes, channels, 2, 2);
                else if (n == 2) tile_sums(task, now, before, after, planes, channels, 1, 2);
                else if (m == 2) tile_sums(task, now, before, after, planes, channels, 2, 1);
                else tile_sums(task, now, before, after, planes, channels, 1, 1);
                now->count = MIN(2 * PIXELS, width - x);
            }
    const Sums *last = &sums[turn ^ 1];
    finish(task, last, 0, last->count, after, planes, channels);
}

static void block_strip_amx(const Network *net, const PictureBuffers *picture, const Maps *maps, int phase, int top, int bottom) {
    const int channels = net->channels, second = phase % 2 == 0;
    const Block *block = net->body + (phase - 1) / 2;
    const size_t row = maps->code_row * channels;
    const Task task = {.net = net,
                       .picture = picture,
                       .maps = maps,
                       .block = block,
                       .conv = second ? &block->conv2 : &block->conv1,
                       .in = (second ? maps->codes2 : maps->codes1) + row + channels,
                       .row = row,
                       .kernel = 3};
    const int kind = block + 1 == net->body + net->blocks ? net->after_body.kind : BYTES;
    if (!second) BY_CHANNELS(channels, tile_strip(&task, top, bottom, TO_CODES, 1, N));
    else if (kind == SPLIT) BY_CHANNELS(channels, tile_strip(&task, top, bottom, TO_SPLIT, 1, N));
    else if (kind == WORDS) tile_strip(&task, top, bottom, TO_WORDS, 1, channels);
    else BY_CHANNELS(channels, tile_strip(&task, top, bottom, TO_STREAM, 1, N));
}

static void after_body_strip_amx(const Network *net, const PictureBuffers *picture, const Maps *maps, int top, int bottom) {
    const int channels = net->channels;
    const size_t row = maps->row * channels;
    const Task task = {.net = net,
                       .picture = picture,
                       .maps = maps,
                       .conv = &net->after_body,
                       .in = maps->body_planes + BORDER * (row + channels),
                       .row = row,
                       .plane = maps->plane,
                       .kernel = 3};
    BY_CHANNELS(channels, tile_strip(&task, top, bottom, TO_TAIL, 3, N));
}

/* Rows of the tail, except its border where that has kernels of its own. */
static void tail_strip_amx(const Network *net, const PictureBuffers *picture, const Maps *maps, int top, int bottom) {
    const int channels = net->channels, outputs = net->tail.outputs, height = picture->height, width = picture->width;
    const int ring = net->ring.weight[0] != NULL;
    const size_t row = maps->row * channels;
    float values[2 * PIXELS * MAX_OUTPUTS];
    const Task task = {.net = net,
                       .picture = picture,
                       .maps = maps,
                       .conv = &net->tail,
                       .in = maps->tail_planes + BORDER * (row + channels),
                       .row = row,
                       .plane = maps->plane,
                       .kernel = net->tail.blocks == 2 ? 5 : 3,
                       .values = values};
    Sums sums, none;
    none.count = 0;
    __asm__ volatile("" ::: "memory");
    for (int x = 0; x < width; x += 2 * PIXELS)
        for (int y = top; y < bottom; y++) {
            for (int output = 0; output < outputs; output += 2 * PIXELS) {
                sums.y = y, sums.x = x, sums.output = output, sums.n = MIN(2, (outputs - output) / PIXELS);
                sums.count = MIN(2 * PIXELS, width - x);
                if (sums.n == 2) BY_CHANNELS(channels, tile_sums(&task, &sums, &none, TO_PIXELS, 3, N, 2, 2));
                else BY_CHANNELS(channels, tile_sums(&task, &sums, &none, TO_PIXELS, 3, N, 2, 1));
                finish(&task, &sums, 0, sums.count, TO_PIXELS, 3, channels);
            }
            for (int i = 0; i < sums.count; i++)
                if (!ring || is_inner(y, x + i, height, width)) write_pixels_avx512_vnni(net, picture, values + i * outputs, y, x + i);
        }
}

/* One unit of the work of a phase; what has no kernels of tiles is left to VNNI's. */
void work_amx(const Network *net, const PictureBuffers *picture, const Maps *maps, int phase, int unit, Scratch *scratch) {
    const int body = 2 * net->blocks, rows = rows_of(net, phase), top = unit * rows, bottom = MIN(top + rows, picture->height);
    const int split = net->after_body.kind == SPLIT;
    if (phase > 0 && phase <= body) block_strip_amx(net, picture, maps, phase, top, bottom);
    else if (phase == body + 1 && split) after_body_strip_amx(net, picture, maps, top, bottom);
    else if (phase == body + 2 && split) tail_strip_amx(net, picture, maps, top, bottom);
    else work_avx512_vnni(net, picture, maps, phase, unit, scratch);
}
END_TARGET
#endif
