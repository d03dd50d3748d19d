/* Dense layers: y = activation(x w^T + b), a kernel for each fused row of activations.def, and the gradient of w
   and b. The sum over k is exactly matmul's; then comes the bias, then the activation, on rows that are
   still in cache. */

/* The end of a layer. z, the pre-activation, is y itself where only y is wanted. */
typedef struct {
    T *z, *y;
    int64_t zi, zj, yi, yj;
    const T *bias;
    int64_t bj;
    pn_row_value activation;
    scalars attrs;              /* its */
} dense_end;

enum { DENSE_COLUMNS = 512 };    /* of a row are finished together */

INLINE vec dense_sum(vec z, vec bias, int relu)
{
    const vec sum = z + bias;
    return relu ? value_relu(sum, vparams((scalars){{0}})) : sum;
}

/* z += bias, which begins anew every `width` of n numbers, and then relu: a layer's most frequent end takes one pass. */
INLINE void dense_bias(T *z, int64_t n, const T *bias, int64_t width, int relu)
{
    for (int64_t columns; n > 0; n -= columns, z += columns) {
        int64_t j = 0;
        columns = least(width, n);
        for (; j + LANES <= columns; j += LANES) vstore(z + j, dense_sum(vload(z + j), vload(bias + j), relu));
        if (j == columns) continue;
        const int64_t left = columns - j;
        vstore_part(z + j, dense_sum(vload_part(z + j, left), vload_part(bias + j, left), relu), left);
    }
}

/* Ends a row of n <= DENSE_COLUMNS elements, or several without a gap; z holds the products. Works in `buffer` where not
   contiguous. */
static void dense_row(const dense_end *e, T *z, int64_t zj, T *y, int64_t yj, int64_t n, const T *bias, int64_t width,
                      T *buffer)
{
    int keep = y != z, relu = e->activation == row_relu && !keep;
    T *row = z;

    if (zj != 1) {
        row = buffer;
        for (int64_t j = 0; j < n; j++) row[j] = z[j * zj];
    }
    if (relu) dense_bias(row, n, bias, width, 1);
    else dense_bias(row, n, bias, width, 0);
    if (keep) {
        if (row != z)
            for (int64_t j = 0; j < n; j++) z[j * zj] = row[j];
        T *to = yj == 1 ? y : buffer;
        if (to != row) memcpy(to, row, n * sizeof(T));
        row = to;
    }
    if (!relu && e->activation != row_identity) e->activation(row, n, e->attrs);
    if (row == buffer)
        for (int64_t j = 0; j < n; j++) y[j * yj] = row[j];
}

/* Ends rows i .. i + m, columns j .. j + n, where columns are without gaps and rows are not: of each a row. */
static void dense_finish_columns(const dense_end *e, int64_t i, int64_t m, int64_t j, int64_t n)
{
    T bias[DENSE_COLUMNS], buffer[DENSE_COLUMNS];
    for (int64_t q = j; q < j + n; q++)
        for (int64_t r = i, rows; r < i + m; r += rows) {
            rows = least(DENSE_COLUMNS, i + m - r);
            for (int64_t p = 0; p < rows; p += LANES) vstore_most(bias + p, vset(e->bias[q * e->bj]), rows - p);
            dense_row(e, e->z + r + q * e->zj, 1, e->y + r + q * e->yj, 1, rows, bias, rows, buffer);
        }
}

