/* The kernels for ARM64's NEON. */

#include "isa.h"

#if defined(HAS_NEON_KERNELS)
#include "neon.inc"

FUNCTION products_of_bytes_neon(const char *const *in, int parts, size_t in_tile, int steps, const char *weight, const int32_t *start, int outputs,
                                int32_t *out, size_t out_tile) {
    for (int v = 0; v < NEON_COLUMNS; v++) {
        int32x4_t sum[NEON_ROWS][4] = {{{0}}};
        const char *from = weight + v * 16;
        for (int part = 0; part < parts; part++) {
            const char *tile = in[part];
            for (int step = 0; step < steps; step++, from += 4 * outputs, tile += 4) {
                const int8x16_t w = vld1q_s8((const int8_t *)from);
                const int16x8_t low = vmovl_s8(vget_low_s8(w)), high = vmovl_high_s8(w);
                UNROLL
                for (int t = 0; t < NEON_ROWS; t++) {
                    const int16x4_t a = vreinterpret_s16_u16(vget_low_u16(vmovl_u8(vreinterpret_u8_s32(four_bytes_neon(tile + t * in_tile)))));
                    sum[t][0] = vmlal_s16(sum[t][0], a, vget_low_s16(low));
                    sum[t][1] = vmlal_s16(sum[t][1], a, vget_high_s16(low));
                    sum[t][2] = vmlal_s16(sum[t][2], a, vget_low_s16(high));
                    sum[t][3] = vmlal_s16(sum[t][3], a, vget_high_s16(high));
                }
            }
        }
        const int32x4_t first = vld1q_s32(start + v * 4);
        UNROLL
        for (int t = 0; t < NEON_ROWS; t++) {
            const int32x4_t whole = vpaddq_s32(vpaddq_s32(sum[t][0], sum[t][1]), vpaddq_s32(sum[t][2], sum[t][3]));
            vst1q_s32(out + t * out_tile + v * 4, vaddq_s32(first, whole));
        }
    }
}

#define NAME(x) x##_neon
#define ROWS NEON_ROWS
#define COLUMNS NEON_COLUMNS
#define TOKENS 2
#define PRODUCTS_OF_BYTES products_of_bytes_neon
#include "strips.inc"
#endif
