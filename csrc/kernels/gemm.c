/* Matrix products: matmul and bmm, and what dense.c needs.

   Bits. c[i, j] depends on row i of a, column j of b, k and the element type, on nothing else: the terms
   of every CUT values of p are one chain s = vfma(a[i, p], b[p, j], s) from s = 0, and the chains are
   added in order. So nothing below may change with the result: not the orientation (vfma commutes), the
   blocks, what is packed, or the ISA.

   Speed. What the register tile cannot read well is packed. A small product packs at most a column of tiles of b
   ("panel") at a time, for one cut, into L1, just before a block of rows of a meets it; the panel of c is finished,
   all cuts, before the next one is begun. A large one takes the five loops of Goto and van de Geijn, cut by cut:
   a block of b is packed once, and panel by panel it meets blocks of a packed into L2. c goes through a
   buffer where it is not made of whole vectors. What follows a product, such as a layer's bias and activation, runs on
   what is in cache, the most frequent on what is in registers. A few rows of a do not repay packing: b is read once,
   in the order in which it lies. */
#include "gemm_tile.h"
#include "pack.h"
#include "follow.h"

enum {
    CUT = 256,                       /* terms in a chain: part of the definition of a product, see above */
    FEW = 4,                         /* rows of a that do not repay a panel of transposed b */
    LINE = 64 / sizeof(T),           /* elements of a cache line */
    SWEEP_ROWS = 4,                  /* rows of b in a sweep, see sweep_rows */
    SWEEP_COLUMNS = 8192 / sizeof(T),
    SWEEP_BYTES = 512 * 1024,        /* of b that the tiles of few rows read as well */
    SWEEP_MOST = PN_WIDTH == 64 ? 0 : 1,    /* rows that a sweep is better for whatever the size: measured on Zen 3, and Sapphire Rapids */
    BLOCK_ROWS = 336,                /* most rows of a block of a that is not packed */
    BLOCK_BYTES = (PN_WIDTH == 64 ? 288 : 144) * 1024,    /* of packed a: it has not the L2 cache to itself */
    PANEL_BYTES = 1024 * 1024,       /* of packed b that several blocks of a meet */
    ONCE_BYTES = 128 * 1024,         /* and that only one block does */
    SMALL_BYTES = 384 * 1024,        /* of b that may be read where it lies */
    STRIDED_PANELS = PN_WIDTH == 64 ? 16 : 1 << 30,    /* of b, from which it repays to pack an a whose terms are no neighbours */
    GROUP = 4,                       /* panels of b that are packed together */
    TRANSPOSED = PN_WIDTH == 64 ? 3 : 2,    /* elements, while packing, in the time of a vector FMA */
    PACK_TERMS = (PN_WIDTH == 64 ? 60 : 2) * 1000 * 1000,    /* m n k from which it repays to pack both */
    FINISH_COLUMNS = 256             /* at least so many columns of a block are finished together */
};

/* How to multiply, from shapes and strides alone. Strides count elements: b[p, j] is b[p * bp + j * bj].
   The tile's vectors run along j; where it suits the operands better that they run along i, a and b change
   places (`swapped`): m, n and the strides are then those of c^T = b^T a^T. */
typedef struct {
    int64_t m, n, k;
    int64_t ai, ap, bp, bj, ci, cj;
    int64_t block_rows, block_columns, block_depth;
    int64_t a_elements, panel_elements, buffer_elements;    /* of scratch */
    int     swapped, few, sweep, pack_a, pack_b;
    int     whole;              /* c is made of whole tiles, none of which takes the way through a buffer */
} gemm_plan;

/* What is to happen to each part of c once it is complete: rows i .. i + m, columns j .. j + n. Parts may be
   of any size, but where c is large they are small enough to be still in cache. What a tile can do itself stands in
   `in_tile`, for the whole of c: then `run` is for products that do not consist of whole tiles. */
typedef struct {
    void (*run)(const void *what, int64_t i, int64_t m, int64_t j, int64_t n);
    const void *what;
    tile_ending in_tile;
} gemm_finish;

