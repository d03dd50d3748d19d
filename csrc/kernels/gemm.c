/* Matrix products: matmul and bmm, and what dense.c needs.

   Bits. c[i, j] depends on row i of a, column j of b, k and the element type, on nothing else: the terms
   of every CUT values of p are one chain s = vfma(a[i, p], b[p, j], s) from s = 0, and the chains are
   added in order. So nothing below may change with the result: not the orientation (vfma commutes), the
   blocks, what is packed, or the ISA.

   Speed. A block of rows of a meets b one column of tiles ("panel") at a time. What the tile cannot read
   well is packed just before its use: a panel of b for each cut (CUT * TILE_VECS * PN_WIDTH bytes: 32 KiB
   at most, L1 to L2), a block of a for all its cuts (BLOCK_BYTES of L2). A panel of c is finished, all
   cuts, before the next one is begun, and goes through a buffer where c is not made of whole vectors; the
   activation of a dense layer runs on what is in cache. */
#include "gemm_tile.h"
#include "pack.h"

enum {
    CUT = 256,                   /* terms in a chain: part of the definition of a product, see above */
    FEW = 4,                     /* rows of a that do not repay a panel of transposed b */
    BLOCK_BYTES = 384 * 1024,    /* of packed a */
    BLOCK_CUTS = 8 / sizeof(T),  /* most cuts of a packed together: the more, the fewer passes over c */
    BLOCK_ROWS = 336,            /* most rows of a block: 24 tiles of 14, 56 of 6, 84 of 4 */
    FINISH_COLUMNS = 256,        /* at least so many columns of a block are finished together */
    PACK_ROWS = (TILE_ROWS + LANES - 1) / LANES * LANES    /* of a packed tile of a: whole vectors */
};

/* How to multiply, from shapes and strides alone. Strides count elements: b[p, j] is b[p * bp + j * bj].
   The tile's vectors run along j; where it suits the operands better that they run along i, a and b change
   places (`swapped`): m, n and the strides are then those of c^T = b^T a^T. */
typedef struct {
    int64_t m, n, k;
    int64_t ai, ap, bp, bj, ci, cj;
    int64_t block_rows, block_depth;
    int64_t a_elements, panel_elements, buffer_elements;    /* of scratch */
    int     swapped, few, pack_a, pack_b;
} gemm_plan;

/* What is to happen to each part of c once it is complete: rows i .. i + m, columns j .. j + n. Parts may be
   of any size, but where c is large they are small enough to be still in cache. */
typedef struct {
    void (*run)(const void *what, int64_t i, int64_t m, int64_t j, int64_t n);
    const void *what;
} gemm_finish;

/* Rows this far apart meet in one set of the L1 cache, and evict each other. */
INLINE int aliased(int64_t stride) { return stride != 0 && stride * (int64_t)sizeof(T) % 4096 == 0; }

/* Of one way to multiply, roughly, in vector FMAs: the tiles, packing b by transposing where bj is not 1, and
   likewise writing c. */
static int64_t gemm_cost(int64_t m, int64_t n, int64_t k, int64_t bj, int64_t cj)
{
    int64_t rows = m < 4 ? 4 : m;
    return rows * k * ((n + LANES - 1) / LANES) + (bj == 1 ? 0 : n * k / 2) + (cj == 1 ? 0 : m * n / 2);
}

/* b is packed if its unit stride is not along the vectors; otherwise only if enough rows of a use it to repay
   that, and it leaves the L2 cache or its rows evict each other. Likewise a, whose reuse is the number of
   panels. */
