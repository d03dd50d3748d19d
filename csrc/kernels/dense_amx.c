/* The gradient of a layer's weights by AMX tiles.

   Bits. An element is a sum over the batch in an order that its length alone fixes, but not the chain of vfma that gemm.c
   makes: it may differ from other ISAs' in its last bits. So tiles are for this product only, which no one compares with
   that of another batch; and whether they are used does not depend on the part of it that a thread works out.

   Speed. Tiles multiply bfloat16 sixteen times as fast as FMAs do floats, so six products of them more than twice as fast. */
extern const pn_isa PN_TABLE(PN_BASE);

#if PN_TYPE == 32

#include "follow.h"
#include "gemm_tile_amx.h"

enum {
    LEAST_TERMS = 32,                   /* of a batch for which tiles repay what it takes to split its numbers */
    LEAST_SIDE = 64,                    /* rows and columns, likewise */
    LEAST_PRODUCTS = 1 << 20,           /* and m n k */
    DEPTH = 256,                        /* terms of a panel, and of a chain: longer ones add up what they round off */
    BLOCK_BYTES = 1024 * 1024,          /* of split x, which leave half an L2 cache to the rest */
};

/* The largest magnitude in x, as bits; NaN counts as more than infinity. */
static uint32_t largest(const float *x, int64_t xi, int64_t m, int64_t n)
{
    __m512i most = _mm512_setzero_si512();
    for (int64_t i = 0; i < m; i++, x += xi)
        for (int64_t j = 0; j < n; j += LANES)
            most = _mm512_max_epu32(most, (__m512i)vabs(vload_part(x + j, least(LANES, n - j))));
    return _mm512_reduce_max_epu32(most);
}

/* Whether parts of these numbers and their products are all in bfloat16's range, far from where it, flushing denormals, would
   lose what counts beside the largest: their exponents are between -90 and 120, and together between -90 and 100. */
static int in_range(uint32_t a, uint32_t b)
{
    const int low = BIAS - 90, high = BIAS + 120, ea = (int)(a >> MANTISSA), eb = (int)(b >> MANTISSA);
    return ea >= low && eb >= low && ea <= high && eb <= high && ea + eb >= 2 * BIAS - 90 && ea + eb <= 2 * BIAS + 100;
}

/* Whether the gradient is worked out by tiles: from the shapes, strides and numbers of the whole call. */
static int by_tiles(const pn_call *c)
{
    const int64_t m = c->dim[0], n = c->dim[1], k = c->dim[2];
    if (m < LEAST_TERMS || m > 1 << 24 || n < LEAST_SIDE || k < LEAST_SIDE || m * n < LEAST_PRODUCTS / k) return 0;
    if (STRIDE(0, 1) != 1 || STRIDE(1, 1) != 1 || STRIDE(2, 1) != 1) return 0;
    return in_range(largest(IN(T, 0), STRIDE(0, 0), m, n), largest(IN(T, 1), STRIDE(1, 0), m, k));
}

/* Rows and columns m, n of a square, which end at the edge of c, or are added to it: by way of a buffer. */
static void buffered_square(int64_t terms, const char *a, const char *b, float *c, int64_t ci, int64_t m, int64_t n, int add)
{
    _Alignas(64) float whole[SQUARE * SQUARE];
    square(terms, a, b, whole, SQUARE);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j += LANES) {
            const int64_t lanes = least(LANES, n - j);
            float *to = c + i * ci + j;
            vec x = vload(whole + i * SQUARE + j);
            if (add) x = vload_part(to, lanes) + x;
            vstore_part(to, x, lanes);
        }
}

/* Rows i .. i + m of c, as many as a square's, and columns j .. j + n: = or += a b, for panels of split numbers. */
static void squares(int64_t terms, const char *a, const char *b, float *c, int64_t ci, int64_t m, int64_t n, int add)
{
    const int64_t panel = parts_of(terms, TERMS) * TERMS_BYTES;
    for (int64_t j = 0; j < n; j += SQUARE, b += panel, c += SQUARE) {
        if (!add && m >= SQUARE && n - j >= SQUARE) square(terms, a, b, c, ci);
        else buffered_square(terms, a, b, c, ci, m, least(SQUARE, n - j), add);
    }
}

DEFINE(dense_grad_w)
{
    const pn_kernel base = PN_TABLE(PN_BASE).kernel[PN_dense_grad_w];
    if (!by_tiles(c->whole ? c->whole : c)) return base(c);

    const int64_t m = c->dim[0], n = c->dim[1], k = c->dim[2], di = STRIDE(0, 0), xi = STRIDE(1, 0), ci = STRIDE(2, 0);
    const float *dy = IN(T, 0), *x = IN(T, 1);
    float *dw = OUT(T, 2);
    const int64_t panel = parts_of(least(m, DEPTH), TERMS) * TERMS_BYTES;
    const int64_t width = round_up(parts_of(k, parts_of(k, BLOCK_BYTES / panel * SQUARE)), SQUARE);
    const size_t bytes = panel + width / SQUARE * panel;
    if (!pn_scratch(bytes)) return PN_NO_MEMORY;    /* before anything is written */

    pn_call bias;                                   /* its gradient is that of a layer without inputs */
    memcpy(&bias, c, pn_call_bytes(c));
    bias.dim[2] = 0, bias.then = NULL;
    const int status = base(&bias);
    if (status) return status;

    char *rows = pn_scratch(bytes), *columns = rows + panel;       /* as base may have asked for more */
    const gemm_follower follower = gemm_follower_of(c, 2);
    take_tiles();
    for (int64_t p = 0; p < m; p += DEPTH) {
        const int64_t depth = least(DEPTH, m - p), last = p + depth == m;
        for (int64_t j = 0; j < k; j += width) {
            const int64_t block = least(width, k - j);
            char *to = columns;
            for (int64_t q = 0; q < block; q += SQUARE)
                for (int64_t t = 0; t < depth; t += TERMS, to += TERMS_BYTES)
                    split_columns(x + (p + t) * xi + j + q, xi, depth - t, block - q, to);
            for (int64_t i = 0; i < n; i += SQUARE) {
                const int64_t height = least(SQUARE, n - i);
                to = rows;
                for (int64_t t = 0; t < depth; t += TERMS, to += TERMS_BYTES)
                    split_rows(dy + (p + t) * di + i, di, depth - t, height, to);
                squares(depth, rows, columns, dw + i * ci + j, ci, height, block, p > 0);
                if (follower.then && last && block == k) gemm_follow(&follower, i, height, 0, k);
            }
        }
    }
    give_tiles();
    if (follower.then && width < k) gemm_follow(&follower, 0, n, 0, k);
    return PN_OK;
}

#define PN_OWN [PN_dense_grad_w] = k_dense_grad_w,
#else
#define PN_OWN
#endif
