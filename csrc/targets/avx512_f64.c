/* x86-64-v4, from Skylake-X and Zen 4 on. 8 x 3 vectors: 24 of 32 registers accumulate. */
#if defined(__x86_64__)
#define TARGET avx512
#define TABLE fb_avx512_f64
#define CPU_FEATURES "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"
#define REAL_IS_FLOAT 0
#define VEC_BYTES 64
#define TILE_ROWS 8
#define TILE_VECTORS 3
#include "begin.h"
#include "../kernels/table.inc"
#include "end.h"
#endif
