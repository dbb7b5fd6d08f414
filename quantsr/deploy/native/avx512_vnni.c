/* The kernels for AVX-512 VNNI. */

#include "isa.h"

#if defined(__x86_64__)
#include <immintrin.h>

BEGIN_TARGET(AVX512_VNNI_TARGET)
#include "avx512_vnni.inc"
#include "strips.inc"
END_TARGET
#endif