static gemm_plan gemm_make(int64_t m, int64_t n, int64_t k, int64_t ai, int64_t ap, int64_t bp, int64_t bj,
                           int64_t ci, int64_t cj)
{
    gemm_plan g = {.m = m, .n = n, .k = k, .ai = ai, .ap = ap, .bp = bp, .bj = bj, .ci = ci, .cj = cj};
    if (m == 1) g.ai = g.ci = 1;
    if (n == 1) g.bj = g.cj = 1;
    if (gemm_cost(n, m, k, g.ai, g.ci) < gemm_cost(m, n, k, g.bj, g.cj))
        g = (gemm_plan){.m = n, .n = m, .k = k, .swapped = 1,
                        .ai = g.bj, .ap = bp, .bp = ap, .bj = g.ai, .ci = g.cj, .cj = g.ci};

    g.few = g.m <= FEW && g.bj != 1 && g.bp == 1 && k > 0;
    if (g.few) return g;

    int64_t panels = (g.n + TILE_VECS * LANES - 1) / (TILE_VECS * LANES);
    int64_t width = (g.m <= TILE_FEW ? TILE_WIDE : TILE_VECS) * LANES;
    int64_t bytes_a = g.m * k * (int64_t)sizeof(T), bytes_b = k * g.n * (int64_t)sizeof(T);
    g.pack_b = g.bj != 1 || (g.m > 4 * TILE_ROWS && (aliased(g.bp) || bytes_b > BLOCK_BYTES));
    g.pack_a = k > 0 && ((panels > 2 && aliased(g.ai)) || (panels > 4 && bytes_a > 2 * BLOCK_BYTES));

    g.block_depth = g.pack_a ? least(k, BLOCK_CUTS * CUT) : k;
    g.block_rows = BLOCK_ROWS;
    if (g.pack_a) {
        int64_t fit = BLOCK_BYTES / (g.block_depth * (int64_t)sizeof(T) * PACK_ROWS) * TILE_ROWS;
        g.block_rows = least(BLOCK_ROWS, fit);
    }
    g.block_rows = least(g.m, g.block_rows);

    int through_buffer = g.cj != 1 || g.n % LANES;
    if (g.pack_a) g.a_elements = (g.block_rows + TILE_ROWS - 1) / TILE_ROWS * PACK_ROWS * g.block_depth;
    if (g.pack_b || g.n % LANES) g.panel_elements = width * least(k, CUT);
    if (through_buffer) g.buffer_elements = width * g.block_rows;
    return g;
}

static size_t gemm_scratch(const gemm_plan *g)
{
    return (size_t)(g->a_elements + g->panel_elements + g->buffer_elements) * sizeof(T);
}

/* c = a b for m <= FEW rows of a, where b's unit stride is along k: b is too little used to be worth a panel.
   A square of it is transposed in registers and goes straight into the chains of LANES columns of c. */
INLINE void few_rows(int m, const gemm_plan *g, const T *a, const T *b, T *c)
{
    for (int64_t j = 0; j < g->n; j += LANES, b += LANES * g->bj) {
        int64_t columns = least(LANES, g->n - j);
        reg total[FEW] = {vset(0)}, sum[FEW], x[LANES];
        for (int64_t cut = 0; cut < g->k; cut += CUT) {
            int64_t end = least(cut + CUT, g->k);
#pragma GCC unroll 4
            for (int i = 0; i < m; i++) sum[i] = vset(0);
            for (int64_t p = cut; p < end; p += LANES) {
                const T *as = a + p * g->ap;
                load_transposed(x, b + p, g->bj, columns, end - p);
#pragma GCC unroll 16
                for (int q = 0; q < LANES; q++, as += g->ap) {
#pragma GCC unroll 4
                    for (int i = 0; i < m; i++)
                        if (q < end - p) sum[i] = vfma(vset(as[i * g->ai]), x[q], sum[i]);
                }
            }
#pragma GCC unroll 4
            for (int i = 0; i < m; i++) {
                if (cut) sum[i] = total[i] + sum[i];
                total[i] = sum[i];
            }
        }
#pragma GCC unroll 4
        for (int i = 0; i < m; i++) vscatter(c + i * g->ci + j * g->cj, g->cj, total[i], columns);
    }
}

#define FEW_ROWS(rows)                                                            \
    static void few_rows_##rows(const gemm_plan *g, const T *a, const T *b, T *c) \
    {                                                                             \
        few_rows(rows, g, a, b, c);                                               \
    }
