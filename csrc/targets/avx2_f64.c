/* x86-64-v3, from Haswell and Zen on. 6 x 2 vectors: 12 of 16 registers accumulate. */
#if defined(__x86_64__)
#define TARGET avx2
#define TABLE fb_avx2_f64
#define CPU_FEATURES "avx2,fma"
#define REAL_IS_FLOAT 0
#define VEC_BYTES 32
#define TILE_ROWS 6
#define TILE_VECTORS 2
#include "begin.h"
#include "../kernels/table.inc"
#include "end.h"
#endif
