/* AArch64 with its 32 registers used: 8 x 2 vectors accumulate in 16 of them. */
#if defined(__aarch64__)
#define TARGET neon
#define TABLE fb_neon_f64
#define REAL_IS_FLOAT 0
#define VEC_BYTES 16
#define TILE_ROWS 8
#define TILE_VECTORS 2
#include "begin.h"
#include "../kernels/table.inc"
#include "end.h"
#endif