FEW_ROWS(1) FEW_ROWS(2) FEW_ROWS(3) FEW_ROWS(4)
#undef FEW_ROWS

/* Rows i .. i + rows of a, columns p .. p + depth, as the tiles want them: cut by cut, tile by tile. */
static void pack_block(const gemm_plan *g, const T *a, int64_t rows, int64_t depth, T *to)
{
    for (int64_t p = 0; p < depth; p += CUT) {
        int64_t terms = least(CUT, depth - p);
        for (int64_t i = 0, height; i < rows; i += height, to += terms * PACK_ROWS) {
            height = tile_rows(rows - i);
            pack(to, PACK_ROWS, a + i * g->ai + p * g->ap, g->ap, g->ai, terms, height);
        }
    }
}

/* Asks for the share of rows i .. i + height, of `rows`, in the panel of b that is packed next. Its lines lie
   a row of b apart, which the hardware does not foresee. */
INLINE void prefetch_panel(const T *b, int64_t bp, int64_t terms, int64_t i, int64_t height, int64_t rows)
{
    for (int64_t p = terms * i / rows; p < terms * (i + height) / rows; p++)
        for (int v = 0; v < TILE_VECS * PN_WIDTH; v += 64)
            __builtin_prefetch((const char *)(b + p * bp) + v, 0, 1);
}

/* One panel of c, `rows` by `columns`, plus the terms of p .. p + depth. a, b and c point at the first
   element of each; `add` says that c already holds earlier cuts. */
static void gemm_panel(const gemm_plan *g, const T *a, const T *b, T *c, int64_t rows, int64_t columns,
                       int64_t depth, int add, T *panel, T *buffer)
{
    int64_t vecs = (columns + LANES - 1) / LANES, width = vecs * LANES;
    int direct = g->cj == 1 && columns == width, pack_b = g->pack_b || columns != width;
    T *out = direct ? c : buffer;
    int64_t oi = direct ? g->ci : width;

    if (!direct && add) pack(buffer, width, c, g->ci, g->cj, rows, columns);
    for (int64_t p = 0; p < depth; p += CUT) {
        int64_t terms = least(CUT, depth - p), bp = g->bp, ai = g->ai, ap = g->ap;
        const T *bs = b + p * g->bp, *as = a + p * g->ap;
        const T *next = p + CUT < depth ? bs + CUT * g->bp : b + width;
        if (pack_b) {
            pack(panel, width, bs, g->bp, g->bj, terms, columns);
            bs = panel, bp = width;
        }
        if (g->pack_a) as = a, ai = 1, ap = PACK_ROWS;
        for (int64_t i = 0, height; i < rows; i += height) {
            height = tile_rows(rows - i);
            tiles[height][vecs](terms, as, ai, ap, bs, bp, out + i * oi, oi, add || p > 0);
            if (g->pack_b && g->bj == 1) prefetch_panel(next, g->bp, terms, i, height, rows);
            as += g->pack_a ? terms * PACK_ROWS : height * ai;
        }
        if (g->pack_a) a = as;
    }
    if (!direct) unpack(buffer, width, c, g->ci, g->cj, rows, columns);
}

static void finish_part(const gemm_plan *g, const gemm_finish *finish, int64_t i, int64_t m,
                        int64_t j, int64_t n)
{
    if (finish && g->swapped) finish->run(finish->what, j, n, i, m);
    else if (finish) finish->run(finish->what, i, m, j, n);
}

