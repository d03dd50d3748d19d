/* Panels: a few rows or columns of a matrix, copied so that the register tile finds them side by side. */
#ifndef PN_PACK_H
#define PN_PACK_H

/* The n first lanes, or all of them if n is more. */
INLINE vec vload_most(const T *p, int64_t n)
{
    if (n >= LANES) return vload(p);
    return vload_part(p, n);
}
INLINE void vstore_most(T *p, vec x, int64_t n)
{
    if (n >= LANES) vstore(p, x);
    else vstore_part(p, x, n);
}

/* SHUFFLE(a, b, i0, i1, ...) takes lanes from a (0 .. LANES-1) and b (LANES .. 2 LANES-1). */
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vint){__VA_ARGS__})
#endif

/* ZIP interleaves the lower (upper) elements of a and b, each 128 bits by themselves. */
enum { LANE = 16 / sizeof(T) };    /* elements of 128 bits */
#if PN_WIDTH == 16 && PN_TYPE == 32
#define ZIP_LOW(a, b)   SHUFFLE(a, b, 0, 4, 1, 5)
#define ZIP_HIGH(a, b)  SHUFFLE(a, b, 2, 6, 3, 7)
#elif PN_WIDTH == 16
#define ZIP_LOW(a, b)   SHUFFLE(a, b, 0, 2)
#define ZIP_HIGH(a, b)  SHUFFLE(a, b, 1, 3)
#elif PN_WIDTH == 32 && PN_TYPE == 32
#define ZIP_LOW(a, b)   SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13)
#define ZIP_HIGH(a, b)  SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15)
#elif PN_WIDTH == 32
#define ZIP_LOW(a, b)   SHUFFLE(a, b, 0, 4, 2, 6)
#define ZIP_HIGH(a, b)  SHUFFLE(a, b, 1, 5, 3, 7)
#elif PN_TYPE == 32
#define ZIP_LOW(a, b)   SHUFFLE(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define ZIP_HIGH(a, b)  SHUFFLE(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#else
#define ZIP_LOW(a, b)   SHUFFLE(a, b, 0, 8, 2, 10, 4, 12, 6, 14)
#define ZIP_HIGH(a, b)  SHUFFLE(a, b, 1, 9, 3, 11, 5, 13, 7, 15)
#endif

/* A vector whose lanes of 128 bits come from lane[0] + at, lane[1] + at, ... On x86 each is put in place as it is
   loaded, which leaves the shuffle units alone. */
enum { WIDE = LANES / LANE };      /* lanes of 128 bits in a vector */
INLINE reg vload_lanes(const T *const *lane, int64_t at)
{
#if defined(__AVX512F__) && PN_WIDTH == 64
    __m512 y = _mm512_castps128_ps512(_mm_loadu_ps((const float *)(lane[0] + at)));
    y = _mm512_insertf32x4(y, _mm_loadu_ps((const float *)(lane[1] + at)), 1);
    y = _mm512_insertf32x4(y, _mm_loadu_ps((const float *)(lane[2] + at)), 2);
    return (reg)_mm512_insertf32x4(y, _mm_loadu_ps((const float *)(lane[3] + at)), 3);
#elif defined(__AVX2__) && PN_WIDTH == 32
    return (reg)_mm256_loadu2_m128((const float *)(lane[1] + at), (const float *)(lane[0] + at));
#else
    reg y;
    for (int i = 0; i < WIDE; i++) memcpy((T *)&y + i * LANE, lane[i] + at, 16);
    return y;
#endif
}

/* Transposes LANE rows in each 128 bits, by perfect shuffles. */
INLINE void transpose_lanes(reg *y)
{
#pragma GCC unroll 2
    for (int size = 1; size < LANE; size *= 2) {
        reg z[LANE];
#pragma GCC unroll 2
        for (int i = 0; i < LANE / 2; i++) {
            z[2 * i] = ZIP_LOW(y[i], y[i + LANE / 2]);
            z[2 * i + 1] = ZIP_HIGH(y[i], y[i + LANE / 2]);
        }
#pragma GCC unroll 4
        for (int i = 0; i < LANE; i++) y[i] = z[i];
    }
}

/* Element p of y[q] is element q of row p, for LANES rows xp elements apart and LANE columns. lane[i] is row i * LANE:
   rows so far apart share a vector from the start. */
INLINE void load_transposed(reg *y, const T *const *lane, int64_t xp)
{
#pragma GCC unroll 4
    for (int p = 0; p < LANE; p++) y[p] = vload_lanes(lane, p * xp);
    transpose_lanes(y);
}

/* The same of rows from x on, where only so many rows and columns may be there; 0 beyond. */
INLINE void load_transposed_most(reg *y, const T *x, int64_t xp, int64_t rows, int64_t columns)
{
    T square[LANES * LANE] = {0};
    const T *lane[WIDE];
    if (rows < LANES || columns < LANE) {
        for (int64_t p = 0; p < least(rows, LANES); p++) {
            if (columns >= LANE) memcpy(square + p * LANE, x + p * xp, 16);
            else for (int64_t q = 0; q < columns; q++) square[p * LANE + q] = x[p * xp + q];
        }
        x = square, xp = LANE;
    }
#pragma GCC unroll 4
    for (int i = 0; i < WIDE; i++) lane[i] = x + i * LANE * xp;
    load_transposed(y, lane, xp);
}

/* The same of rows that may be fewer: the last of them stands for those that are not there. */
typedef const T *lanes_of_rows[LANE][WIDE];
INLINE void find_rows(lanes_of_rows lane, const T *x, int64_t xp, int64_t rows)
{
    for (int p = 0; p < LANE; p++)
        for (int i = 0; i < WIDE; i++) lane[p][i] = x + least(i * LANE + p, rows - 1) * xp;
}
INLINE void load_found(reg *y, lanes_of_rows lane, int64_t at)
{
#pragma GCC unroll 4
    for (int p = 0; p < LANE; p++) y[p] = vload_lanes(lane[p], at);
    transpose_lanes(y);
}

