/* The kernels in plain C, for any processor. */

#define WITHOUT_CONSTANTS /* isa.h */
#include "isa.h"

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
