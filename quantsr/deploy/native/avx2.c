/* The kernels for AVX2. */

#include "isa.h"

#if defined(__x86_64__)
#include <immintrin.h>

BEGIN_TARGET("avx2,fma")
#include "avx2.inc"
#define NAME(x) x##_avx2
#define ADD_PAIRS(sum, a, w) add_pairs_avx2(sum, a, w)
#define WIDEN(sum, factor) ((Ints8)_mm256_madd_epi16((__m256i)(sum), _mm256_set1_epi16((int16_t)(factor))))
#define DOT_WORDS(sum, a, w) ((sum) + (Ints8)_mm256_madd_epi16((__m256i)(a), (__m256i)(w)))
/* Written out, because compilers gather the products of a step before they add any, which takes more registers than there are.
   A product may have the register of an input: the addition reads neither. */
INLINE Ints8 add_pairs_avx2(Ints8 sum, Ints8 a, Ints8 w) {
    Ints8 pairs;
    __asm__("vpmaddubsw %2, %3, %0\n\tvpaddw %0, %1, %1" : "=x"(pairs), "+x"(sum) : "x"(w), "x"(a));
    return sum;
}
#include "strips.inc"
END_TARGET
#endif
