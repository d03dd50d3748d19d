/* Panels: a few rows or columns of a matrix, copied so that the register tile finds them side by side. */
#ifndef PN_PACK_H
#define PN_PACK_H

INLINE int64_t least(int64_t x, int64_t y) { return x < y ? x : y; }

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

/* Perfect shuffles. ZIP interleaves the lower (upper) elements of a and b, each 128 bits by themselves, which
   x86 does best; LANE interleaves the lower (upper) 128-bit lanes whole. */
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
#define LANE_LOW(a, b)  SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11)
#define LANE_HIGH(a, b) SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15)
#elif PN_WIDTH == 32
#define ZIP_LOW(a, b)   SHUFFLE(a, b, 0, 4, 2, 6)
#define ZIP_HIGH(a, b)  SHUFFLE(a, b, 1, 5, 3, 7)
#define LANE_LOW(a, b)  SHUFFLE(a, b, 0, 1, 4, 5)
#define LANE_HIGH(a, b) SHUFFLE(a, b, 2, 3, 6, 7)
#elif PN_TYPE == 32
#define ZIP_LOW(a, b)   SHUFFLE(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
#define ZIP_HIGH(a, b)  SHUFFLE(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
#define LANE_LOW(a, b)  SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23)
#define LANE_HIGH(a, b) SHUFFLE(a, b, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31)
#else
#define ZIP_LOW(a, b)   SHUFFLE(a, b, 0, 8, 2, 10, 4, 12, 6, 14)
#define ZIP_HIGH(a, b)  SHUFFLE(a, b, 1, 9, 3, 11, 5, 13, 7, 15)
#define LANE_LOW(a, b)  SHUFFLE(a, b, 0, 1, 8, 9, 2, 3, 10, 11)
#define LANE_HIGH(a, b) SHUFFLE(a, b, 4, 5, 12, 13, 6, 7, 14, 15)
#endif

/* LANES vectors as a square matrix, transposed. A matrix of 2^s rows is transposed by s perfect shuffles of
   its upper half with its lower half: first so within the blocks of LANE rows and columns, then so with
   the blocks. */
INLINE void transpose(reg *x)
{
    reg y[LANES];
#pragma GCC unroll 2
    for (int size = 1; size < LANE; size *= 2) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES / 2; i++) {
            int top = i / (LANE / 2) * LANE + i % (LANE / 2);
            y[2 * i] = ZIP_LOW(x[top], x[top + LANE / 2]);
            y[2 * i + 1] = ZIP_HIGH(x[top], x[top + LANE / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) x[i] = y[i];
    }
#if PN_WIDTH > 16
#pragma GCC unroll 2
    for (int size = LANE; size < LANES; size *= 2) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES / 2; i++) {
            int to = i / LANE * 2 * LANE + i % LANE;
            y[to] = LANE_LOW(x[i], x[i + LANES / 2]);
            y[to + LANE] = LANE_HIGH(x[i], x[i + LANES / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) x[i] = y[i];
    }
#endif
}

/* Lane p of y[q] = x[p * xp + q], for p < rows and q < columns, and 0 beyond. No y[] is indexed by a
   variable, here and below: it would have to be memory. */
INLINE void load_transposed(reg *y, const T *x, int64_t xp, int64_t rows, int64_t columns)
{
    if (rows >= LANES && columns >= LANES) {
#pragma GCC unroll 16
        for (int p = 0; p < LANES; p++, x += xp) y[p] = vload(x);
    } else {
#pragma GCC unroll 16
        for (int p = 0; p < LANES; p++, x += xp) y[p] = p < rows ? vload_most(x, columns) : vset(0);
    }
    transpose(y);
}

/* panel[p * width + j] = x[p * xp + j * xj] for p < k and j < n, and 0 for n <= j < width, a multiple of
   LANES. */
static void pack(T *panel, int64_t width, const T *x, int64_t xp, int64_t xj, int64_t k, int64_t n)
{
    if (xj == 1) {
        for (int64_t p = 0; p < k; p++, x += xp, panel += width) {
            int64_t j = 0;
            for (; j + LANES <= n; j += LANES) vstore(panel + j, vload(x + j));
            for (; j < width; j += LANES) vstore(panel + j, j < n ? vload_part(x + j, n - j) : vset(0));
        }
    } else if (xp == 1) {
        for (int64_t p = 0; p < k; p += LANES) {
            for (int64_t j = 0; j < width; j += LANES) {
                T *to = panel + p * width + j;
                reg y[LANES];
                load_transposed(y, x + p + j * xj, xj, n - j, k - p);
#pragma GCC unroll 16
                for (int q = 0; q < LANES; q++, to += width)
                    if (q < k - p) vstore(to, y[q]);
            }
        }
    } else {
        for (int64_t p = 0; p < k; p++, x += xp, panel += width)
            for (int64_t j = 0; j < width; j += LANES)
                vstore(panel + j, vgather(x + j * xj, xj, least(LANES, n - j)));
    }
}

/* The way back: x[p * xp + j * xj] = panel[p * width + j] for p < k and j < n. */
static void unpack(const T *panel, int64_t width, T *x, int64_t xp, int64_t xj, int64_t k, int64_t n)
{
    if (xp == 1 && xj != 1) {
        for (int64_t p = 0; p < k; p += LANES) {
            for (int64_t j = 0; j < n; j += LANES) {
                T *to = x + p + j * xj;
                reg y[LANES];
                load_transposed(y, panel + p * width + j, width, k - p, LANES);
#pragma GCC unroll 16
                for (int q = 0; q < LANES; q++, to += xj)
                    if (q < n - j) vstore_most(to, y[q], k - p);
            }
        }
        return;
    }
    for (int64_t p = 0; p < k; p++, x += xp, panel += width) {
        for (int64_t j = 0; j < n; j += LANES) {
            if (xj == 1) vstore_most(x + j, vload(panel + j), n - j);
            else vscatter(x + j * xj, xj, vload(panel + j), least(LANES, n - j));
        }
    }
}

#endif