/* The same in general. Rows without a gap are one, for which the bias is repeated until it is made of whole vectors. */
static void dense_finish(const void *what, int64_t i, int64_t m, int64_t j, int64_t n)
{
    const dense_end *e = what;
    if (e->zi == 1 && e->yi == 1 && e->zj != 1) {
        dense_finish_columns(e, i, m, j, n);
        return;
    }
    T bias_row[DENSE_COLUMNS], buffer[DENSE_COLUMNS];

    for (int64_t end = j + n, columns; j < end; j += columns) {
        columns = least(DENSE_COLUMNS, end - j);
        const T *bias = e->bias + j * e->bj;
        const int run = m > 1 && e->zj == 1 && e->yj == 1 && e->zi == columns && e->yi == columns;
        int64_t width = columns, rows = run ? m : 1;
        if (e->bj != 1 || (run && width % LANES)) {
            for (int64_t q = 0; q < columns; q++) bias_row[q] = bias[q * e->bj];
            bias = bias_row;
        }
        for (; run && width % LANES && width < m * columns && 2 * width <= DENSE_COLUMNS; width *= 2)
            memcpy(bias_row + width, bias_row, width * sizeof(T));
        for (int64_t r = i; r < i + m; r += rows)
            dense_row(e, e->z + r * e->zi + j * e->zj, e->zj, e->y + r * e->yi + j * e->yj, e->yj, rows * columns, bias, width,
                      buffer);
    }
}

/* x:mk w:nk b:n -> [z:mn] y:mn, with z in slot 3 and y in slot `y`. */
static int dense(const pn_call *c, int y, pn_row_value activation)
{
    int64_t m = c->dim[0], k = c->dim[1], n = c->dim[2];
    gemm_plan g;
    gemm_make(&g, m, n, k, STRIDE(0, 0), STRIDE(0, 1), STRIDE(1, 1), STRIDE(1, 0), STRIDE(3, 0), STRIDE(3, 1));
    dense_end end = {
        .z = OUT(T, 3), .zi = STRIDE(3, 0), .zj = STRIDE(3, 1),
        .y = OUT(T, y), .yi = STRIDE(y, 0), .yj = STRIDE(y, 1),
        .bias = IN(T, 2), .bj = STRIDE(2, 0),
        .activation = activation,
        .attrs = read_scalars(c),
    };
    gemm_finish finish = {dense_finish, &end, {0}};
    /* -0 is no bias: x + -0 is x. */
    const int none = end.bj == 0 && n > 0 && *end.bias == 0 && signbit(*end.bias), relu = activation == row_relu;
    if (end.z == end.y && (none || end.bj == 1) && (relu || activation == row_identity))
        finish.in_tile = (tile_ending){ (none ? 0 : END_BIAS) | (relu ? END_RELU : 0), .bias = end.bias };
    return gemm(&g, IN(T, 0), IN(T, 1), end.z, none && activation == row_identity ? NULL : &finish);
}

