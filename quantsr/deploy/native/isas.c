/* The kernels that run on an instruction set. */

#include "kernels.h"

/* The kernels of programs that run on an instruction set; AMX's processors have AVX-512 VNNI. */
SweepWork sweep_work_of(int isa) {
#if defined(__x86_64__)
    if (isa == AVX512_VNNI || isa == AMX) return sweep_avx512_vnni;
    if (isa == AVX2) return sweep_avx2;
#endif
#if defined(HAS_AVX_VNNI_KERNELS)
    if (isa == AVX_VNNI) return sweep_avx_vnni;
#endif
#if defined(HAS_NEON_I8MM_KERNELS)
    if (isa == NEON_I8MM) return sweep_neon_i8mm;
#endif
#if defined(HAS_NEON_DOTPROD_KERNELS)
    if (isa == NEON_DOTPROD) return sweep_neon_dotprod;
#endif
#if defined(HAS_NEON_KERNELS)
    if (isa == NEON) return sweep_neon;
#endif
    (void)isa;
    return sweep_plain;
}

/* The kernels that run on an instruction set. */
Kernels kernels_of(int isa, int swin) {
#if defined(HAS_AMX_KERNELS)
    if (isa == AMX && !swin) return (Kernels){work_amx, load_tile_config, release_tiles};
#endif
#if defined(__x86_64__)
    if (isa == AVX512_VNNI || isa == AMX) return (Kernels){.work = swin ? swin_work_avx512_vnni : work_avx512_vnni};
    if (isa == AVX2) return (Kernels){.work = swin ? swin_work_avx2 : work_avx2};
#endif
#if defined(HAS_AVX_VNNI_KERNELS)
    if (isa == AVX_VNNI) return (Kernels){.work = swin ? swin_work_avx_vnni : work_avx_vnni};
#endif
#if defined(HAS_NEON_I8MM_KERNELS)
    if (isa == NEON_I8MM) return (Kernels){.work = swin ? swin_work_neon_i8mm : work_neon_i8mm};
#endif
#if defined(HAS_NEON_DOTPROD_KERNELS)
    if (isa == NEON_DOTPROD) return (Kernels){.work = swin ? swin_work_neon_dotprod : work_neon_dotprod};
#endif
#if defined(HAS_NEON_KERNELS)
    if (isa == NEON) return (Kernels){.work = swin ? swin_work_neon : work_neon};
#endif
    (void)isa;
    return (Kernels){.work = swin ? swin_work_plain : work_plain};
}
