/* The register tile: TILE_ROWS rows of TILE_VECS vectors of c stay in registers while k runs. Everything that
   multiplies matrices ends here, so that every element of every product is the same chain of vfma along k. */
#ifndef PN_GEMM_TILE_H
#define PN_GEMM_TILE_H

/* Accumulators, a row of b and one broadcast must fit into the vector registers: 28 + 2 + 1 of AVX-512's 32,
   12 + 2 + 1 of AVX2's 16, 24 + 3 + 1 of NEON's 32, 8 + 2 + 1 of SSE2's 16 (which needs one more for the
   product). A product of at most TILE_FEW rows waits for its sums unless tiles are TILE_WIDE vectors wide, one of a
   single vector of columns unless they are TILE_TALL. The loop over k takes TILE_STEP terms at a time, or TILE_TERMS
   where a and b are both packed; for AVX2 that is measured, on Zen 3. */
#if defined(__AVX512F__) && PN_WIDTH == 64
enum { TILE_ROWS = 14, TILE_TALL = 14, TILE_VECS = 2, TILE_FEW = 4, TILE_WIDE = 4, TILE_TERMS = 1, TILE_STEP = 1 };
#define EACH_TILE(X) ROWS_14(X, 1) ROWS_14(X, 2) ROWS_4(X, 4)
#define EACH_PACKED_TILE(X) ROWS_14(X, 1) ROWS_14(X, 2)
#elif defined(__ARM_NEON)
enum { TILE_ROWS = 8, TILE_TALL = 14, TILE_VECS = 3, TILE_FEW = 4, TILE_WIDE = 4, TILE_TERMS = 1, TILE_STEP = 1 };
#define EACH_TILE(X) ROWS_14(X, 1) ROWS_8(X, 2) ROWS_8(X, 3) ROWS_4(X, 4)
#define EACH_PACKED_TILE(X) ROWS_8(X, 1) ROWS_8(X, 2) ROWS_8(X, 3)
#elif PN_WIDTH == 32
enum { TILE_ROWS = 6, TILE_TALL = 12, TILE_VECS = 2, TILE_FEW = 2, TILE_WIDE = 4, TILE_TERMS = 8, TILE_STEP = 2 };
#define EACH_TILE(X) ROWS_12(X, 1) ROWS_6(X, 2) ROWS_2(X, 4)
#define EACH_PACKED_TILE(X) ROWS_6(X, 1) ROWS_6(X, 2)
#else
enum { TILE_ROWS = 4, TILE_TALL = 4, TILE_VECS = 2, TILE_FEW = 2, TILE_WIDE = 4, TILE_TERMS = 1, TILE_STEP = 1 };
#define EACH_TILE(X) ROWS_4(X, 1) ROWS_4(X, 2) ROWS_2(X, 4)
#define EACH_PACKED_TILE(X) ROWS_4(X, 1) ROWS_4(X, 2)
#endif

#define ROWS_2(X, vecs)  X(1, vecs) X(2, vecs)
#define ROWS_4(X, vecs)  ROWS_2(X, vecs) X(3, vecs) X(4, vecs)
#define ROWS_6(X, vecs)  ROWS_4(X, vecs) X(5, vecs) X(6, vecs)
#define ROWS_8(X, vecs)  ROWS_6(X, vecs) X(7, vecs) X(8, vecs)
#define ROWS_12(X, vecs) ROWS_8(X, vecs) X(9, vecs) X(10, vecs) X(11, vecs) X(12, vecs)
#define ROWS_14(X, vecs) ROWS_12(X, vecs) X(13, vecs) X(14, vecs)

/* sum + s * x, as vfma. Left to itself GCC moves accumulators from register to register where terms are unrolled, and
   one of them to memory and back: a tenth of the time with 16 registers. */
INLINE reg tile_fma(vec s, reg x, reg sum)
{
#if defined(__FMA__) && PN_WIDTH == 32 && PN_TYPE == 32
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(s), "x"(x));
    return sum;
#elif defined(__FMA__) && PN_WIDTH == 32
    __asm__("vfmadd231pd %2, %1, %0" : "+x"(sum) : "x"(s), "x"(x));
    return sum;
#else
    return vfma(s, x, sum);
#endif
}

