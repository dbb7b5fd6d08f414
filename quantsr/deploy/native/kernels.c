/* QuantSR-C and QuantSR-T on a CPU: integer convolutions of codes in Winograd's form, exact, with what is between them
 * fused in; Swin layers window by window (swin.inc).
 *
 * F(2x2, 3x3) (Winograd 1980; Lavin and Gray, CVPR 2016) takes 16 products for 4 outputs instead of 36. Its transforms of codes of
 * few bits are small integers again: inputs grow by 4, weights (times 4, which the scale takes off) by 9, so that codes of
 * up to 6 bits and weights of 4 fit in bytes, and every sum is the integer that the plain convolution gives. F(4x4, 3x3) with
 * x^2 + 1 among its moduli (arrays.py) takes 49 products for 16 outputs; inputs grow by 16, weights (times 16) by 16: blocks with
 * activations and weights of up to 4 bits have it.
 *
 * A picture goes through phases (head, every convolution or Swin layer, tail), whose rows or windows the threads take one by one, each when
 * what it needs of the phase before is done. Plain C; what differs between processors is in the macros before each inclusion of strips.inc.
 */

#include "network.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* AMX needs a compiler that knows its tiles, and Linux's permission to use them. */
#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11)
#define HAS_AMX_KERNELS
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define INLINE static inline __attribute__((always_inline))
/* Before a loop of few rounds over arrays that are to be registers. */
#define UNROLL _Pragma("GCC unroll 16")
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

enum { MAX_OUTPUTS = 192, MAX_THREADS = 64, SPINS = 2000, LARGEST_WORD = 8191 };

/* What LayerNorm adds to the variance. */
#define NORM_EPSILON 1e-5f

/* How many channels of values attention mixes at once, and what it may therefore read beyond the last. */
enum { CHANNELS_AT_ONCE = 5 };

/* One window of tokens in its layer, [channel][token]. */
typedef struct {
    float *x, *q, *k, *v, *mixed;
    int32_t *codes, *hidden; /* four channels each */
    float *scores;           /* [key][2 vectors of queries] */
    uint8_t *const *copies;  /* of the layer's inputs' codes in PictureBuffers.codes, or NULL */
    size_t number;           /* of the window in its picture */
} Window;

enum { QKV_INPUT, PROJ_INPUT, FC1_INPUT, FC2_INPUT, INPUTS_OF_LAYER };

static inline void copy_window_codes(const Window *window, int input, const int32_t *codes, size_t bytes) {
    if (window->copies) memcpy(window->copies[input] + window->number * bytes, codes, bytes);
}

/* What a QuantSR-T's phases are. */
typedef struct {
    enum { FIRST, LAYER, SPREAD, CLOSING, NORM, AFTER_BODY, TAIL } kind;
    const Rstb *group;
    const SwinLayer *layer;
} Step;

/* What a linear layer's outputs are for. */
enum { PLAIN_OUTPUT, SUM, MIX, GELU };

static int swin_phases(const Swin *swin) {
    int phases = 4;
    for (int g = 0; g < swin->groups; g++) phases += swin->group[g].layers + 2;
    return phases;
}

/* Swin layers before one of those of `group`. */
static int layers_before(const Swin *swin, const Rstb *group, const SwinLayer *layer) {
    int count = layer - group->layer;
    for (const Rstb *other = swin->group; other < group; other++) count += other->layers;
    return count;
}

static Step step_of(const Swin *swin, int phase) {
    if (phase == 0) return (Step){.kind = FIRST};
    phase--;
    for (int g = 0; g < swin->groups; g++) {
        const Rstb *group = swin->group + g;
        if (phase < group->layers) return (Step){.kind = LAYER, .group = group, .layer = group->layer + phase};
        phase -= group->layers;
        if (phase < 2) return (Step){.kind = phase ? CLOSING : SPREAD, .group = group};
        phase -= 2;
    }
    return (Step){.kind = NORM + phase};
}

/* One thread's own memory. */
typedef struct {
    char *inputs;  /* transformed inputs of a chunk, [blocks][CHUNK + 1][16][C] and 64 bytes a tile */
    int32_t *sums; /* or floats: [tile][16][P] and 16 */
    uint8_t *spare_codes; /* [HEAD * C] each: where results of no pixel go */
    int16_t *spare_words;
    float *spare_floats;
    Window window;
} Scratch;

