/* Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", 2011): 128 random
   bits for each counter of four words, with no state to carry along. The same words on every ISA: it is all
   integers. */
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

/* A word in each 64-bit lane. What stands above a word is left there: a product reads the lower halves alone.
   */
typedef uint64_t words __attribute__((vector_size(PN_WIDTH), may_alias));
enum { AT_A_TIME = PN_WIDTH / sizeof(uint64_t) };

INLINE words word_product(words x, uint32_t y)
{
#if defined(__SSE2__) && PN_WIDTH == 64
    return (words)_mm512_mul_epu32((__m512i)x, _mm512_set1_epi64(y));
#elif defined(__SSE2__) && PN_WIDTH == 32
    return (words)_mm256_mul_epu32((__m256i)x, _mm256_set1_epi64x(y));
#elif defined(__SSE2__)
    return (words)_mm_mul_epu32((__m128i)x, _mm_set1_epi64x(y));
#else
    return (x & 0xFFFFFFFFu) * (uint64_t)y;
#endif
}

/* Random words, written two by two; every ISA here is little-endian. */
typedef union {
    uint64_t pair[WORDS / 2];
    uint32_t word[WORDS];
} random_words;

/* The words of counters (c0, c1, c2, c3), (c0 + 1, c1, c2, c3), ... in order, for the first `count` words at
   least, count <= WORDS. */
static void philox(const uint32_t key[2], uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3,
                   int64_t count, random_words *random)
{
    enum { CHAINS = 2 };                     /* rounds wait for products: two at a time fill the gaps */
    words lane, zero = {0};
    for (int l = 0; l < AT_A_TIME; l++) lane[l] = (uint64_t)l;
    words k0[10], k1[10];
    for (uint32_t round = 0; round < 10; round++) {
        k0[round] = zero + (key[0] + round * 0x9E3779B9u);
        k1[round] = zero + (key[1] + round * 0xBB67AE85u);
    }
    for (int64_t t = 0; 4 * t < count; t += CHAINS * AT_A_TIME) {
        words x0[CHAINS], x1[CHAINS], x2[CHAINS], x3[CHAINS];
        for (int i = 0; i < CHAINS; i++) {
            x0[i] = lane + (c0 + (uint64_t)(t + i * AT_A_TIME));
            x1[i] = zero + c1, x2[i] = zero + c2, x3[i] = zero + c3;
        }
#pragma GCC unroll 10
        for (int round = 0; round < 10; round++) {
#pragma GCC unroll 2
            for (int i = 0; i < CHAINS; i++) {
                words p0 = word_product(x0[i], 0xD2511F53u), p1 = word_product(x2[i], 0xCD9E8D57u);
                x0[i] = (p1 >> 32) ^ x1[i] ^ k0[round];
                x1[i] = p1;
                x2[i] = (p0 >> 32) ^ x3[i] ^ k1[round];
                x3[i] = p0;
            }
        }
        for (int i = 0; i < CHAINS; i++) {
            words low = (x0[i] & 0xFFFFFFFFu) | x1[i] << 32, high = (x2[i] & 0xFFFFFFFFu) | x3[i] << 32;
            for (int l = 0; l < AT_A_TIME; l++) {
                random->pair[2 * (t + i * AT_A_TIME + l)] = low[l];
                random->pair[2 * (t + i * AT_A_TIME + l) + 1] = high[l];
            }
        }
    }
}

#endif