/* panel[p * width + j] = x[p * xp + j * xj] for p < k and j < n, and anything finite or not up to the next whole vector of j.
   width may be less than these vectors: rows are written so that each ends where the next one begins. Then the panel wants
   room for a vector at its end. */
static void pack(T *panel, int64_t width, const T *x, int64_t xp, int64_t xj, int64_t k, int64_t n)
{
    if (xj == 1) {
        for (int64_t p = 0; p < k; p++, x += xp, panel += width)
            for (int64_t j = 0; j < n; j += LANES) vstore(panel + j, vload_most(x + j, n - j));
    } else if (xp == 1) {
        for (int64_t j = (n - 1) / LANES * LANES; j >= 0; j -= LANES) {
            const T *from = x + j * xj, *lane[WIDE];
            T *to = panel + j;
            reg y[LANE];
            int64_t p = 0;
            if (n - j >= LANES) {
                for (int i = 0; i < WIDE; i++) lane[i] = from + i * LANE * xj;
                for (; p + LANE <= k; p += LANE) {
                    load_transposed(y, lane, xj);
#pragma GCC unroll 4
                    for (int i = 0; i < WIDE; i++) lane[i] += LANE;
#pragma GCC unroll 4
                    for (int q = 0; q < LANE; q++, to += width) vstore(to, y[q]);
                }
            }
            if (p < k && k >= LANE) {
                lanes_of_rows found;
                find_rows(found, from, xj, n - j);
                for (int64_t at; p < k; p = at + LANE) {
                    at = least(p, k - LANE);                /* once more, what the last ones share with those before */
                    load_found(y, found, at);
                    to = panel + j + at * width;
#pragma GCC unroll 4
                    for (int q = 0; q < LANE; q++, to += width) vstore(to, y[q]);
                }
            }
            for (; p < k; p++, to += width) vstore(to, vgather(from + p, xj, least(LANES, n - j)));
        }
    } else {
        for (int64_t p = 0; p < k; p++, x += xp, panel += width)
            for (int64_t j = 0; j < n; j += LANES)
                vstore(panel + j, vgather(x + j * xj, xj, least(LANES, n - j)));
    }
}

/* Lane i of 128 bits to to[i * step]. */
INLINE void vstore_lanes(T *to, int64_t step, reg y)
{
#if defined(__AVX512F__) && PN_WIDTH == 64
    _mm_storeu_ps((float *)to, _mm512_castps512_ps128((__m512)y));
    _mm_storeu_ps((float *)(to + step), _mm512_extractf32x4_ps((__m512)y, 1));
    _mm_storeu_ps((float *)(to + 2 * step), _mm512_extractf32x4_ps((__m512)y, 2));
    _mm_storeu_ps((float *)(to + 3 * step), _mm512_extractf32x4_ps((__m512)y, 3));
#elif defined(__AVX2__) && PN_WIDTH == 32
    _mm256_storeu2_m128((float *)(to + step), (float *)to, (__m256)y);
#else
    for (int i = 0; i < WIDE; i++) memcpy(to + i * step, (const T *)&y + i * LANE, 16);
#endif
}

/* The way back where xj is not 1, but xp is: squares of whole lanes by columns of them. The last ones do once more what they share
   with those before. */
static void unpack_columns(const T *panel, int64_t width, T *x, int64_t xj, int64_t k, int64_t n)
{
    const int64_t rows = least(LANE, k), columns = least(LANES, n);
    for (int64_t down = 0; down < k; down += LANE) {
        const int64_t p = least(down, k - rows);
        const T *row[LANE];
        for (int q = 0; q < LANE; q++) row[q] = panel + (p + least(q, rows - 1)) * width;
        for (int64_t right = 0; right < n; right += LANES) {
            const int64_t j = least(right, n - columns);
            T *to = x + p + j * xj, column[LANES * LANE];
            reg y[LANE];
#pragma GCC unroll 4
            for (int q = 0; q < LANE; q++) y[q] = vload(row[q] + j);
            transpose_lanes(y);
            const int whole = rows == LANE && columns == LANES;
            const int64_t step = whole ? xj : LANE;
#pragma GCC unroll 4
            for (int q = 0; q < LANE; q++) vstore_lanes((whole ? to : column) + q * step, LANE * step, y[q]);
            for (int64_t q = 0; !whole && q < columns; q++)
                for (int64_t r = 0; r < rows; r++) to[q * xj + r] = column[q * LANE + r];
        }
    }
}

static void unpack_strided(const T *panel, int64_t width, T *x, int64_t xp, int64_t xj, int64_t k, int64_t n)
{
    if (xp == 1) {
        unpack_columns(panel, width, x, xj, k, n);
        return;
    }
    for (int64_t p = 0; p < k; p++)
        for (int64_t j = 0; j < n; j += LANES)
            vscatter(x + p * xp + j * xj, xj, vload(panel + p * width + j), least(LANES, n - j));
}

/* The way back: x[p * xp + j * xj] = panel[p * width + j] for p < k and j < n. */
INLINE void unpack(const T *panel, int64_t width, T *x, int64_t xp, int64_t xj, int64_t k, int64_t n)
{
    if (xj != 1) {
        unpack_strided(panel, width, x, xp, xj, k, n);
        return;
    }
    for (int64_t p = 0; p < k; p++, x += xp, panel += width)
        for (int64_t j = 0; j < n; j += LANES) vstore_most(x + j, vload(panel + j), n - j);
}

#endif