/* Positions along one side of a tile of so many outputs. */
static inline int side_of(int tile) { return tile == LARGE_TILE ? 7 : 4; }
static inline int positions_of(int tile) { return tile == LARGE_TILE ? LARGE_POSITIONS : POSITIONS; }

/* Whether the tail's inner kernel holds for a pixel. */
static int is_inner(int y, int x, int height, int width) { return y > 0 && x > 0 && y < height - 1 && x < width - 1; }

/* `call` with the constant N for n. */
#define BY_COLUMNS(n, call)                                                                                            \
    switch (n) {                                                                                                       \
    case 1: { enum { N = 1 }; call; break; }                                                                           \
    case 2: { enum { N = MIN(2, COLUMNS) }; call; break; }                                                             \
    case 3: { enum { N = MIN(3, COLUMNS) }; call; break; }                                                             \
    default: { enum { N = COLUMNS }; call; }                                                                           \
    }

/* `call` with N for the number of channels, a constant where it is a usual one: the compiler then counts with it. */
#define BY_CHANNELS(channels, call)                                                                                    \
    do {                                                                                                               \
        if (channels == 64) {                                                                                          \
            enum { N = 64 };                                                                                           \
            call;                                                                                                      \
        } else if (channels == 32) {                                                                                   \
            enum { N = 32 };                                                                                           \
            call;                                                                                                      \
        } else {                                                                                                       \
            const int N = channels;                                                                                    \
            call;                                                                                                      \
        }                                                                                                              \
    } while (0)

/* Rows of a QuantSR-C that a unit of a phase makes. */
static int rows_of(const Network *net, int phase) {
    const int body = 2 * net->blocks;
    if (phase == 0 || phase == body + 3) return 1;
    if (phase > body) return TILE;
    const Block *block = net->body + (phase - 1) / 2;
    return phase % 2 ? block->conv1.tile : block->conv2.tile;
}

/* Instruction sets ------------------------------------------------------------------------------------------------ */

#define NAME(x) x##_plain
#define LANES 4
#define COLUMNS 1
#define ROWS 4
#define DOT_BYTES(sum, a, w) dot_bytes_plain(sum, (Bytes16)(a), (SignedBytes16)(w))
#define DOT_WORDS(sum, a, w) dot_words_plain(sum, (Words8)(a), (Words8)(w))
#define ROUND(x) round_plain(x)
#define STORE_BYTES(p, v) store_bytes_plain(p, v)
#define STORE_WORDS(p, v) store_words_plain(p, v)
#define LEAST(a, b) select_plain((a) < (b), a, b)
#define MOST(a, b) select_plain((a) > (b), a, b)
#define SQRT(x) root_plain(x)
#define TOKENS 1
#define FMA(a, b, c) ((a) * (b) + (c))
#define FMA_DOUBLE(a, b, c) ((a) * (b) + (c))
typedef float Floats4 __attribute__((vector_size(16)));
typedef int32_t Ints4 __attribute__((vector_size(16)));
typedef uint8_t Bytes16 __attribute__((vector_size(16)));
typedef int8_t SignedBytes16 __attribute__((vector_size(16)));
typedef int16_t Words8 __attribute__((vector_size(16)));

INLINE Floats4 select_plain(Ints4 which, Floats4 a, Floats4 b) { return (Floats4)((which & (Ints4)a) | (~which & (Ints4)b)); }
INLINE Ints4 dot_bytes_plain(Ints4 sum, Bytes16 a, SignedBytes16 w) {
    for (int i = 0; i < 16; i++) sum[i / 4] += a[i] * w[i];
    return sum;
}
INLINE Ints4 dot_words_plain(Ints4 sum, Words8 a, Words8 w) {
    for (int i = 0; i < 8; i++) sum[i / 2] += a[i] * w[i];
    return sum;
}
INLINE Ints4 round_plain(Floats4 x) {
    const float magic = 12582912; /* 1.5 * 2^23: a sum with it has no room for fractions */
    return __builtin_convertvector((x + magic) - magic, Ints4);
}
INLINE Floats4 root_plain(Floats4 x) {
    for (int i = 0; i < 4; i++) x[i] = __builtin_sqrtf(x[i]);
    return x;
}
INLINE void store_bytes_plain(uint8_t *p, Ints4 v) {
    for (int i = 0; i < 4; i++) p[i] = (uint8_t)v[i];
}
INLINE void store_words_plain(int16_t *p, Ints4 v) {
    for (int i = 0; i < 4; i++) p[i] = (int16_t)v[i];
}
#include "strips.inc"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define NAME(x) x##_avx2
#define LANES 8
#define COLUMNS 2
#define ROWS 4
#define DOT_BYTES(sum, a, w)                                                                                           \
    ((sum) + (Ints8)_mm256_madd_epi16(_mm256_maddubs_epi16((__m256i)(a), (__m256i)(w)), _mm256_set1_epi16(1)))
