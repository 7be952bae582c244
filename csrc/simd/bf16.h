/* bfloat16 in words: float32 lanes in pairs, and the product of blocks of 16 x 16 words.
 *
 * multiply: C = init + A B for 1 or 2 stripes of A and of B, `blocks` blocks along k, the second stripe `next` elements
 * behind the first. c is 16 x 16 per pair of stripes and written whole; init may be NULL, its rows are init_row apart
 * (0: one row for all). Order within a block: the sum of the even k, the sum of the odd k, both to C (AMX); odd k, even
 * k, pair by pair (AVX-512). Both fuse, round to nearest even and take subnormals for zero, whatever the mode. */

/* Rounded to nearest even: `lower` to elements 0 to 15, `upper` to the others. */
INLINE vec to_halves(vec lower, vec upper) { return (vec)_mm512_cvtne2ps_pbh((__m512)upper, (__m512)lower); }
/* Element i of the lower half and of the upper half become word i. */
INLINE vec interleave(vec halves)
{
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                           5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (vec)_mm512_permutexvar_epi16(order, (__m512i)halves);
}

#if BF16_TILES
/* All eight tiles of 16 rows of 64 bytes. The configuration is a thread's own; released after use, since what it holds
 * would be saved and restored with every switch of threads. */
INLINE void products_begin(void)
{
    static const struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } tiles_ __attribute__((aligned(64))) = {
        1, 0, {0}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
    _tile_loadconfig(&tiles_);
}
INLINE void products_end(void) { _tile_release(); }

/* The compiler does not see what tile instructions read and write. */
#define MEMORY_BARRIER __asm__ volatile("" ::: "memory")
#define TILE_INIT(t, row, column)                                                                                      \
    {                                                                                                                  \
        if (init) _tile_loadd(t, init + row * 16 * init_row + column * 16, init_row * 4);                              \
        else _tile_zero(t);                                                                                            \
    }
INLINE void multiply_body(const int rows, const int columns, int64_t blocks, const real *a, int64_t a_next,
                          const real *b, int64_t b_next, const real *init, int64_t init_row, real *c, int64_t c_row)
{
    MEMORY_BARRIER;
    TILE_INIT(0, 0, 0)
    if (columns == 2) TILE_INIT(1, 0, 1)
    if (rows == 2) TILE_INIT(2, 1, 0)
    if (rows == 2 && columns == 2) TILE_INIT(3, 1, 1)
    for (int64_t k = 0; k < blocks; k++, a += 256, b += 256) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (columns == 2) _tile_loadd(7, b + b_next, 64);
        if (columns == 2) _tile_dpbf16ps(1, 4, 7);
        if (rows == 2) _tile_loadd(5, a + a_next, 64);
        if (rows == 2) _tile_dpbf16ps(2, 5, 6);
        if (rows == 2 && columns == 2) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, c_row * 4);
    if (columns == 2) _tile_stored(1, c + 16, c_row * 4);
    if (rows == 2) _tile_stored(2, c + 16 * c_row, c_row * 4);
    if (rows == 2 && columns == 2) _tile_stored(3, c + 16 * c_row + 16, c_row * 4);
    MEMORY_BARRIER;
}
#else
INLINE void products_begin(void) {}
INLINE void products_end(void) {}

/* 8 rows at a time: 16 of 32 registers accumulate. */
INLINE void multiply_body(const int rows, const int columns, int64_t blocks, const real *a, int64_t a_next,
                          const real *b, int64_t b_next, const real *init, int64_t init_row, real *c, int64_t c_row)
{
    for (int i = 0; i < 16 * rows; i += 8) {
        const real *ai = a + i / 16 * a_next + i % 16 * 16, *bk = b;
        const real *from = init ? init + i * init_row : NULL;
        __m512 sum[8][2];
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++) {
            sum[r][0] = init ? (__m512)load(from + r * init_row) : _mm512_setzero_ps();
            sum[r][1] = init && columns == 2 ? (__m512)load(from + r * init_row + 16) : _mm512_setzero_ps();
        }
        for (int64_t k = 0; k < blocks; k++, ai += 256, bk += 256)
            for (int p = 0; p < 16; p++) {
                const __m512bh b0 = (__m512bh)load(bk + 16 * p);
                const __m512bh b1 = columns == 2 ? (__m512bh)load(bk + b_next + 16 * p) : b0;
#pragma GCC unroll 8
                for (int r = 0; r < 8; r++) {
                    const __m512bh av = (__m512bh)_mm512_set1_ps(ai[16 * r + p]);
                    sum[r][0] = _mm512_dpbf16_ps(sum[r][0], av, b0);
                    if (columns == 2) sum[r][1] = _mm512_dpbf16_ps(sum[r][1], av, b1);
                }
            }
#pragma GCC unroll 8
        for (int r = 0; r < 8; r++) {
            store(c + (i + r) * c_row, (vec)sum[r][0]);
            if (columns == 2) store(c + (i + r) * c_row + 16, (vec)sum[r][1]);
        }
    }
}
#endif

static void multiply(int rows, int columns, int64_t blocks, const real *a, int64_t a_next, const real *b, int64_t b_next,
                     const real *init, int64_t init_row, real *c, int64_t c_row)
{
    if (rows == 2 && columns == 2) multiply_body(2, 2, blocks, a, a_next, b, b_next, init, init_row, c, c_row);
    else if (rows == 2) multiply_body(2, 1, blocks, a, a_next, b, b_next, init, init_row, c, c_row);
    else if (columns == 2) multiply_body(1, 2, blocks, a, a_next, b, b_next, init, init_row, c, c_row);
    else multiply_body(1, 1, blocks, a, a_next, b, b_next, init, init_row, c, c_row);
}
