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

#include "kernels.h"

#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
/* Before a loop of few rounds over arrays that are to be registers. */
#define UNROLL _Pragma("GCC unroll 16")
#if defined(__clang__)
#define UNROLL_ALL _Pragma("unroll")
#else
#define UNROLL_ALL UNROLL
#endif

/* Of 16-bit inputs: four of them add up to 16 bits. */
enum { LARGEST_WORD = 8191 };

/* What LayerNorm adds to the variance. */
#define NORM_EPSILON 1e-5f

enum { QKV_INPUT, PROJ_INPUT, FC1_INPUT, FC2_INPUT, INPUTS_OF_LAYER };

static inline void copy_window_codes(const Window *window, int input, const int32_t *codes, size_t bytes) {
    if (window->copies) memcpy(window->copies[input] + window->number * bytes, codes, bytes);
}

/* What a linear layer's outputs are for. */
enum { PLAIN_OUTPUT, SUM, MIX, GELU };

/* Positions along one side of a tile of so many outputs. */
static inline int side_of(int tile) { return tile == LARGE_TILE ? 7 : 4; }
static inline int positions_of(int tile) { return tile == LARGE_TILE ? LARGE_POSITIONS : POSITIONS; }

/* Whether the tail's inner kernel holds for a pixel. */
static int is_inner(int y, int x, int height, int width) { return y > 0 && x > 0 && y < height - 1 && x < width - 1; }

/* `call` with the constant N for n. */
/* clang-format off */
#define BY_COLUMNS(n, call)                                                                                            \
    switch (n) {                                                                                                       \
    case 1: { enum { N = 1 }; call; break; }                                                                           \
    case 2: { enum { N = MIN(2, COLUMNS) }; call; break; }                                                             \
    case 3: { enum { N = MIN(3, COLUMNS) }; call; break; }                                                             \
    default: { enum { N = COLUMNS }; call; }                                                                           \
    }
/* clang-format on */

/* `call` with N for the number of channels, a constant where it is a usual one: the compiler then counts with it. */
#define BY_CHANNELS(channels, call)  \
    do {                             \
        if (channels == 64) {        \
            enum { N = 64 };         \
            call;                    \
        } else if (channels == 32) { \
            enum { N = 32 };         \
            call;                    \
        } else {                     \
            const int N = channels;  \
            call;                    \
        }                            \
    } while (0)

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
#define ROWS 6
#define ADD_PAIRS(sum, a, w) add_pairs_avx2(sum, a, w)
#define WIDEN(sum, factor) ((Ints8)_mm256_madd_epi16((__m256i)(sum), _mm256_set1_epi16((int16_t)(factor))))
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
/* Written out, because compilers gather the products of a step before they add any, which takes more registers than there are. */
INLINE Ints8 add_pairs_avx2(Ints8 sum, Ints8 a, Ints8 w) {
    Ints8 pairs;
    __asm__("vpmaddubsw %2, %3, %0\n\tvpaddw %0, %1, %1" : "=&x"(pairs), "+x"(sum) : "x"(w), "x"(a));
    return sum;
}
INLINE void store_bytes_avx2(uint8_t *p, __m256i v) {
    const __m256i low = _mm256_shuffle_epi8(v, _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1,
                                                                -1, -1, -1, -1, -1, -1, -1, -1, -1));
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

#if defined(HAS_NEON_KERNELS)
#include "neon.inc"
#endif

/* The kernels of programs that run on an instruction set; AMX's processors have AVX-512 VNNI. */
SweepWork sweep_work_of(int isa) {
#if defined(__x86_64__)
    if (isa >= AVX512_VNNI) return sweep_avx512_vnni;
    if (isa == AVX2) return sweep_avx2;
#endif
#if defined(HAS_NEON_I8MM_KERNELS)
    if (isa == NEON_I8MM) return sweep_neon_i8mm;
#endif
#if defined(HAS_NEON_DOTPROD_KERNELS)
    if (isa == NEON_DOTPROD) return sweep_neon_dotprod;
#endif
#if defined(HAS_NEON_KERNELS)
    if (isa == NEON) return sweep_neon;
#endif
    (void)isa;
    return sweep_plain;
}

/* The kernels that run on an instruction set. */
Kernels kernels_of(int isa, int swin) {
#if defined(HAS_AMX_KERNELS)
    if (isa == AMX && !swin) return (Kernels){work_amx, load_tile_config, release_tiles};
#endif
#if defined(__x86_64__)
    if (isa >= AVX512_VNNI) return (Kernels){.work = swin ? swin_work_avx512_vnni : work_avx512_vnni};
    if (isa == AVX2) return (Kernels){.work = swin ? swin_work_avx2 : work_avx2};
#endif
#if defined(HAS_NEON_I8MM_KERNELS)
    if (isa == NEON_I8MM) return (Kernels){.work = swin ? swin_work_neon_i8mm : work_neon_i8mm};
#endif
#if defined(HAS_NEON_DOTPROD_KERNELS)
    if (isa == NEON_DOTPROD) return (Kernels){.work = swin ? swin_work_neon_dotprod : work_neon_dotprod};
#endif
#if defined(HAS_NEON_KERNELS)
    if (isa == NEON) return (Kernels){.work = swin ? swin_work_neon : work_neon};
#endif
    (void)isa;
    return (Kernels){.work = swin ? swin_work_plain : work_plain};
}