#define ROUND(x) ((Ints8)_mm256_cvtps_epi32(x))
#define DOT_WORDS(sum, a, w) ((sum) + (Ints8)_mm256_madd_epi16((__m256i)(a), (__m256i)(w)))
#define STORE_BYTES(p, v) store_bytes_avx2(p, (__m256i)(v))
#define STORE_WORDS(p, v) store_words_avx2(p, (__m256i)(v))
#define LEAST(a, b) _mm256_min_ps(a, b)
#define MOST(a, b) _mm256_max_ps(a, b)
#define SQRT(x) _mm256_sqrt_ps(x)
#define TOKENS 2
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define FMA_DOUBLE(a, b, c) _mm256_fmadd_pd(a, b, c)
typedef int32_t Ints8 __attribute__((vector_size(32)));
INLINE void store_bytes_avx2(uint8_t *p, __m256i v) {
    const __m256i low = _mm256_shuffle_epi8(
        v, _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1,
                            -1, -1, -1, -1, -1, -1));
    const int32_t parts[2] = {_mm256_extract_epi32(low, 0), _mm256_extract_epi32(low, 4)};
    memcpy(p, parts, 8);
}
INLINE void store_words_avx2(int16_t *p, __m256i v) {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    memcpy(p, &words, 16);
}
#include "strips.inc"
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")
#endif
#define NAME(x) x##_avx512_vnni
#define LANES 16
#define COLUMNS 4
#define ROWS 6
#define DOT_BYTES(sum, a, w) ((Ints16)_mm512_dpbusd_epi32((__m512i)(sum), (__m512i)(a), (__m512i)(w)))
#define DOT_WORDS(sum, a, w) ((Ints16)_mm512_dpwssd_epi32((__m512i)(sum), (__m512i)(a), (__m512i)(w)))
#define ROUND(x) ((Ints16)_mm512_cvtps_epi32(x))
#define STORE_BYTES(p, v) _mm_storeu_si128((__m128i *)(p), _mm512_cvtepi32_epi8((__m512i)(v)))
#define STORE_WORDS(p, v) _mm256_storeu_si256((__m256i *)(p), _mm512_cvtepi32_epi16((__m512i)(v)))
#define LEAST(a, b) _mm512_min_ps(a, b)
#define MOST(a, b) _mm512_max_ps(a, b)
#define SQRT(x) _mm512_sqrt_ps(x)
#define TOKENS 4
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define FMA_DOUBLE(a, b, c) _mm512_fmadd_pd(a, b, c)
typedef int32_t Ints16 __attribute__((vector_size(64)));
#include "strips.inc"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(HAS_AMX_KERNELS)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,amx-tile,amx-int8"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma,amx-tile,amx-int8")
#endif
#define STORE_LOW_BYTES(p, v) _mm_storeu_si128((__m128i *)(p), _mm512_cvtepi32_epi8(v))
#include "amx.inc"
#undef STORE_LOW_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
#endif

typedef void (*Work)(const Network *, const PictureBuffers *, const Maps *, int phase, int unit, Scratch *);

enum { PLAIN = 1, AVX2 = 2, AVX512_VNNI = 3, AMX = 4 };

/* Whether the processor and the system have AMX tiles for this process. Linux gives a process memory for them when it asks, and
   refuses where it cannot (a thread's alternate signal stack may be too small for them). */
static int has_amx(void) {
#if defined(HAS_AMX_KERNELS)
    enum { OSXSAVE = 1 << 27, AMX_TILE = 1 << 24, AMX_INT8 = 1 << 25, TILE_STATE = 3 << 17, ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    unsigned a, b, c, d, enabled, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE)) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (AMX_TILE | AMX_INT8)) != (AMX_TILE | AMX_INT8)) return 0;
    __asm__("xgetbv" : "=a"(enabled), "=d"(high) : "c"(0));
    if ((enabled & TILE_STATE) != TILE_STATE) return 0;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return 0;
