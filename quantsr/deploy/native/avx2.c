/* The kernels for AVX2. */

#include "isa.h"

#if defined(__x86_64__)
#include <immintrin.h>

BEGIN_TARGET("avx2,fma")
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
/* Written out, because compilers gather the products of a step before they add any, which takes more registers than there are.
   A product may have the register of an input: the addition reads neither. */
INLINE Ints8 add_pairs_avx2(Ints8 sum, Ints8 a, Ints8 w) {
    Ints8 pairs;
    __asm__("vpmaddubsw %2, %3, %0\n\tvpaddw %0, %1, %1" : "=x"(pairs), "+x"(sum) : "x"(w), "x"(a));
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
END_TARGET
#endif
