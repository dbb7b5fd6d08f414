/* How long one instruction sequence of the AVX2 kernels takes when nothing holds it up: seconds for each, the least of many rounds. Twelve
   independent sums in registers, no memory. */
#include <immintrin.h>
#include <stdio.h>
#include <time.h>

enum { SUMS = 12, LOOPS = 20000, ROUNDS = 200 };

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

#define MEASURE(name, type, step)                                                                                                  \
    static double name(void) {                                                                                                    \
        double best = 1e9;                                                                                                        \
        for (int round = 0; round < ROUNDS; round++) {                                                                            \
            type s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0}, s4 = {0}, s5 = {0}, s6 = {0}, s7 = {0}, s8 = {0}, s9 = {0}, s10 = {0},    \
                 s11 = {0}, a = {0}, t;                                                                                           \
            const double start = seconds();                                                                                       \
            for (int i = 0; i < LOOPS; i++) {                                                                                     \
                step(s0) step(s1) step(s2) step(s3) step(s4) step(s5) step(s6) step(s7) step(s8) step(s9) step(s10) step(s11)      \
            }                                                                                                                     \
            const double taken = (seconds() - start) / ((double)LOOPS * SUMS);                                                    \
            if (taken < best) best = taken;                                                                                       \
        }                                                                                                                         \
        return best;                                                                                                              \
    }
#define BYTES_STEP(s) __asm__ volatile("vpmaddubsw %2, %2, %0\n\tvpaddw %0, %1, %1" : "=&x"(t), "+x"(s) : "x"(a));
#define WORDS_STEP(s) __asm__ volatile("vpmaddwd %2, %2, %0\n\tvpaddd %0, %1, %1" : "=&x"(t), "+x"(s) : "x"(a));
#define SINGLE_STEP(s) __asm__ volatile("vfmadd231ps %1, %1, %0" : "+x"(s) : "x"(a)); (void)t;
#define WIDE_STEP(s)                                                                                                                  \
    __asm__ volatile("vpmaddubsw %2, %2, %0\n\tvpmaddwd %2, %0, %0\n\tvpaddd %0, %1, %1" : "=&x"(t), "+x"(s) : "x"(a));
MEASURE(bytes, __m256i, BYTES_STEP)
MEASURE(bytes_in_32, __m256i, WIDE_STEP)
MEASURE(words, __m256i, WORDS_STEP)
MEASURE(floats, __m256, SINGLE_STEP)

/* Dependent additions of integers: one a cycle. */
static double cycle(void) {
    double best = 1e9;
    for (int round = 0; round < ROUNDS; round++) {
        unsigned long x = 0;
        const double start = seconds();
        for (int i = 0; i < LOOPS; i++) __asm__ volatile("add $1, %0\n\tadd $1, %0\n\tadd $1, %0\n\tadd $1, %0" : "+r"(x));
        const double taken = (seconds() - start) / (4.0 * LOOPS);
        if (taken < best) best = taken;
    }
    return best;
}

int main(void) {
    printf("cycle %.6e\nbytes %.6e\nbytes_in_32 %.6e\nwords %.6e\nfloats %.6e\n", cycle(), bytes(), bytes_in_32(), words(), floats());
    return 0;
}