#endif
}

static int find_best_isa(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"))
        return has_amx() ? AMX : AVX512_VNNI;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;
#endif
    return PLAIN;
}

/* The best instruction set of this processor. */
int quantsr_best_isa(void) {
    static atomic_int best; /* 0: not asked for yet */
    if (!best) best = find_best_isa();
    return best;
}

static Work work_of(int isa, int swin) {
#if defined(HAS_AMX_KERNELS)
    if (isa == AMX && !swin) return work_amx;
#endif
#if defined(__x86_64__)
    if (isa >= AVX512_VNNI) return swin ? swin_work_avx512_vnni : work_avx512_vnni;
    if (isa == AVX2) return swin ? swin_work_avx2 : work_avx2;
#endif
    return swin ? swin_work_plain : work_plain;
}

/* Order ----------------------------------------------------------------------------------------------------------- */

/* A row, strip or window of one phase. */
typedef struct {
    int32_t phase, number;
} Unit;

/* Units in an order in which each comes after those that it needs. */
typedef struct {
    Unit *order;
    int32_t *first;     /* of each phase: the place of its unit 0 in `done` */
    atomic_uchar *done; /* [units] */
    int32_t phases, units;
} Plan;

static int phases_of(const Network *net) {
    return net->swin ? swin_phases(net->swin) : 2 * net->blocks + (net->ring.weight[0] ? 4 : 3);
}

static int units_of(const Network *net, const PictureBuffers *picture, int phase) {
    const Swin *swin = net->swin;
    if (!swin) return (picture->height + rows_of(net, phase) - 1) / rows_of(net, phase);
    const int kind = step_of(swin, phase).kind;
    if (kind == LAYER) return (picture->height / swin->window) * (picture->width / swin->window);
    return kind == FIRST || kind == SPREAD || kind == NORM ? picture->height : picture->height / TILE;
}

/* The units of the phase before that one needs: in a QuantSR-C those that make, or last read, the rows that it reads or writes. */
static void needs_of(const Network *net, const PictureBuffers *picture, Unit unit, int *from, int *to) {
    *from = 0, *to = units_of(net, picture, unit.phase - 1);
    if (net->swin) return;
    const int rows = rows_of(net, unit.phase), top = unit.number * rows, before = rows_of(net, unit.phase - 1);
    *from = MAX(0, top - BORDER) / before;
    *to = MIN(*to, (top + rows + BORDER + before - 1) / before);
}

/* Few threads take a QuantSR-C a few phases at a time, each some rows behind the one before it: rows are still in the cache when they are read
   again. Many would wait for each other; they take phase by phase, as a QuantSR-T is taken. */
static void make_plan(const Network *net, const PictureBuffers *picture, Plan *plan) {
    enum { TOGETHER = 8, LAG = 8, MOST_THREADS = 4 };
    const int together = net->swin || picture->threads > MOST_THREADS ? 1 : TOGETHER, height = picture->height;
    Unit *next = plan->order;
    for (int phase = 0, first = 0; phase < plan->phases; phase++) {
        plan->first[phase] = first;
        first += units_of(net, picture, phase);
    }
    for (int group = 0; group < plan->phases; group += together) {
        const int end = MIN(group + together, plan->phases);
        if (together == 1) {
            for (int i = 0; i < units_of(net, picture, group); i++) *next++ = (Unit){group, i};
            continue;
        }
        int taken[TOGETHER] = {0};
        for (int front = LARGE_TILE; front < height + LARGE_TILE + LAG * together; front += LARGE_TILE)
            for (int phase = group; phase < end; phase++) {
                const int rows = rows_of(net, phase), units = units_of(net, picture, phase);
                int *number = &taken[phase - group];
                while (*number < units && MIN(height, (*number + 1) * rows) <= front - LAG * (phase - group))
                    *next++ = (Unit){phase, (*number)++};
            }
    }
}

