/* The kernels for ARM64's NEON with the 8-bit matrix products of Armv8.6 (I8MM). */

#include "isa.h"

#if defined(HAS_NEON_I8MM_KERNELS)
#include "neon.inc"

#if defined(__clang__)
BEGIN_TARGET("dotprod,i8mm")
#else
BEGIN_TARGET("arch=armv8.2-a+dotprod+i8mm")
#endif
/* One USMMLA multiplies eight inputs of two tiles by the weights of two outputs. */
FUNCTION products_of_bytes_neon_i8mm(const char *const *in, int parts, size_t in_tile, int steps, const char *weight, const int32_t *start,
                                     int outputs, int32_t *out, size_t out_tile) {
    enum { PAIRS = CHUNK / 2, PAIR = 2 };
    int32x4_t sum[PAIRS][2][2]; /* [pair of tiles][vector][pair of its outputs], [tile][output] */
    for (int v = 0; v < PAIR; v++) {
        const int32x4_t first = vld1q_s32(start + v * 4);
        for (int t = 0; t < PAIRS; t++) {
            sum[t][v][0] = vcombine_s32(vget_low_s32(first), vget_low_s32(first));
            sum[t][v][1] = vcombine_s32(vget_high_s32(first), vget_high_s32(first));
        }
    }
    for (int part = 0; part < parts; part++) {
        const char *tile = in[part];
        for (int step = 0; step < steps; step += 2, tile += 8, weight += 8 * outputs) {
            int8x16_t w[2][2]; /* [vector][pair of outputs], [output][8 inputs] */
            UNROLL
            for (int v = 0; v < PAIR; v++) {
                const int32x4_t w0 = vreinterpretq_s32_s8(vld1q_s8((const int8_t *)weight + v * 16));
                const int32x4_t w1 = vreinterpretq_s32_s8(vld1q_s8((const int8_t *)weight + 4 * outputs + v * 16));
                w[v][0] = vreinterpretq_s8_s32(vzip1q_s32(w0, w1));
                w[v][1] = vreinterpretq_s8_s32(vzip2q_s32(w0, w1));
            }
            UNROLL
            for (int t = 0; t < PAIRS; t++) {
                const uint8_t *pair = (const uint8_t *)tile + 2 * t * in_tile;
                const uint8x16_t a = vcombine_u8(vld1_u8(pair), vld1_u8(pair + in_tile));
                UNROLL
                for (int v = 0; v < PAIR; v++) {
                    sum[t][v][0] = vusmmlaq_s32(sum[t][v][0], a, w[v][0]);
                    sum[t][v][1] = vusmmlaq_s32(sum[t][v][1], a, w[v][1]);
                }
            }
        }
    }
    for (int t = 0; t < PAIRS; t++)
        for (int v = 0; v < PAIR; v++) {
            int32_t *to = out + 2 * t * out_tile + v * 4;
            vst1q_s32(to, vcombine_s32(vget_low_s32(sum[t][v][0]), vget_low_s32(sum[t][v][1])));
            vst1q_s32(to + out_tile, vcombine_s32(vget_high_s32(sum[t][v][0]), vget_high_s32(sum[t][v][1])));
        }
}

/* LINEAR_SUMS (strips.inc) */
INLINE void linear_sums_neon_i8mm(Ints4 sum[4][4], int inputs, const int32_t *codes, int tokens, const int8_t *weight, const int n) {
    for (int k = 0; k < inputs; k += 4, codes += tokens, weight += 16) {
        const int8x16_t w = vld1q_s8(weight);
        UNROLL
        for (int v = 0; v < n; v++) {
            const uint8x16_t a = vld1q_u8((const uint8_t *)(codes + v * 4));
            sum[0][v] = (Ints4)vusdotq_laneq_s32((int32x4_t)sum[0][v], a, w, 0);
            sum[1][v] = (Ints4)vusdotq_laneq_s32((int32x4_t)sum[1][v], a, w, 1);
            sum[2][v] = (Ints4)vusdotq_laneq_s32((int32x4_t)sum[2][v], a, w, 2);
            sum[3][v] = (Ints4)vusdotq_laneq_s32((int32x4_t)sum[3][v], a, w, 3);
        }
    }
}

#define NAME(x) x##_neon_i8mm
#define ROWS CHUNK
#define COLUMNS 2
#define TOKENS 4
#define PRODUCTS_OF_BYTES products_of_bytes_neon_i8mm
#define LINEAR_SUMS linear_sums_neon_i8mm
#include "strips.inc"
END_TARGET
#endif
