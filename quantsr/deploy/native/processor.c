/* The instruction sets that this processor and its system have, and that there are kernels for. */

#include "kernels.h"

#if defined(HAS_AVX_VNNI_KERNELS)
#include <cpuid.h>
#endif
#if defined(HAS_AMX_KERNELS)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(HAS_NEON_DOTPROD_KERNELS) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(HAS_NEON_DOTPROD_KERNELS) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#if defined(HAS_AVX_VNNI_KERNELS)
/* Not every compiler's __builtin_cpu_supports knows AVX-VNNI. */
static int has_avx_vnni(void) {
    enum { AVX_VNNI_BIT = 1 << 4 };
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 1, &a, &b, &c, &d) && a & AVX_VNNI_BIT;
}
#endif

#if defined(HAS_AMX_KERNELS)
/* Whether the processor and the system have AMX tiles for this process. Linux gives a process memory for them when it asks, and
   refuses where it cannot (a thread's alternate signal stack may be too small for them). */
static int has_amx(void) {
    enum { OSXSAVE = 1 << 27, AMX_TILE = 1 << 24, AMX_INT8 = 1 << 25, TILE_STATE = 3 << 17, ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    unsigned a, b, c, d, enabled, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & OSXSAVE)) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (AMX_TILE | AMX_INT8)) != (AMX_TILE | AMX_INT8)) return 0;
    __asm__("xgetbv" : "=a"(enabled), "=d"(high) : "c"(0));
    if ((enabled & TILE_STATE) != TILE_STATE) return 0;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
#endif

#if defined(HAS_NEON_DOTPROD_KERNELS)
enum { DOTPROD, I8MM };
/* Whether the processor has an extension of NEON. */
static int has_extension(int extension) {
#if defined(__linux__)
    enum { HWCAP_OF_DOTPROD = 1 << 20, HWCAP2_OF_I8MM = 1 << 13 }; /* older headers lack them */
    return extension == DOTPROD ? (getauxval(AT_HWCAP) & HWCAP_OF_DOTPROD) != 0 : (getauxval(AT_HWCAP2) & HWCAP2_OF_I8MM) != 0;
#elif defined(__APPLE__)
    int value = 0;
    size_t size = sizeof value;
    const char *name = extension == DOTPROD ? "hw.optional.arm.FEAT_DotProd" : "hw.optional.arm.FEAT_I8MM";
    return sysctlbyname(name, &value, &size, NULL, 0) == 0 && value;
#else /* what the compiler was told */
#if defined(__ARM_FEATURE_DOTPROD)
    if (extension == DOTPROD) return 1;
#endif
#if defined(__ARM_FEATURE_MATMUL_INT8)
    if (extension == I8MM) return 1;
#endif
    return 0;
#endif
}
#endif

static int find_isas(void) {
    int isas = 1 << PLAIN;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) isas |= 1 << AVX2;
#if defined(HAS_AVX_VNNI_KERNELS)
    if (isas >> AVX2 & 1 && has_avx_vnni()) isas |= 1 << AVX_VNNI;
#endif
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"))
        isas |= 1 << AVX512_VNNI;
#if defined(HAS_AMX_KERNELS)
    if (isas >> AVX512_VNNI & 1 && has_amx()) isas |= 1 << AMX;
#endif
#endif
#if defined(HAS_NEON_KERNELS)
    isas |= 1 << NEON;
#if defined(HAS_NEON_DOTPROD_KERNELS)
    if (has_extension(DOTPROD)) isas |= 1 << NEON_DOTPROD;
#endif
#if defined(HAS_NEON_I8MM_KERNELS)
    if (has_extension(DOTPROD) && has_extension(I8MM)) isas |= 1 << NEON_I8MM;
#endif
#endif
    return isas;
}

int quantsr_isas(void) {
    static atomic_int isas; /* 0: not asked for yet */
    if (!isas) isas = find_isas();
    return isas;
}