/* The end of a tile: c = the sums, or c += them; and where that completes c, what comes next while it is in registers:
   + a bias for each column, relu, or relu's derivative at the values of `gate`, which lie as c does. */
enum { END_ADD = 1, END_BIAS = 2, END_RELU = 4, END_GATE = 8 };
typedef struct {
    int what;
    const T *bias, *gate;
} tile_ending;

/* For each sum of a tile, whose place in c is `at`, and likewise in what lies as c does. Where rows begin is worked out one after
   the other: GCC would have all of them at once, in memory. The loops are unrolled, as are those below. */
#define EACH_SUM(origin, ...)                                          \
    do {                                                               \
        const T *row = origin;                                         \
        _Pragma("GCC unroll 16") for (int i = 0; i < rows; i++) {      \
            _Pragma("GCC unroll 4") for (int v = 0; v < vecs; v++) {   \
                const T *at = row + v * LANES;                         \
                __VA_ARGS__;                                           \
            }                                                          \
            row += ci;                                                 \
            __asm__("" : "+r"(row));                                   \
        }                                                              \
    } while (0)

INLINE void tile_end(int rows, int vecs, reg sum[][TILE_WIDE], T *c, int64_t ci, const tile_ending *end)
{
    if (end->what) {
        const params none = vparams((scalars){{0}});
        if (end->what & END_ADD) EACH_SUM(c, sum[i][v] = vload(at) + sum[i][v]);
        if (end->what & END_BIAS) {
            reg bias[TILE_WIDE];
#pragma GCC unroll 4
            for (int v = 0; v < vecs; v++) bias[v] = vload(end->bias + v * LANES);
            EACH_SUM(c, (void)at, sum[i][v] += bias[v]);
        }
        if (end->what & END_RELU) EACH_SUM(c, (void)at, sum[i][v] = value_relu(sum[i][v], none));
        if (end->what & END_GATE) EACH_SUM(end->gate, sum[i][v] = slope_relu(sum[i][v], vload(at), none));
    }
    EACH_SUM(c, vstore((T *)at, sum[i][v]));
}
#undef EACH_SUM

/* The loop over k. Rows are addressed from every third one, which takes x86 one pointer and the scaled strides ai, 2 ai
   for three rows. */
INLINE void tile_terms(int rows, int vecs, int64_t k, const T **third, int64_t ai, int64_t ap, const T *b, int64_t bp,
                       reg sum[][TILE_WIDE])
{
    reg x[TILE_WIDE];
    for (; k > 0; k -= TILE_STEP) {
#pragma GCC unroll 2
        for (int p = 0; p < TILE_STEP; p++, b += bp) {
            if (p > 0 && p >= k) return;
#pragma GCC unroll 4
            for (int v = 0; v < vecs; v++) x[v] = vload(b + v * LANES);
#pragma GCC unroll 16
            for (int i = 0; i < rows; i++) {
                vec s = vset(third[i / 3][i % 3 * ai + (ap == 1 ? p : 0)]);
#pragma GCC unroll 4
                for (int v = 0; v < vecs; v++) sum[i][v] = tile_fma(s, x[v], sum[i][v]);
                if (ap != 1 && (i % 3 == 2 || i == rows - 1)) third[i / 3] += ap;
            }
        }
#pragma GCC unroll 5
        for (int i = 0; i < rows; i += 3) third[i / 3] += ap == 1 ? TILE_STEP : 0;
    }
}

/* c[i * ci + j] = sum over p of a[i * ai + p * ap] * b[p * bp + j], ended as `end` says: for `rows` values of i
   and `vecs` whole vectors of j. The caller sees to edges. rows and vecs are constants, so that `sum` is
   registers. */
INLINE void tile(int rows, int vecs, int64_t k, const T *a, int64_t ai, int64_t ap, const T *b, int64_t bp,
                 T *c, int64_t ci, const tile_ending *end)
{
    reg sum[TILE_TALL][TILE_WIDE];
    const T *third[(TILE_TALL + 2) / 3];

#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        if (i % 3 == 0) third[i / 3] = a + i * ai;
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++) sum[i][v] = vset(0);
    }
    if (ap == 1) tile_terms(rows, vecs, k, third, ai, 1, b, bp, sum);
    else tile_terms(rows, vecs, k, third, ai, ap, b, bp, sum);
    tile_end(rows, vecs, sum, c, ci, end);
}

