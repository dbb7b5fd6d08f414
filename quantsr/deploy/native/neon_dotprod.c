/* The kernels for ARM64's NEON with the dot products of Armv8.2. */

#include "isa.h"

#if defined(HAS_NEON_DOTPROD_KERNELS)
#include "neon.inc"

#if defined(__clang__)
BEGIN_TARGET("dotprod")
#else
BEGIN_TARGET("arch=armv8.2-a+dotprod")
#endif
INLINE int8x16_t signed_neon(const void *p) { return veorq_s8(vld1q_s8(p), vdupq_n_s8(-128)); }

/* sum - 128 * (the sum of each four weights): what inputs less 128 lack. */
INLINE int32x4_t less_lacking_neon(int32x4_t sum, int8x16_t w) { return vdotq_s32(sum, vdupq_n_s8(-128), w); }

#define DOT_LANE(lane)                                                                             \
    UNROLL                                                                                         \
    for (int v = 0; v < NEON_COLUMNS; v++) {                                                       \
        const int8x16_t w = vld1q_s8((const int8_t *)weight + v * 16);                             \
        lacking[v] = less_lacking_neon(lacking[v], w);                                             \
        UNROLL                                                                                     \
        for (int t = 0; t < NEON_ROWS; t++) sum[t][v] = vdotq_laneq_s32(sum[t][v], w, a[t], lane); \
    }                                                                                              \
    weight += 4 * outputs
FUNCTION products_of_bytes_neon_dotprod(const char *const *in, int parts, size_t in_tile, int steps, const char *weight, const int32_t *start,
                                        int outputs, int32_t *out, size_t out_tile) {
    int32x4_t sum[NEON_ROWS][NEON_COLUMNS], lacking[NEON_COLUMNS];
    for (int v = 0; v < NEON_COLUMNS; v++) {
        lacking[v] = vdupq_n_s32(0);
        for (int t = 0; t < NEON_ROWS; t++) sum[t][v] = vld1q_s32(start + v * 4);
    }
    for (int part = 0; part < parts; part++)
        for (int step = 0; step < steps; step += 4) {
            int8x16_t a[NEON_ROWS];
            UNROLL
            for (int t = 0; t < NEON_ROWS; t++) a[t] = signed_neon(in[part] + t * in_tile + step * 4);
            DOT_LANE(0);
            DOT_LANE(1);
            DOT_LANE(2);
            DOT_LANE(3);
        }
    for (int t = 0; t < NEON_ROWS; t++)
        for (int v = 0; v < NEON_COLUMNS; v++) vst1q_s32(out + t * out_tile + v * 4, vsubq_s32(sum[t][v], lacking[v]));
}
#undef DOT_LANE

/* LINEAR_SUMS (strips.inc) */
INLINE void linear_sums_neon_dotprod(Ints4 sum[4][4], int inputs, const int32_t *codes, int tokens, const int8_t *weight, const int n) {
    int32x4_t lacking = vdupq_n_s32(0);
    for (int k = 0; k < inputs; k += 4, codes += tokens, weight += 16) {
        const int8x16_t w = vld1q_s8(weight);
        lacking = less_lacking_neon(lacking, w);
        UNROLL
        for (int v = 0; v < n; v++) {
            const int8x16_t a = signed_neon(codes + v * 4);
            sum[0][v] = (Ints4)vdotq_laneq_s32((int32x4_t)sum[0][v], a, w, 0);
            sum[1][v] = (Ints4)vdotq_laneq_s32((int32x4_t)sum[1][v], a, w, 1);
            sum[2][v] = (Ints4)vdotq_laneq_s32((int32x4_t)sum[2][v], a, w, 2);
            sum[3][v] = (Ints4)vdotq_laneq_s32((int32x4_t)sum[3][v], a, w, 3);
        }
    }
    UNROLL
    for (int i = 0; i < 4; i++) {
        UNROLL
        for (int v = 0; v < n; v++) sum[i][v] -= ((Ints4)lacking)[i];
    }
}

#define NAME(x) x##_neon_dotprod
#define ROWS NEON_ROWS
#define COLUMNS NEON_COLUMNS
#define TOKENS 4
#define PRODUCTS_OF_BYTES products_of_bytes_neon_dotprod
#define LINEAR_SUMS linear_sums_neon_dotprod
#include "strips.inc"
END_TARGET
#endif