#define DENSE_SLOT_y 3
#define DENSE_SLOT_x 4
#define ACTIVATION(name, saved, params, value, dx, curve) \
    DEFINE(dense_##name) { return dense(c, DENSE_SLOT_##saved, row_##name); }
#define UNFUSED(name, saved, params, value, dx, curve)
#include "../activations.def"
#undef ACTIVATION
#undef UNFUSED

/* y[j * yj] = the sum of x[i * xi + j * xj] over i < m: each CUT rows in order, then these sums. For `vecs` whole vectors
   of j where `whole`, and xj is 1; otherwise for n <= LANES. */
INLINE void dense_sums(int whole, int vecs, const T *x, int64_t xi, int64_t xj, int64_t m, int64_t n, T *y, int64_t yj)
{
    reg total[4] = {{0}};
    for (int64_t cut = 0; cut < m; cut += CUT) {
        reg sum[4] = {{0}};
        for (int64_t i = least(CUT, m - cut); i > 0; i--, x += xi) {
#pragma GCC unroll 4
            for (int v = 0; v < vecs; v++)
                sum[v] += whole ? vload(x + v * LANES) : xj == 1 ? vload_part(x, n) : vgather(x, xj, n);
        }
#pragma GCC unroll 4
        for (int v = 0; v < vecs; v++) total[v] += sum[v];
    }
#pragma GCC unroll 4
    for (int v = 0; v < vecs; v++) vscatter(y + v * LANES * yj, yj, total[v], whole ? LANES : n);
}

/* The same of columns that are each contiguous: four at a time, number by number. */
static void dense_sums_down(const T *x, int64_t xj, int64_t m, int64_t n, T *y, int64_t yj)
{
    for (int64_t j = 0; j < n; j += 4) {
        const T *column[4];
        T total[4] = {0};
        for (int q = 0; q < 4; q++) column[q] = x + least(j + q, n - 1) * xj;
        for (int64_t cut = 0; cut < m; cut += CUT) {
            T sum[4] = {0};
            for (int64_t i = cut; i < least(cut + CUT, m); i++)
#pragma GCC unroll 4
                for (int q = 0; q < 4; q++) sum[q] += column[q][i];
#pragma GCC unroll 4
            for (int q = 0; q < 4; q++) total[q] += sum[q];
        }
        for (int64_t q = 0; q < least(4, n - j); q++) y[(j + q) * yj] = total[q];
    }
}

static void dense_column_sums(const T *x, int64_t xi, int64_t xj, int64_t m, int64_t n, T *y, int64_t yj)
{
    if (xi == 1 && xj != 1) {
        dense_sums_down(x, xj, m, n, y, yj);
        return;
    }
    const int64_t whole = xj == 1 ? n / LANES * LANES : 0;
    int64_t j = 0;
    for (; j + 4 * LANES <= whole; j += 4 * LANES) dense_sums(1, 4, x + j, xi, 1, m, 4 * LANES, y + j * yj, yj);
    for (; j + 2 * LANES <= whole; j += 2 * LANES) dense_sums(1, 2, x + j, xi, 1, m, 2 * LANES, y + j * yj, yj);
    for (; j + LANES <= whole; j += LANES) dense_sums(1, 1, x + j, xi, 1, m, LANES, y + j * yj, yj);
    if (xj == 1 && j < n) dense_sums(0, 1, x + j, xi, 1, m, n - j, y + j * yj, yj);
    else for (; j < n; j += LANES) dense_sums(0, 1, x + j * xj, xi, xj, m, least(LANES, n - j), y + j * yj, yj);
}

enum {
    PIECE = PN_WIDTH == 64 ? 32 : 0,    /* rows of dw that a step follows at a time; 0: all of them. Measured on Sapphire Rapids */
    PIECE_TERMS = 96,                   /* more of them take so long that the step beside them does not matter */
    PIECE_BYTES = 512 * 1024,           /* of x that stay in a core's cache from one piece to the next */
    STEP_BYTES = 1024 * 1024            /* of a step that do not from one call to the next */
};

/* Rows of dw to be worked out at a time: few where it and all that the step after it reads and writes would push one another
   out of the cache. */
static int64_t dense_piece(const pn_call *c)
{
    const int64_t m = c->dim[0], n = c->dim[1], k = c->dim[2];
    if (!c->then || !PIECE || m > PIECE_TERMS || m * k * (int64_t)sizeof(T) > PIECE_BYTES) return n;
    int64_t streams = 0;
    for (int b = 0; b < c->then->buffers; b++) streams += c->then->buf[b].stride[0] != 0;
    return streams * n * k * (int64_t)sizeof(T) >= STEP_BYTES ? PIECE : n;
}

DEFINE(dense_grad_w)
{
    const int64_t m = c->dim[0], n = c->dim[1], k = c->dim[2], piece = dense_piece(c);
    const gemm_follower follower = gemm_follower_of(c, 2);
    for (int64_t i = 0; i < n; i += piece) {
        const int64_t rows = least(piece, n - i);
        gemm_plan g;
        gemm_make(&g, rows, k, m, STRIDE(0, 1), STRIDE(0, 0), STRIDE(1, 0), STRIDE(1, 1), STRIDE(2, 0), STRIDE(2, 1));
        int status = gemm(&g, IN(T, 0) + i * STRIDE(0, 1), IN(T, 1), OUT(T, 2) + i * STRIDE(2, 0), NULL);
        if (status) return status;
        if (follower.then) gemm_follow(&follower, i, rows, 0, k);
    }
    dense_column_sums(IN(T, 0), STRIDE(0, 0), STRIDE(0, 1), m, n, OUT(T, 3), STRIDE(3, 0));
    return PN_OK;
}