/* The next `terms` terms of a tile of packed a and b. The barrier keeps loads of one term from moving into another, for
   which there are no registers. */
INLINE void packed_terms(int terms, int rows, int vecs, const T *a, const T *b, reg sum[][TILE_WIDE])
{
    reg x[TILE_VECS];
#pragma GCC unroll 8
    for (int p = 0; p < terms; p++, a += TILE_ROWS, b += vecs * LANES) {
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++) x[v] = vload(b + v * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            vec s = vset(a[i]);
#pragma GCC unroll 4
            for (int v = 0; v < vecs; v++) sum[i][v] = tile_fma(s, x[v], sum[i][v]);
        }
        if (terms > 1) __asm__ volatile("" ::: "memory");
    }
}

/* The same where a and b are both packed: rows of TILE_ROWS and of `vecs` vectors. c, which is used for the first time
   in a while, is on its way before the sums are complete. */
INLINE void packed_tile(int rows, int vecs, int64_t k, const T *a, const T *b, T *c, int64_t ci, const tile_ending *end)
{
    reg sum[TILE_TALL][TILE_WIDE];

#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        for (int v = 0; v < vecs; v += 64 / PN_WIDTH) __builtin_prefetch(c + i * ci + v * LANES, 1, 3);
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++) sum[i][v] = vset(0);
    }
    for (; k >= TILE_TERMS; k -= TILE_TERMS, a += TILE_TERMS * TILE_ROWS, b += TILE_TERMS * vecs * LANES)
        packed_terms(TILE_TERMS, rows, vecs, a, b, sum);
    for (; k > 0; k--, a += TILE_ROWS, b += vecs * LANES) packed_terms(1, rows, vecs, a, b, sum);
    tile_end(rows, vecs, sum, c, ci, end);
}

typedef void (*tile_function)(int64_t k, const T *a, int64_t ai, int64_t ap, const T *b, int64_t bp,
                              T *c, int64_t ci, const tile_ending *end);

#define TILE_FUNCTION(rows, vecs)                                                                           \
    static void tile_##rows##x##vecs(int64_t k, const T *a, int64_t ai, int64_t ap, const T *b, int64_t bp, \
                                     T *c, int64_t ci, const tile_ending *end)                              \
    {                                                                                                       \
        tile(rows, vecs, k, a, ai, ap, b, bp, c, ci, end);                                                  \
    }
EACH_TILE(TILE_FUNCTION)
#undef TILE_FUNCTION

#define TILE_ENTRY(rows, vecs) [rows][vecs] = tile_##rows##x##vecs,
static const tile_function tiles[TILE_TALL + 1][TILE_WIDE + 1] = { EACH_TILE(TILE_ENTRY) };
#undef TILE_ENTRY

typedef void (*packed_tile_function)(int64_t k, const T *a, const T *b, T *c, int64_t ci, const tile_ending *end);

#define TILE_FUNCTION(rows, vecs)                                                                                        \
    static void packed_tile_##rows##x##vecs(int64_t k, const T *a, const T *b, T *c, int64_t ci, const tile_ending *end) \
    {                                                                                                                    \
        packed_tile(rows, vecs, k, a, b, c, ci, end);                                                                    \
    }
EACH_PACKED_TILE(TILE_FUNCTION)
#undef TILE_FUNCTION

#define TILE_ENTRY(rows, vecs) [rows][vecs] = packed_tile_##rows##x##vecs,
static const packed_tile_function packed_tiles[TILE_ROWS + 1][TILE_VECS + 1] = { EACH_PACKED_TILE(TILE_ENTRY) };
#undef TILE_ENTRY

/* Rows of the next tile, of at most `most`, when `left` remain: none is so low that it only waits for its own
   sums. */
INLINE int64_t tile_rows(int64_t left, int64_t most)
{
    if (left <= most) return left;
    return left <= most + most / 3 ? (left + 1) / 2 : most;
}

/* Columns of the next panel when `left` remain, in a product of m rows: whole vectors while there are any. */
INLINE int64_t tile_columns(int64_t left, int64_t m)
{
    if (m <= TILE_FEW && left >= TILE_WIDE * LANES) return TILE_WIDE * LANES;
    if (left >= TILE_VECS * LANES) return TILE_VECS * LANES;
    return left > LANES ? left / LANES * LANES : left;
}

#endif