/* Copies the codes that a unit of a QuantSR-C gave to where the picture wants them. */
static void copy_codes(const Network *net, const PictureBuffers *picture, const Maps *maps, Unit unit) {
    if (net->swin || unit.phase >= 2 * net->blocks) return;
    const int rows = rows_of(net, unit.phase), top = unit.number * rows;
    const size_t bytes = (size_t)picture->width * net->channels;
    const uint8_t *codes = unit.phase % 2 ? maps->codes2 : maps->codes1;
    for (int y = top; y < MIN(top + rows, picture->height); y++)
        memcpy(picture->codes[unit.phase] + y * bytes, codes + ((y + 1) * maps->code_row + 1) * net->channels, bytes);
}

/* Threads --------------------------------------------------------------------------------------------------------- */

/* Work of one picture that its threads share. */
typedef struct {
    const Network *net;
    const PictureBuffers *picture;
    Maps maps;
    Work work;
    Plan plan;
    atomic_int next; /* place in the plan of the unit to take next */
} Team;

typedef struct {
    Team *team;
    Scratch scratch;
} Member;

static void *run_member(void *argument) {
    Member *member = argument;
    Team *team = member->team;
    const Plan *plan = &team->plan;
#if defined(HAS_AMX_KERNELS)
    if (team->work == work_amx) load_tile_config();
#endif
    int complete = -1; /* the last phase all of whose units are known to be done */
    for (int place; (place = atomic_fetch_add(&team->next, 1)) < plan->units;) {
        const Unit unit = plan->order[place];
        if (unit.phase > 0 && complete < unit.phase - 1) {
            int from, to;
            needs_of(team->net, team->picture, unit, &from, &to);
            for (int i = from; i < to; i++)
                for (int spins = 0; !atomic_load_explicit(&plan->done[plan->first[unit.phase - 1] + i], memory_order_acquire); spins++)
                    if (spins >= SPINS) sched_yield();
            if (to - from == units_of(team->net, team->picture, unit.phase - 1)) complete = unit.phase - 1;
        }
        team->work(team->net, team->picture, &team->maps, unit.phase, unit.number, &member->scratch);
        if (team->picture->codes) copy_codes(team->net, team->picture, &team->maps, unit);
        atomic_store_explicit(&plan->done[plan->first[unit.phase] + unit.number], 1, memory_order_release);
    }
#if defined(HAS_AMX_KERNELS)
    if (team->work == work_amx) release_tiles();
#endif
    return NULL;
}

/* Memory ---------------------------------------------------------------------------------------------------------- */

static void *take(char **free, size_t bytes) {
    void *taken = *free;
    *free += (bytes + 63) / 64 * 64;
    return taken;
}

/* So many pixels, and as many more as make whole tiles of either size. */
static size_t whole_tiles(int pixels) { return (pixels + LARGE_TILE - 1) / LARGE_TILE * LARGE_TILE; }

