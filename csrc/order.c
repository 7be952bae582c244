/* Shuffles as a function of (seed, epoch): 2 Philox words, one multiplication and one swap per row. */
#include "fastbatch.h"
#include "simd/philox.h"

void fb_permutation(int64_t n, uint64_t seed, uint32_t epoch, int64_t begin, int64_t end, int64_t *order)
{
    uint64_t word[2] = {0, 0};
    for (int64_t draw = begin; draw < end; draw++) {
        const int64_t i = n - 1 - draw;
        if (draw % 2 == 0) {
            uint32_t w[4];
            philox((uint32_t)(draw / 2), (uint32_t)(draw / 2 >> 32), PHILOX_SHUFFLE << 16, epoch, seed, w);
            word[0] = w[0] | (uint64_t)w[1] << 32;
            word[1] = w[2] | (uint64_t)w[3] << 32;
        }
        const int64_t j = (int64_t)((unsigned __int128)word[draw % 2] * (uint64_t)(i + 1) >> 64), held = order[i];
        order[i] = order[j];
        order[j] = held;
    }
}