/* Rows this far apart meet in one set of the L1 cache, and evict each other. */
INLINE int aliased(int64_t stride) { return stride != 0 && stride * (int64_t)sizeof(T) % 4096 == 0; }

/* Whether it repays to pack both a and b. */
INLINE int large(int64_t m, int64_t n, int64_t k) { return (double)m * (double)n * (double)k >= PACK_TERMS; }

/* Of one way to multiply, roughly, in vector FMAs: few_rows, which transpose each vector of b; or the tiles, packing
   b by transposing where bj is not 1, and likewise writing c, a large one once for each cut. */
static int64_t gemm_cost(int64_t m, int64_t n, int64_t k, int64_t bj, int64_t cj)
{
    int64_t rows = m < 4 ? 4 : m, vectors = k * parts_of(n, LANES), times = large(m, n, k) ? parts_of(k, CUT) : 1;
    if (m <= FEW && bj != 1) return (m + 2) * vectors;
    return rows * vectors + (bj == 1 ? 0 : n * k / TRANSPOSED) + (cj == 1 ? 0 : times * m * n / 2);
}

/* Sizes of blocks where a is packed: parts of a that are about equal, of b as large as its reuse repays. Not
   inlined: that costs a small product a fifth of its time. */
static __attribute__((noinline)) void gemm_block_sizes(gemm_plan *g)
{
    int64_t most = BLOCK_BYTES / (CUT * (int64_t)sizeof(T)) / TILE_ROWS * TILE_ROWS;
    g->block_rows = round_up(parts_of(g->m, parts_of(g->m, most)), TILE_ROWS);
    g->block_depth = least(g->k, CUT);
    g->a_elements = round_up(g->block_rows * g->block_depth + LANES, LINE);
    if (g->pack_b) {
        int64_t bytes = g->block_rows < g->m ? PANEL_BYTES : ONCE_BYTES;
        g->block_columns = bytes / (CUT * (int64_t)sizeof(T)) / (TILE_VECS * LANES) * (TILE_VECS * LANES);
        g->panel_elements = round_up(least(g->n, g->block_columns), LANES) * g->block_depth;
    }
}

/* Whether few rows read b from end to end: where it is large, or tiles of it would not be whole. */
static int sweeps(const gemm_plan *g)
{
    const int64_t bytes_b = g->k * g->n * (int64_t)sizeof(T), columns = g->m == 1 ? TILE_WIDE * LANES : LANES;
    if (g->m > FEW || g->bj != 1) return 0;
    return bytes_b > SWEEP_BYTES || g->m <= SWEEP_MOST || (g->m < FEW && g->n % columns);
}

/* b is packed if its unit stride is not along the vectors; otherwise only if enough rows of a use it to repay
   that, and it leaves the L2 cache or its rows evict each other. Likewise a, whose reuse is the number of
   panels. */
/* Into *g: a copy of what was just written in other sizes would wait until that has left the core. */
static void gemm_make(gemm_plan *g, int64_t m, int64_t n, int64_t k, int64_t ai, int64_t ap, int64_t bp, int64_t bj,
                      int64_t ci, int64_t cj)
{
    if (m == 1) ai = ci = 1;
    if (n == 1) bj = cj = 1;
    const int swapped = gemm_cost(n, m, k, ai, ci) < gemm_cost(m, n, k, bj, cj);
    *g = (gemm_plan){.k = k, .swapped = swapped, .m = swapped ? n : m, .n = swapped ? m : n,
                     .ai = swapped ? bj : ai, .ap = swapped ? bp : ap, .bp = swapped ? ap : bp, .bj = swapped ? ai : bj,
                     .ci = swapped ? cj : ci, .cj = swapped ? ci : cj};

    int64_t bytes_a = g->m * k * (int64_t)sizeof(T), bytes_b = k * g->n * (int64_t)sizeof(T);
    g->few = g->m <= FEW && g->bj != 1 && g->bp == 1;
    g->sweep = sweeps(g);
    if (g->sweep) g->buffer_elements = FEW * SWEEP_COLUMNS;
    else if (g->few && g->ap != 1) g->buffer_elements = g->m * k;
    if (g->few || g->sweep) return;

    int64_t panels = parts_of(g->n, TILE_VECS * LANES);
    g->pack_b = g->bj != 1 || (g->m > 4 * TILE_ROWS && (aliased(g->bp) || bytes_b > SMALL_BYTES));
    g->pack_a = g->m > TILE_FEW && ((panels > 2 && aliased(g->ai)) || (panels > 4 && bytes_a > 2 * SMALL_BYTES)
                                  || (panels >= STRIDED_PANELS && g->ap != 1));
    if (panels > 4 && g->m > 4 * TILE_ROWS && large(g->m, g->n, k))
        g->pack_a = g->pack_b = 1;
    g->block_rows = least(g->m, BLOCK_ROWS), g->block_columns = g->n, g->block_depth = k;
    if (g->pack_a) gemm_block_sizes(g);

    int64_t width = (g->m <= TILE_FEW ? TILE_WIDE : TILE_VECS) * LANES;
    if (!g->panel_elements && (g->pack_b || g->n % LANES)) g->panel_elements = width * least(k, CUT);
    if (g->cj != 1 || g->n % LANES) g->buffer_elements = width * g->block_rows;
    g->whole = !g->swapped && !g->buffer_elements;
}

