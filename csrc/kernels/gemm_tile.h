/* The register tile: TILE_ROWS rows of TILE_VECS vectors of c stay in registers while k runs. Everything that
   multiplies matrices ends here, so that every element of every product is the same chain of vfma along k. */
#ifndef PN_GEMM_TILE_H
#define PN_GEMM_TILE_H

/* Accumulators, a row of b and one broadcast must fit into the vector registers: 28 + 2 + 1 of AVX-512's 32,
   12 + 2 + 1 of AVX2's 16, 24 + 3 + 1 of NEON's 32, 8 + 2 + 1 of SSE2's 16 (which needs one more for the
   product). A product of at most TILE_FEW rows waits for its sums unless tiles are TILE_WIDE vectors wide, one of a
   single vector of columns unless they are TILE_TALL. */
#if defined(__AVX512F__) && PN_WIDTH == 64
enum { TILE_ROWS = 14, TILE_TALL = 14, TILE_VECS = 2, TILE_FEW = 4, TILE_WIDE = 4 };
#define EACH_TILE(X) ROWS_14(X, 1) ROWS_14(X, 2) ROWS_4(X, 4)
#elif defined(__ARM_NEON)
enum { TILE_ROWS = 8, TILE_TALL = 14, TILE_VECS = 3, TILE_FEW = 4, TILE_WIDE = 4 };
#define EACH_TILE(X) ROWS_14(X, 1) ROWS_8(X, 2) ROWS_8(X, 3) ROWS_4(X, 4)
#elif PN_WIDTH == 32
enum { TILE_ROWS = 6, TILE_TALL = 12, TILE_VECS = 2, TILE_FEW = 2, TILE_WIDE = 4 };
#define EACH_TILE(X) ROWS_12(X, 1) ROWS_6(X, 2) ROWS_2(X, 4)
#else
enum { TILE_ROWS = 4, TILE_TALL = 4, TILE_VECS = 2, TILE_FEW = 2, TILE_WIDE = 4 };
#define EACH_TILE(X) ROWS_4(X, 1) ROWS_4(X, 2) ROWS_2(X, 4)
#endif

/* For arrays of vectors that are to live in registers: GCC keeps those of vec, which may alias, in memory. */
typedef T reg __attribute__((vector_size(PN_WIDTH)));

#define ROWS_2(X, vecs)  X(1, vecs) X(2, vecs)
#define ROWS_4(X, vecs)  ROWS_2(X, vecs) X(3, vecs) X(4, vecs)
#define ROWS_6(X, vecs)  ROWS_4(X, vecs) X(5, vecs) X(6, vecs)
#define ROWS_8(X, vecs)  ROWS_6(X, vecs) X(7, vecs) X(8, vecs)
#define ROWS_12(X, vecs) ROWS_8(X, vecs) X(9, vecs) X(10, vecs) X(11, vecs) X(12, vecs)
#define ROWS_14(X, vecs) ROWS_12(X, vecs) X(13, vecs) X(14, vecs)

/* c[i * ci + j] = sum over p of a[i * ai + p * ap] * b[p * bp + j], or += that sum if `add`: for `rows`
   values of i and `vecs` whole vectors of j. The caller sees to edges. rows and vecs are constants, so
   that `sum` is registers. Rows are addressed from every third one, which takes x86 one pointer and the
   scaled strides ai, 2 ai for three rows. */
INLINE void tile(int rows, int vecs, int64_t k, const T *a, int64_t ai, int64_t ap, const T *b, int64_t bp,
                 T *c, int64_t ci, int add)
{
    reg sum[TILE_TALL][TILE_WIDE], x[TILE_WIDE];
    const T *third[(TILE_TALL + 2) / 3];

#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        if (i % 3 == 0) third[i / 3] = a + i * ai;
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++) sum[i][v] = vset(0);
    }
    for (int64_t p = 0; p < k; p++) {
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++) x[v] = vload(b + v * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            vec s = vset(third[i / 3][i % 3 * ai]);
#pragma GCC unroll 4
            for (int v = 0; v < vecs; v++) sum[i][v] = vfma(s, x[v], sum[i][v]);
            if (i % 3 == 2 || i == rows - 1) third[i / 3] += ap;
        }
        b += bp;
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++) {
            T *to = c + i * ci + v * LANES;
            if (add) sum[i][v] = vload(to) + sum[i][v];
            vstore(to, sum[i][v]);
        }
    }
}

typedef void (*tile_function)(int64_t k, const T *a, int64_t ai, int64_t ap, const T *b, int64_t bp,
                              T *c, int64_t ci, int add);

#define TILE_FUNCTION(rows, vecs)                                                                           \
    static void tile_##rows##x##vecs(int64_t k, const T *a, int64_t ai, int64_t ap, const T *b, int64_t bp, \
                                     T *c, int64_t ci, int add)                                             \
    {                                                                                                       \
        tile(rows, vecs, k, a, ai, ap, b, bp, c, ci, add);                                                  \
    }
EACH_TILE(TILE_FUNCTION)
#undef TILE_FUNCTION

#define TILE_ENTRY(rows, vecs) [rows][vecs] = tile_##rows##x##vecs,
static const tile_function tiles[TILE_TALL + 1][TILE_WIDE + 1] = { EACH_TILE(TILE_ENTRY) };
#undef TILE_ENTRY

/* Rows of the next tile, of at most `most`, when `left` remain: none is so low that it only waits for its own
   sums. */
INLINE int64_t tile_rows(int64_t left, int64_t most)
{
    if (left <= most) return left;
    return left < most + most / 3 ? (left + 1) / 2 : most;
}

/* Columns of the next panel when `left` remain, in a product of m rows: whole vectors while there are any. */
INLINE int64_t tile_columns(int64_t left, int64_t m)
{
    if (m <= TILE_FEW && left >= TILE_WIDE * LANES) return TILE_WIDE * LANES;
    if (left >= TILE_VECS * LANES) return TILE_VECS * LANES;
    return left > LANES ? left / LANES * LANES : left;
}

#endif
