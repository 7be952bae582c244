/* float32 AVX-512 with the products of a layer in bfloat16 on AMX tiles, from Sapphire Rapids on: 3540 GFLOP/s a core
 * against 241 of float32. */
#include "../fastbatch.h"
#if defined(FB_HAS_BF16)
#define TARGET amx
#define TABLE fb_amx_bf16
#define CPU_FEATURES "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,avx512bf16,amx-tile,amx-bf16"
#define REAL_IS_FLOAT 1
#define VEC_BYTES 64
#define TILE_ROWS 8
#define TILE_VECTORS 3
#define BF16_TILES 1
#include "begin.h"
#include "../kernels/table.inc"
#include "end.h"
#endif
