/* The kernels for AVX-VNNI: AVX-512 VNNI's products of bytes in AVX2's registers, for processors without AVX-512. */

#include "isa.h"

#if defined(HAS_AVX_VNNI_KERNELS)
#include <immintrin.h>

BEGIN_TARGET("avx2,fma,avxvnni")
#include "avx2.inc"
#define NAME(x) x##_avx_vnni
#define DOT_BYTES(sum, a, w) ((Ints8)_mm256_dpbusd_avx_epi32((__m256i)(sum), (__m256i)(a), (__m256i)(w)))
#define DOT_WORDS(sum, a, w) ((Ints8)_mm256_dpwssd_avx_epi32((__m256i)(sum), (__m256i)(a), (__m256i)(w)))
#include "strips.inc"
END_TARGET
#endif
