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
 * what it needs of the phase before is done. Plain C, compiled once for every instruction set, by a file of its own: plain.c, avx2.c,
 * avx_vnni.c, avx512_vnni.c, amx.c, neon.c, neon_dotprod.c, neon_i8mm.c. What differs between them is in the macros before the inclusion of strips.inc.
 */
#ifndef QUANTSR_ISA_H
#define QUANTSR_ISA_H

#include "kernels.h"

#include <string.h>

/* Around the functions of an instruction set that the compiler has no leave to use elsewhere. */
#define PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define BEGIN_TARGET(set) PRAGMA(clang attribute push(__attribute__((target(set))), apply_to = function))
#define END_TARGET PRAGMA(clang attribute pop)
#else
#define BEGIN_TARGET(set) PRAGMA(GCC push_options) PRAGMA(GCC target(set))
#define END_TARGET PRAGMA(GCC pop_options)
#endif

#define INLINE static inline __attribute__((always_inline))
/* Before a loop of few rounds over arrays that are to be registers. */
#define UNROLL _Pragma("GCC unroll 16")
#if defined(__clang__)
#define UNROLL_ALL _Pragma("unroll")
#else
#define UNROLL_ALL UNROLL
#endif

#define AVX512_VNNI_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma"

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
static inline int is_inner(int y, int x, int height, int width) { return y > 0 && x > 0 && y < height - 1 && x < width - 1; }

/* `call` with the constant N for n, from 1 to COLUMNS. */
#define BY_COLUMNS(n, call)                 \
    do {                                    \
        if (COLUMNS > 1 && n == 1) {        \
            enum { N = 1 };                 \
            call;                           \
        } else if (COLUMNS > 2 && n == 2) { \
            enum { N = MIN(2, COLUMNS) };   \
            call;                           \
        } else if (COLUMNS > 3 && n == 3) { \
            enum { N = MIN(3, COLUMNS) };   \
            call;                           \
        } else {                            \
            enum { N = COLUMNS };           \
            call;                           \
        }                                   \
    } while (0)

/* `call` with N for the number of channels, a constant where it is a usual one: the compiler then counts with it. Nobody runs plain C for its
   speed, and it is compiled faster without. */
#if defined(WITHOUT_CONSTANTS)
#define BY_CHANNELS(channels, call) \
    do {                            \
        const int N = channels;     \
        call;                       \
    } while (0)
#else
#define USUAL_WINDOW 8
#define BY_CHANNELS(channels, call)  \
    do {                             \
        if (channels == 64) {        \
            enum { N = 64 };         \
            call;                    \
        } else if (channels == 48) { \
            enum { N = 48 };         \
            call;                    \
        } else if (channels == 32) { \
            enum { N = 32 };         \
            call;                    \
        } else {                     \
            const int N = channels;  \
            call;                    \
        }                            \
    } while (0)
#endif

#endif
