/* What every CPU of the platform has: SSE2 on x86-64, NEON on AArch64. 4 x 2 vectors: 8 of 16 registers accumulate. */
#define TARGET baseline
#define TABLE fb_baseline_f64
#define REAL_IS_FLOAT 0
#define VEC_BYTES 16
#define TILE_ROWS 4
#define TILE_VECTORS 2
#include "begin.h"
#include "../kernels/table.inc"
#include "end.h"
