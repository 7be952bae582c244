/* float32 AVX-512 with the products of a layer by vdpbf16ps: twice float32 on Zen 4 and later, half of it on Sapphire
 * Rapids. */
#include "../fastbatch.h"
#if defined(FB_HAS_BF16)
#define TARGET avx512bf16
#define TABLE fb_avx512bf16_bf16
#define CPU_FEATURES "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,avx512bf16"
#define REAL_IS_FLOAT 1
#define VEC_BYTES 64
#define TILE_ROWS 8
#define TILE_VECTORS 3
#define BF16_TILES 0
#include "begin.h"
#include "../kernels/table.inc"
#include "end.h"
#endif
