/* Random numbers as kernels: each is a function of its key alone. */

DEFINE(random_next)
{
    uint64_t *counter = OUT(uint64_t, 0), *key = OUT(uint64_t, 1);
    for (int k = 0; k < 4; k++) key[k * STRIDE(1, 0)] = counter[k * STRIDE(0, 0)];
    counter[2 * STRIDE(0, 0)] += 1;
    return PN_OK;
}

/* In [low, high): a float32 takes 24 bits of one word, a float64 53 bits of two. */
DEFINE(uniform)
{
    enum { WORDS_EACH = sizeof(T) / sizeof(uint32_t), AT_ONCE = WORDS / WORDS_EACH };
    const int64_t n = c->dim[0], ys = STRIDE(1, 0);
    const random_key key = read_key(c, 0);
    T *y = OUT(T, 1);
    const T low = (T)c->attr[0], high = (T)c->attr[1], span = high - low;
    const T below = PN_TYPE == 32 ? (T)nextafterf((float)high, -INFINITY) : (T)nextafter(high, -INFINITY);
    random_words random;
    T value[AT_ONCE];
    for (int64_t j = 0; j < n; j += AT_ONCE) {
        const int64_t count = n - j < AT_ONCE ? n - j : AT_ONCE;
        const uint64_t counter = (uint64_t)j * WORDS_EACH / 4, high_word = counter >> 32;
        /* counter is a multiple of COUNTERS: what philox adds to its lower half never carries. */
        philox(key.key, (uint32_t)counter, (uint32_t)high_word, 0, key.step, count * WORDS_EACH, &random);
        for (int64_t t = 0; t < count; t++) {
#if PN_TYPE == 32
            T u = (T)(int32_t)(random.word[t] >> 8) * (T)0x1p-24;
#else
            T top = (T)(int32_t)(random.word[2 * t] >> 5), rest = (T)(int32_t)(random.word[2 * t + 1] >> 6);
            T u = (top * (T)0x1p26 + rest) * (T)0x1p-53;
#endif
            T x = low + u * span;
            value[t] = x >= high && high > low ? below : x;         /* rounding may reach high */
        }
        for (int64_t t = 0; t < count; t++) y[(j + t) * ys] = value[t];
    }
    return PN_OK;
}

INLINE void drop(T *y, int64_t ys, const T *x, int64_t xs, const uint32_t *word, int64_t n,
                 uint32_t bar, T scale)
{
    for (int64_t j = 0; j < n; j++) {
        T kept = x[j * xs] * scale;
        y[j * ys] = word[j] >> 8 >= bar ? kept : 0;
    }
}

/* Row i is sample first_sample + i, so a mask does not depend on how samples are put into batches. */
DEFINE(dropout)
{
    const int64_t m = c->dim[0], n = c->dim[1], xs = STRIDE(0, 1), ys = STRIDE(2, 1);
    const random_key key = read_key(c, 1);
    const double p = c->attr[0];
    const uint32_t bar = (uint32_t)ceil(p * 0x1p24);        /* (word >> 8) 2^-24 >= p, in integers */
    const T scale = (T)(1 / (1 - p));
    random_words random;
    for (int64_t i = 0; i < m; i++) {
        const uint64_t sample = key.first_sample + (uint64_t)i;
        for (int64_t j = 0; j < n; j += WORDS) {
            const int64_t count = n - j < WORDS ? n - j : WORDS;
            const T *x = IN(T, 0) + i * STRIDE(0, 0) + j * xs;
            T *y = OUT(T, 2) + i * STRIDE(2, 0) + j * ys;
            philox(key.key, (uint32_t)(j / 4), (uint32_t)sample, (uint32_t)(sample >> 32), key.step, count,
                   &random);
            if (xs == 1 && ys == 1) drop(y, 1, x, 1, random.word, count, bar, scale);
            else drop(y, ys, x, xs, random.word, count, bar, scale);
        }
    }
    return PN_OK;
}