static size_t gemm_scratch(const gemm_plan *g)
{
    return (size_t)(g->a_elements + g->panel_elements + g->buffer_elements) * sizeof(T);
}

/* sum[i] += a[i, q] * x[q] for q < least(terms, LANE). */
INLINE void few_terms(int m, int64_t terms, const T *a, int64_t ai, const reg *x, reg *sum)
{
#pragma GCC unroll 4
    for (int q = 0; q < LANE; q++) {
#pragma GCC unroll 4
        for (int i = 0; i < m; i++)
            if (q < terms) sum[i] = vfma(vset(a[i * ai + q]), x[q], sum[i]);
    }
}

/* Columns of c for m <= FEW rows of a, where b's unit stride is along k, as a's is: b is too little used to be worth
   a panel. Squares of it are transposed in registers and go straight into the chains of `vecs` vectors of c, enough
   of them to hide the time of an FMA. Each vector is `lag` terms behind the one before. */
INLINE void few_columns(int m, int vecs, int lag, const gemm_plan *g, const T *a, int64_t ai, const T *b, T *c,
                        int64_t columns)
{
    reg total[FEW][FEW] = {{{0}}}, sum[FEW][FEW], x[LANE];
    const T *lane[FEW][WIDE];
    for (int64_t cut = 0; cut < g->k; cut += CUT) {
        int64_t terms = least(CUT, g->k - cut), whole = columns < LANES ? 0 : terms / LANE * LANE;
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++) {
#pragma GCC unroll 4
            for (int i = 0; i < m; i++) sum[v][i] = vset(0);
#pragma GCC unroll 4
            for (int i = 0; i < WIDE; i++) lane[v][i] = b + (v * LANES + i * LANE) * g->bj + cut;
        }
        for (int64_t p = 0; p < whole + (vecs - 1) * lag; p += LANE) {
#pragma GCC unroll 4
            for (int v = 0; v < vecs; v++) {
                if (lag && (p < v * lag || p >= whole + v * lag)) continue;
                load_transposed(x, lane[v], g->bj);
                few_terms(m, LANE, a + cut + p - v * lag, ai, x, sum[v]);
#pragma GCC unroll 4
                for (int i = 0; i < WIDE; i++) lane[v][i] += LANE;
            }
        }
        for (int64_t p = cut + whole; p < cut + terms; p += LANE) {
#pragma GCC unroll 4
            for (int v = 0; v < vecs; v++) {
                int64_t left = cut + terms - p;
                load_transposed_most(x, b + v * LANES * g->bj + p, g->bj, columns - v * LANES, left);
                few_terms(m, left, a + p, ai, x, sum[v]);
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++) {
#pragma GCC unroll 4
            for (int i = 0; i < m; i++) total[v][i] = cut ? total[v][i] + sum[v][i] : sum[v][i];
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < vecs; v++) {
#pragma GCC unroll 4
        for (int i = 0; i < m; i++)
            vscatter(c + i * g->ci + v * LANES * g->cj, g->cj, total[v][i], least(LANES, columns - v * LANES));
    }
}

/* c = a b for m <= FEW rows of a. Where rows of b are aliased, the vectors of a group keep to different lines of the
   cache. Columns short of a vector are made up by some before them, which come out as they were. */
INLINE void few_rows(int m, int vecs, const gemm_plan *g, const T *a, const T *b, T *c, T *scratch)
{
    int64_t j = 0, ai = g->ai;
    int lag = aliased(2 * g->bj);
    if (g->ap != 1) {
        ai = g->k;
        for (int64_t p = 0; p < g->k; p++)
            for (int i = 0; i < m; i++) scratch[i * ai + p] = a[i * g->ai + p * g->ap];
        a = scratch;
    }
    for (; lag && j + vecs * LANES <= g->n; j += vecs * LANES)
        few_columns(m, vecs, LINE, g, a, ai, b + j * g->bj, c + j * g->cj, vecs * LANES);
    for (; j + vecs * LANES <= g->n; j += vecs * LANES)
        few_columns(m, vecs, 0, g, a, ai, b + j * g->bj, c + j * g->cj, vecs * LANES);
    for (; j < g->n; j += LANES) {
        if (j + LANES > g->n && g->n >= LANES) j = g->n - LANES;
        few_columns(m, 1, 0, g, a, ai, b + j * g->bj, c + j * g->cj, least(LANES, g->n - j));
    }
}

/* sum[i, j] += a[i, p] * b[p, j] for `terms` values of p, in order, and for a vector of j; = if `first`. */
INLINE void sweep_vector(int m, int terms, const reg *a, const T *const *b, int64_t j, int64_t lanes, T *sum, int first)
{
    reg x[SWEEP_ROWS];
#pragma GCC unroll 4
    for (int q = 0; q < terms; q++) x[q] = vload_most(b[q] + j, lanes);
#pragma GCC unroll 4
    for (int i = 0; i < m; i++) {
        reg y = first ? vset(0) : vload(sum + i * SWEEP_COLUMNS + j);
#pragma GCC unroll 4
        for (int q = 0; q < terms; q++) y = vfma(a[i * SWEEP_ROWS + q], x[q], y);
        vstore(sum + i * SWEEP_COLUMNS + j, y);
    }
}

INLINE void sweep_terms(int m, int terms, const gemm_plan *g, const T *a, const T *b, T *sum, int64_t n, int first)
{
    reg s[FEW * SWEEP_ROWS];
    const T *row[SWEEP_ROWS];
#pragma GCC unroll 4
    for (int q = 0; q < terms; q++) {
        row[q] = b + q * g->bp;
#pragma GCC unroll 4
        for (int i = 0; i < m; i++) s[i * SWEEP_ROWS + q] = vset(a[i * g->ai + q * g->ap]);
    }
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) sweep_vector(m, terms, s, row, j, LANES, sum, first);
    if (j < n) sweep_vector(m, terms, s, row, j, n - j, sum, first);
}

