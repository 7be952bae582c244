/* Shuffles as a function of (seed, epoch): one random word, one multiplication and one swap per row. */
#include "fastbatch.h"

void fb_permutation(const fb_kernels *kernels, int64_t n, uint64_t seed, uint32_t epoch, int64_t begin, int64_t end,
                    int64_t *order)
{
    enum { DRAWS = 128 };
    uint64_t words[DRAWS];
    for (int64_t first = begin; first < end; first += DRAWS) {
        const int64_t draws = end - first < DRAWS ? end - first : DRAWS;
        kernels->philox((uint64_t)first / 2, PHILOX_SHUFFLE << 16 | (uint64_t)epoch << 32, seed, (draws + 1) / 2, words);
        for (int64_t d = 0; d < draws; d++) {
            const int64_t i = n - 1 - (first + d), held = order[i];
            const int64_t j = (int64_t)((unsigned __int128)words[d] * (uint64_t)(i + 1) >> 64);
            order[i] = order[j];
            order[j] = held;
        }
    }
}