/* The terms p .. p + depth of c, block by block, panel by panel. */
static void gemm_blocks(const gemm_plan *g, const T *a, const T *b, T *c, int64_t p, int64_t depth,
                        T *scratch, const gemm_finish *finish)
{
    T *block = scratch, *panel = block + g->a_elements, *buffer = panel + g->panel_elements;

    for (int64_t i = 0; i < g->m; i += g->block_rows) {
        int64_t rows = least(g->block_rows, g->m - i), finished = 0;
        const T *block_of_a = a + i * g->ai + p * g->ap;
        if (g->pack_a) {
            pack_block(g, block_of_a, rows, depth, block);
            block_of_a = block;
        }
        for (int64_t j = 0, columns; j < g->n; j += columns) {
            columns = tile_columns(g->n - j, g->m);
            gemm_panel(g, block_of_a, b + p * g->bp + j * g->bj, c + i * g->ci + j * g->cj, rows, columns,
                       depth, p > 0, panel, buffer);
            int64_t done = j + columns;
            if (p + depth == g->k && (done == g->n || done - finished >= FINISH_COLUMNS)) {
                finish_part(g, finish, i, rows, finished, done - finished);
                finished = done;
            }
        }
    }
}

/* c = a b by plan. scratch: gemm_scratch(g) bytes, 64-byte aligned. finish may be NULL. */
static void gemm_run(const gemm_plan *g, const T *a, const T *b, T *c, T *scratch, const gemm_finish *finish)
{
    static void (*const few_rows_of[FEW + 1])(const gemm_plan *, const T *, const T *, T *) =
        {NULL, few_rows_1, few_rows_2, few_rows_3, few_rows_4};
    const T *left = g->swapped ? b : a, *right = g->swapped ? a : b;

    if (g->m == 0 || g->n == 0) return;
    if (g->k == 0) {
        for (int64_t i = 0; i < g->m; i++)
            for (int64_t j = 0; j < g->n; j++) c[i * g->ci + j * g->cj] = 0;
        finish_part(g, finish, 0, g->m, 0, g->n);
    } else if (g->few) {
        few_rows_of[g->m](g, left, right, c);
        finish_part(g, finish, 0, g->m, 0, g->n);
    } else {
        for (int64_t p = 0; p < g->k; p += g->block_depth)
            gemm_blocks(g, left, right, c, p, least(g->block_depth, g->k - p), scratch, finish);
    }
}

/* The same for one product, with scratch found. */
static int gemm(const gemm_plan *g, const T *a, const T *b, T *c, const gemm_finish *finish)
{
    size_t bytes = gemm_scratch(g);
    T *scratch = bytes ? pn_scratch(bytes) : NULL;
    if (bytes && !scratch) return PN_NO_MEMORY;
    gemm_run(g, a, b, c, scratch, finish);
    return PN_OK;
}

DEFINE(matmul)
{
    int64_t m = c->dim[0], k = c->dim[1], n = c->dim[2];
    gemm_plan g = gemm_make(m, n, k, STRIDE(0, 0), STRIDE(0, 1), STRIDE(1, 0), STRIDE(1, 1),
                            STRIDE(2, 0), STRIDE(2, 1));
    return gemm(&g, IN(T, 0), IN(T, 1), OUT(T, 2), NULL);
}

/* Where b is the same for all z, and the rows of a and c go on from one z to the next, it is one product. */
DEFINE(bmm)
{
    int64_t z = c->dim[0], m = c->dim[1], k = c->dim[2], n = c->dim[3];
    if (STRIDE(1, 0) == 0 && STRIDE(0, 0) == m * STRIDE(0, 1) && STRIDE(2, 0) == m * STRIDE(2, 1)) {
        m *= z;
        z = z > 0;
    }
    gemm_plan g = gemm_make(m, n, k, STRIDE(0, 1), STRIDE(0, 2), STRIDE(1, 1), STRIDE(1, 2),
                            STRIDE(2, 1), STRIDE(2, 2));
    size_t bytes = gemm_scratch(&g);
    T *scratch = bytes ? pn_scratch(bytes) : NULL;
    if (bytes && !scratch) return PN_NO_MEMORY;
    for (int64_t i = 0; i < z; i++)
        gemm_run(&g, IN(T, 0) + i * STRIDE(0, 0), IN(T, 1) + i * STRIDE(1, 0), OUT(T, 2) + i * STRIDE(2, 0),
                 scratch, NULL);
    return PN_OK;
}