/* c = a b for m <= FEW rows of a and a b whose unit stride is along n: tiles would jump from row to row of it, and want
   it packed where columns are no whole vectors. A few rows are read together from end to end, and the chains wait in the
   L1 cache. */
INLINE void sweep_rows(int m, const gemm_plan *g, const T *a, const T *b, T *c, T *sum)
{
    for (int64_t j = 0; j < g->n; j += SWEEP_COLUMNS, b += SWEEP_COLUMNS, c += SWEEP_COLUMNS * g->cj) {
        int64_t columns = least(SWEEP_COLUMNS, g->n - j);
        for (int64_t cut = 0; cut < g->k; cut += CUT) {
            int64_t end = least(cut + CUT, g->k), p = cut;
            for (; p + SWEEP_ROWS <= end; p += SWEEP_ROWS)
                sweep_terms(m, SWEEP_ROWS, g, a + p * g->ap, b + p * g->bp, sum, columns, p == cut);
            for (; p < end; p++)
                sweep_terms(m, 1, g, a + p * g->ap, b + p * g->bp, sum, columns, p == cut);
            for (int i = 0; i < m; i++) {
                for (int64_t q = 0; q < columns; q += LANES) {
                    int64_t lanes = least(LANES, columns - q);
                    T *to = c + i * g->ci + q * g->cj;
                    vec x = vload(sum + i * SWEEP_COLUMNS + q);
                    if (cut) x = vgather(to, g->cj, lanes) + x;
                    vscatter(to, g->cj, x, lanes);
                }
            }
        }
    }
}

