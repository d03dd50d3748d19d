/* The register tile of AMX: a square of c stays in four tiles while p runs. They multiply bfloat16: each float is made three of
   them, and six products of those are as exact as float's own.

   a = a1 + a2 + a3, each the bfloat16 nearest to what those before it leave: all 24 bits. Of the nine products of a's parts
   with b's, those about 2^-24 of the largest are left out. (Henry, Tang, Heinecke 2019, arXiv:1904.06376) */
#ifndef PN_GEMM_TILE_AMX_H
#define PN_GEMM_TILE_AMX_H

enum {
    PARTS = 3,                        /* of a float */
    SIDE = 16,                        /* rows of a tile, and its columns of 32 bits: a float, or a pair of bfloat16 */
    TILE_BYTES = SIDE * SIDE * 4,
    SQUARE = 2 * SIDE,                /* rows and columns of c that four tiles hold */
    TERMS = 2 * SIDE,                 /* values of p in a tile */
    TERMS_BYTES = 2 * PARTS * TILE_BYTES    /* of their parts, for SQUARE rows of a or columns of b: [part][half][tile] */
};

/* Parts of two vectors of floats, x in the lower half of each pair, y in the upper one. Nearest is a half more, cut off. */
INLINE void split(__m512 x, __m512 y, __m512i part[PARTS])
{
    const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32((int)0xffff0000);
#pragma GCC unroll 3
    for (int i = 0; i < PARTS; i++) {
        __m512i u = _mm512_castps_si512(x), v = _mm512_castps_si512(y);
        if (i < PARTS - 1) {
            u = _mm512_and_si512(_mm512_add_epi32(u, half), upper);
            v = _mm512_and_si512(_mm512_add_epi32(v, half), upper);
            x = _mm512_sub_ps(x, _mm512_castsi512_ps(u));
            y = _mm512_sub_ps(y, _mm512_castsi512_ps(v));
        }
        part[i] = _mm512_or_si512(_mm512_srli_epi32(u, 16), _mm512_and_si512(v, upper));
    }
}

/* The first columns of row p of x, if there is one; 0 beyond. */
INLINE __m512 row_of(const float *x, int64_t xp, int64_t p, int64_t k, int64_t columns)
{
    return p < k ? (__m512)vload_part(x + p * xp, columns) : _mm512_setzero_ps();
}

/* Parts of the first TERMS of k values of p, for the first SQUARE of n columns of x[p, j]; 0 beyond. Terms that are SIDE apart are a pair: so rows
   need not be interleaved. */
static void split_columns(const float *x, int64_t xp, int64_t k, int64_t n, char *to)
{
    for (int h = 0; h < 2; h++, n -= SIDE, x += SIDE, to += TILE_BYTES) {
        const int64_t columns = n <= 0 ? 0 : least(n, SIDE);
        for (int p = 0; p < SIDE; p++) {
            __m512i part[PARTS];
            split(row_of(x, xp, p, k, columns), row_of(x, xp, p + SIDE, k, columns), part);
#pragma GCC unroll 3
            for (int i = 0; i < PARTS; i++) _mm512_store_si512(to + 2 * i * TILE_BYTES + p * 64, part[i]);
        }
    }
}

/* A tile, its rows and columns of 32 bits exchanged. */
INLINE void transpose_tile(char *tile)
{
    __m512i x[SIDE], y[SIDE];
#pragma GCC unroll 16
    for (int i = 0; i < SIDE; i++) x[i] = _mm512_load_si512(tile + i * 64);
#pragma GCC unroll 8
    for (int i = 0; i < SIDE; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < SIDE; i += 4) {
        x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
        x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
        x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
        x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
        y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
        y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
        y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        _mm512_store_si512(tile + i * 64, _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88));
        _mm512_store_si512(tile + (i + 8) * 64, _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd));
    }
}

/* The same where these columns are rows of c. */
static void split_rows(const float *x, int64_t xp, int64_t k, int64_t n, char *to)
{
    split_columns(x, xp, k, n, to);
    for (int i = 0; i < 2 * PARTS; i++) transpose_tile(to + i * TILE_BYTES);
}

#define LOAD_A(part) _tile_loadd(4, a + 2 * (part) * TILE_BYTES, 64); _tile_loadd(5, a + (2 * (part) + 1) * TILE_BYTES, 64)
#define LOAD_B(part) _tile_loadd(6, b + 2 * (part) * TILE_BYTES, 64); _tile_loadd(7, b + (2 * (part) + 1) * TILE_BYTES, 64)
#define MULTIPLY                                                                      \
    _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7)

/* A square of c = a b: for each TERMS of p the products of parts, small ones first. */
static void square(int64_t terms, const char *a, const char *b, float *c, int64_t ci)
{
    const int64_t bytes = ci * sizeof(float);
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    for (; terms > 0; terms -= TERMS, a += TERMS_BYTES, b += TERMS_BYTES) {
        LOAD_A(0); LOAD_B(2); MULTIPLY;
        LOAD_B(1); MULTIPLY;
        LOAD_A(1); MULTIPLY;
        LOAD_B(0); MULTIPLY;
        LOAD_A(2); MULTIPLY;
        LOAD_A(0); MULTIPLY;
    }
    _tile_stored(0, c, bytes); _tile_stored(1, c + SIDE, bytes);
    _tile_stored(2, c + SIDE * ci, bytes); _tile_stored(3, c + SIDE * ci + SIDE, bytes);
}

/* The tiles of this thread: 16 rows of 64 bytes each. They are given back at the end, so that a change of threads need not
   save them. */
INLINE void take_tiles(void)
{
    const struct {
        uint8_t palette, start_row, none[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } form = { .palette = 1, .bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16} };
    _tile_loadconfig(&form);
}
INLINE void give_tiles(void) { _tile_release(); }

#endif