/* Lays out maps, plan and scratch from `memory` on, and gives the number of bytes that takes. */
static size_t lay_out(const Network *net, const PictureBuffers *picture, char *memory, Maps *maps, Plan *plan, Scratch *scratch) {
    const size_t channels = net->channels, widest = MAX(net->channels, net->tail.outputs);
    const size_t tall = whole_tiles(picture->height), wide = whole_tiles(picture->width);
    char *end = memory;
    maps->row = wide + 2 * BORDER;
    maps->code_row = wide + 2;
    maps->pixels = take(&end, (picture->height + 2) * (size_t)(picture->width + HEAD + 1) * 3 * sizeof(double));
    maps->start = take(&end, (tall + 2 * BORDER) * maps->row * channels * sizeof(float));
    const Swin *swin = net->swin;
    const int words = net->after_body.kind == WORDS;
    maps->plane = net->after_body.kind == SPLIT ? (tall + 2 * BORDER) * maps->row * channels : 0;
    maps->body_planes = take(&end, 3 * maps->plane);
    maps->tail_planes = take(&end, 3 * maps->plane);
    maps->stream = swin && words ? NULL : take(&end, (tall + 2 * BORDER) * maps->row * channels * sizeof(float));
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
    plan->phases = phases_of(net);
    plan->units = 0;
    for (int phase = 0; phase < plan->phases; phase++) plan->units += units_of(net, picture, phase);
    plan->order = take(&end, plan->units * sizeof(Unit));
    plan->first = take(&end, plan->phases * sizeof(int32_t));
    plan->done = take(&end, plan->units);
    for (int i = 0; i < picture->threads; i++) {
        const size_t tiles = 2 * (CHUNK + 1) + CHUNK; /* products take several tiles at once, also where fewer are left */
        scratch[i].inputs = take(&end, tiles * (POSITIONS * channels * sizeof(float) + 64));
        const size_t sums = MAX(POSITIONS * widest, swin ? 0 : LARGE_POSITIONS * channels);
        scratch[i].sums = take(&end, CHUNK * (sums + 16) * sizeof(int32_t));
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

/* The checksum of the sources that this was compiled from (setup.py): library.py leaves kernels of other sources out. */
unsigned quantsr_abi(void) { return QUANTSR_ABI; }

/* Bytes of memory that `quantsr_run` needs. */
size_t quantsr_memory(const Network *net, const PictureBuffers *picture) {
    Maps maps;
    Plan plan;
    Scratch scratch[MAX_THREADS];
    return lay_out(net, picture, NULL, &maps, &plan, scratch);
}

/* Upscales a picture in `memory`, aligned to 64 bytes. 0: done; 1: arguments out of range. */
int quantsr_run(const Network *net, const PictureBuffers *picture, int isa, void *memory) {
    const Swin *swin = net->swin;
    if (swin && (swin->dim % 4 || swin->hidden % 4 || swin->window * swin->window % 16 || swin->dim > net->channels ||
                 picture->height % swin->window || picture->width % swin->window || net->ring.weight[0]))
        return 1;
    if (net->channels % 16 || net->blocks < !swin || net->tail.outputs % 16 || net->tail.outputs > MAX_OUTPUTS || picture->threads < 1 ||
        picture->threads > MAX_THREADS || picture->height < 1 || picture->width < 1 || isa < PLAIN || isa > quantsr_best_isa())
        return 1;
    for (int b = 0; b < net->blocks; b++)
        if ((net->body[b].conv1.kind == CODES) != (isa == AMX) || (net->body[b].conv2.kind == CODES) != (isa == AMX)) return 1;
    if (net->after_body.kind == SPLIT && isa != AMX) return 1;
    Team team = {.net = net, .picture = picture, .work = work_of(isa, swin != NULL)};
    Scratch scratch[MAX_THREADS];
    lay_out(net, picture, memory, &team.maps, &team.plan, scratch);
    make_plan(net, picture, &team.plan);
    memset(team.plan.done, 0, team.plan.units);
    const size_t channels = net->channels;
    const size_t pixels = (picture->height + 2 * BORDER) * team.maps.row;
    clear_border(team.maps.start, BORDER, team.maps.row, picture, channels * sizeof(float));
    if (team.maps.stream) {
        if (swin) memset(team.maps.stream, 0, pixels * channels * sizeof(float)); /* padded channels as well */
        else clear_border(team.maps.stream, BORDER, team.maps.row, picture, channels * sizeof(float));
    }
    if (team.maps.body_words) {
        if (swin) memset(team.maps.body_words, 0, pixels * channels * sizeof(int16_t));
        else clear_border(team.maps.body_words, BORDER, team.maps.row, picture, channels * sizeof(int16_t));
        clear_border(team.maps.tail_words, BORDER, team.maps.row, picture, channels * sizeof(int16_t));
    }
    for (int plane = 0; team.maps.plane && plane < 3; plane++) {
        clear_border(team.maps.body_planes + plane * team.maps.plane, BORDER, team.maps.row, picture, channels);
        clear_border(team.maps.tail_planes + plane * team.maps.plane, BORDER, team.maps.row, picture, channels);
    }
    if (!swin) {
        clear_border(team.maps.codes1, 1, team.maps.code_row, picture, channels);
        clear_border(team.maps.codes2, 1, team.maps.code_row, picture, channels);
    }
    read_pixels(net, picture, team.maps.pixels);

    Member members[MAX_THREADS];
    pthread_t threads[MAX_THREADS];
    int started = 1;
    for (int i = 0; i < picture->threads; i++) members[i] = (Member){&team, scratch[i]};
    for (; started < picture->threads; started++)
        if (pthread_create(&threads[started], NULL, run_member, &members[started])) break;
    run_member(&members[0]);
    for (int i = 1; i < started; i++) pthread_join(threads[i], NULL);
    return 0;
}