/* For each number of rows: as many vectors in few_rows as registers hold. */
#define EACH_FEW(X) X(1, 4) X(2, 4) X(3, 2) X(4, 2)
#define FEW_ROWS(rows, vecs)                                                                \
    static void few_rows_##rows(const gemm_plan *g, const T *a, const T *b, T *c, T *sum)   \
    {                                                                                       \
        few_rows(rows, vecs, g, a, b, c, sum);                                              \
    }                                                                                       \
    static void sweep_rows_##rows(const gemm_plan *g, const T *a, const T *b, T *c, T *sum) \
    {                                                                                       \
        sweep_rows(rows, g, a, b, c, sum);                                                  \
    }
EACH_FEW(FEW_ROWS)
#undef FEW_ROWS

#define FEW_ENTRY(rows, vecs) [rows] = {few_rows_##rows, sweep_rows_##rows},
static void (*const few_rows_of[FEW + 1][2])(const gemm_plan *, const T *, const T *, T *, T *) =
    { EACH_FEW(FEW_ENTRY) };
#undef FEW_ENTRY
#undef EACH_FEW

/* Rows i .. i + rows of a, `terms` columns, tile by tile, as the tiles want them: TILE_ROWS elements for each term.
   Whole vectors are written, so rows that follow may be read along; `have` are there to read. */
static void pack_block(const gemm_plan *g, const T *a, int64_t rows, int64_t have, int64_t terms, T *to)
{
    for (int64_t i = 0, height; i < rows; i += height, to += terms * TILE_ROWS) {
        height = tile_rows(rows - i, TILE_ROWS);
        pack(to, TILE_ROWS, a + i * g->ai, g->ap, g->ai, terms, least(round_up(height, LANES), have - i));
    }
}

/* Asks for the share of rows i .. i + height, of `rows`, in the panel of b that is packed next. Its lines lie
   a row of b apart, or there are few in each row: the hardware does not foresee them. */
INLINE void prefetch_panel(const gemm_plan *g, const T *b, int64_t terms, int64_t i, int64_t height, int64_t rows)
{
    enum { WIDTH = TILE_VECS * LANES };
    if (g->bj == 1) {
        for (int64_t p = terms * i / rows; p < terms * (i + height) / rows; p++)
            for (int v = 0; v < WIDTH; v += LINE) __builtin_prefetch(b + p * g->bp + v, 0, 1);
    } else {
        const int64_t lines = terms / LINE;
        for (int64_t l = lines * i / rows; l < lines * (i + height) / rows; l++)
            for (int v = 0; v < WIDTH; v++) __builtin_prefetch(b + v * g->bj + l * LINE, 0, 1);
    }
}

/* So many whole panels of b, side by side: one panel of many rows would touch as many pages for a line of each. */
static void pack_panels(const gemm_plan *g, const T *b, int64_t panels, int64_t terms, T *to)
{
    enum { WIDTH = TILE_VECS * LANES };
    for (int64_t p = 0; p < terms; p++, b += g->bp, to += WIDTH)
        for (int64_t q = 0; q < panels; q++)
            for (int v = 0; v < WIDTH; v += LANES)
                vstore(to + q * WIDTH * terms + v, vload(b + q * WIDTH + v));
}

/* One panel of c, `rows` by `columns`, plus the terms of p .. p + depth. a, b and c point at the first
   element of each; `packed` says that the panel holds b already. `end` is the last cut's, and used up. */
