/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", 2011): 128 random bits
   for each counter of four words, with no state to carry along. The same words on every ISA: it is all integers. */
#ifndef PN_RANDOM_H
#define PN_RANDOM_H

#include "vec.h"

enum { COUNTERS = 64, WORDS = 4 * COUNTERS };    /* as many as are made at once */

/* A key slot, read. */
typedef struct {
    uint32_t key[2];
    uint32_t step;
    uint64_t first_sample;
} random_key;

INLINE random_key read_key(const pn_call *c, int slot)
{
    const uint64_t *key = IN(uint64_t, slot);
    const int64_t s = STRIDE(slot, 0);
    /* The golden ratio in 64 bits sets neighbouring streams far apart. */
    uint64_t mixed = key[0] ^ (key[s] * 0x9E3779B97F4A7C15u);
    return (random_key){ { (uint32_t)mixed, (uint32_t)(mixed >> 32) }, (uint32_t)key[2 * s], key[3 * s] };
}

/* The words of counters (c0, c1, c2, c3), (c0 + 1, c1, c2, c3), ... in order, for the first `count` words at least,
   count <= WORDS. word[] holds WORDS of them. The plain loop over counters is what compilers make vectors of. */
static void philox(const uint32_t key[2], uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3,
                   int64_t count, uint32_t *restrict word)
{
    const int counters = (int)((count + 63) / 64 * 16);      /* whole vectors, on any ISA */
    for (int t = 0; t < counters; t++) {
        uint32_t x0 = c0 + (uint32_t)t, x1 = c1, x2 = c2, x3 = c3, k0 = key[0], k1 = key[1];
#pragma GCC unroll 10
        for (int round = 0; round < 10; round++) {
            uint64_t p0 = (uint64_t)0xD2511F53u * x0, p1 = (uint64_t)0xCD9E8D57u * x2;
            x0 = (uint32_t)(p1 >> 32) ^ x1 ^ k0;
            x1 = (uint32_t)p1;
            x2 = (uint32_t)(p0 >> 32) ^ x3 ^ k1;
            x3 = (uint32_t)p0;
            k0 += 0x9E3779B9u;
            k1 += 0xBB67AE85u;
        }
        word[4 * t] = x0;
        word[4 * t + 1] = x1;
        word[4 * t + 2] = x2;
        word[4 * t + 3] = x3;
    }
}

#endif