static void gemm_panel(const gemm_plan *g, const T *a, const T *b, T *c, int64_t rows, int64_t columns,
                       int64_t depth, tile_ending *end, T *panel, int packed, T *buffer)
{
    int64_t vecs = parts_of(columns, LANES), width = vecs * LANES;
    int64_t most = vecs == 1 && !g->pack_a && !aliased(g->ai) ? TILE_TALL : TILE_ROWS;
    const int last = end->what, add = last & END_ADD;
    int direct = g->cj == 1 && columns == width, pack_b = !packed && (g->pack_b || columns != width);
    T *out = direct ? c : buffer;
    int64_t oi = direct ? g->ci : width;

    if (!direct && add) pack(buffer, width, c, g->ci, g->cj, rows, columns);
    for (int64_t p = 0; p < depth; p += CUT) {
        int64_t terms = least(CUT, depth - p), bp = g->bp, ai = g->ai, ap = g->ap;
        const T *bs = b + p * g->bp, *as = a + p * g->ap;
        const T *next = p + CUT < depth ? bs + CUT * g->bp : b + width * g->bj;
        end->what = (p + CUT < depth ? 0 : last) | (p > 0 ? END_ADD : add);
        if (pack_b) pack(panel, width, bs, g->bp, g->bj, terms, columns);
        if (pack_b || packed) bs = panel, bp = width;
        if (g->pack_a) as = a, ai = 1, ap = TILE_ROWS;
        for (int64_t i = 0, height; i < rows; i += height) {
            height = tile_rows(rows - i, most);
            if (g->pack_a && bs == panel) packed_tiles[height][vecs](terms, as, bs, out + i * oi, oi, end);
            else tiles[height][vecs](terms, as, ai, ap, bs, bp, out + i * oi, oi, end);
            if (end->what & END_GATE) end->gate += height * oi;
            if (pack_b && (g->bj == 1 || g->pack_a)) prefetch_panel(g, next, terms, i, height, rows);
            as += g->pack_a ? terms * TILE_ROWS : height * ai;
        }
    }
    if (!direct) unpack(buffer, width, c, g->ci, g->cj, rows, columns);
}

static void finish_part(const gemm_plan *g, const gemm_finish *finish, int64_t i, int64_t m,
                        int64_t j, int64_t n)
{
    if (finish && g->swapped) finish->run(finish->what, j, n, i, m);
    else if (finish) finish->run(finish->what, i, m, j, n);
}

/* Columns j .. j + n of the terms p .. p + depth of c, block by block of a, panel by panel. */
static void gemm_blocks(const gemm_plan *g, const T *a, const T *b, T *c, int64_t j, int64_t n, int64_t p,
                        int64_t depth, T *scratch, const gemm_finish *finish)
{
    T *block = scratch, *panel = block + g->a_elements, *buffer = panel + g->panel_elements;
    int keep = g->pack_a && g->pack_b;    /* the panels, for the next block of a */
    const int last = p + depth == g->k, in_tile = finish && g->whole && finish->in_tile.what;

    for (int64_t i = 0; i < g->m; i += g->block_rows) {
        int64_t rows = least(g->block_rows, g->m - i), finished = j, packed = j;
        const T *block_of_a = a + i * g->ai + p * g->ap;
        if (g->pack_a) {
            if (j == 0 || g->block_rows < g->m) pack_block(g, block_of_a, rows, g->m - i, depth, block);
            block_of_a = block;
        }
        for (int64_t q = j, columns; q < j + n; q += columns) {
            T *to = keep ? panel + (q - j) * depth : panel;
            const T *from = b + p * g->bp + q * g->bj;
            columns = tile_columns(j + n - q, g->m);
            int64_t panels = least(GROUP, (j + n - q) / (TILE_VECS * LANES));
            if (keep && i == 0 && g->bj == 1 && q >= packed && panels > 0) {
                pack_panels(g, from, panels, depth, to);
                packed = q + panels * TILE_VECS * LANES;
            }
            tile_ending end = {.what = (last && in_tile ? finish->in_tile.what : 0) | (p > 0 ? END_ADD : 0)};
            if (end.what & END_BIAS) end.bias = finish->in_tile.bias + q;
            if (end.what & END_GATE) end.gate = finish->in_tile.gate + i * g->ci + q;
            gemm_panel(g, block_of_a, from, c + i * g->ci + q * g->cj, rows, columns, depth, &end, to,
                       keep && (i > 0 || q < packed), buffer);
            int64_t done = q + columns;
            if (last && !in_tile && (done == j + n || done - finished >= FINISH_COLUMNS)) {
                finish_part(g, finish, i, rows, finished, done - finished);
                finished = done;
            }
        }
    }
}

/* c = a b by plan. scratch: gemm_scratch(g) bytes, 64-byte aligned. finish may be NULL. */
static void gemm_run(const gemm_plan *g, const T *a, const T *b, T *c, T *scratch, const gemm_finish *finish)
{
    const T *left = g->swapped ? b : a, *right = g->swapped ? a : b;

    if (g->m == 0 || g->n == 0) return;
    if (g->k == 0) {
        for (int64_t i = 0; i < g->m; i++)
            for (int64_t j = 0; j < g->n; j++) c[i * g->ci + j * g->cj] = 0;
        finish_part(g, finish, 0, g->m, 0, g->n);
    } else if (g->few || g->sweep) {
        few_rows_of[g->m][g->sweep](g, left, right, c, scratch);
        finish_part(g, finish, 0, g->m, 0, g->n);
    } else {
        for (int64_t p = 0; p < g->k; p += g->block_depth)
            for (int64_t j = 0; j < g->n; j += g->block_columns)
                gemm_blocks(g, left, right, c, j, least(g->block_columns, g->n - j), p,
                            least(g->block_depth, g->k - p), scratch, finish);
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

/* relu's derivative in place of what is written. */
static tile_ending follows_in_tile(const pn_call *c)
{
    const pn_call *then = c->then;
    if (!then || then->run != k_relu_grad || c->then_slot != 0) return (tile_ending){0};
    const T *dy = then->buf[0].data, *y = then->buf[1].data, *dx = then->buf[2].data;
    if (dx != dy || y == dy || then->buf[1].stride[0] != 1) return (tile_ending){0};
    return (tile_ending){ END_GATE, .gate = y + (OUT(T, 2) - dy) };
}

DEFINE(matmul)
{
    int64_t m = c->dim[0], k = c->dim[1], n = c->dim[2];
    const pn_call *then = c->then;
    gemm_plan g;
    gemm_make(&g, m, n, k, STRIDE(0, 0), STRIDE(0, 1), STRIDE(1, 0), STRIDE(1, 1), STRIDE(2, 0), STRIDE(2, 1));
    const gemm_follower follower = gemm_follower_of(c, 2);
    gemm_finish finish = { gemm_follow, &follower, follows_in_tile(c) };
    return gemm(&g, IN(T, 0), IN(T, 1), OUT(T, 2), then ? &finish : NULL);
}

/* Where b is the same for all z, and the rows of a and c go on from one z to the next, it is one product. */
DEFINE(bmm)
{
    int64_t z = c->dim[0], m = c->dim[1], k = c->dim[2], n = c->dim[3];
    if (STRIDE(1, 0) == 0 && STRIDE(0, 0) == m * STRIDE(0, 1) && STRIDE(2, 0) == m * STRIDE(2, 1)) {
        m *= z;
        z = z > 0;
    }
    gemm_plan g;
    gemm_make(&g, m, n, k, STRIDE(0, 1), STRIDE(0, 2), STRIDE(1, 1), STRIDE(1, 2), STRIDE(2, 1), STRIDE(2, 2));
    size_t bytes = gemm_scratch(&g);
    T *scratch = bytes ? pn_scratch(bytes) : NULL;
    if (bytes && !scratch) return PN_NO_MEMORY;
    for (int64_t i = 0; i < z; i++)
        gemm_run(&g, IN(T, 0) + i * STRIDE(0, 0), IN(T, 1) + i * STRIDE(1, 0), OUT(T, 2) + i * STRIDE(2, 0),
                 scratch, NULL);
    return PN_OK;
}
