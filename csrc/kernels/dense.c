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

/* z += bias, and then relu: a layer's most frequent end takes one pass. */
INLINE void dense_bias(T *z, const T *bias, int64_t n, int relu)
{
    const params none = vparams((scalars){{0}});
    for (int64_t j = 0; j < n; j += LANES) {
        int64_t lanes = n - j;
        vec x = vload_most(z + j, lanes) + vload_most(bias + j, lanes);
        if (relu) x = value_relu(x, none);
        vstore_most(z + j, x, lanes);
    }
}

/* Ends n <= DENSE_COLUMNS elements of a row; z holds the products. Works in `buffer` where not contiguous. */
static void dense_row(const dense_end *e, T *z, T *y, const T *bias, int64_t n, T *buffer)
{
    int keep = y != z, relu = e->activation == row_relu && !keep;
    T *row = z;

    if (e->zj != 1) {
        row = buffer;
        for (int64_t j = 0; j < n; j++) row[j] = z[j * e->zj];
    }
    if (relu) dense_bias(row, bias, n, 1);
    else dense_bias(row, bias, n, 0);
    if (keep) {
        if (row != z)
            for (int64_t j = 0; j < n; j++) z[j * e->zj] = row[j];
        T *to = e->yj == 1 ? y : buffer;
        if (to != row) memcpy(to, row, n * sizeof(T));
        row = to;
    }
    if (!relu && e->activation != row_identity) e->activation(row, n, e->attrs);
    if (row == buffer)
        for (int64_t j = 0; j < n; j++) y[j * e->yj] = row[j];
}

/* Ends rows i .. i + m, columns j .. j + n. */
static void dense_finish(const void *what, int64_t i, int64_t m, int64_t j, int64_t n)
{
    const dense_end *e = what;
    T bias_row[DENSE_COLUMNS], buffer[DENSE_COLUMNS];

    for (int64_t end = j + n, columns; j < end; j += columns) {
        columns = least(DENSE_COLUMNS, end - j);
        const T *bias = e->bias + j * e->bj;
        if (e->bj != 1) {
            for (int64_t q = 0; q < columns; q++) bias_row[q] = bias[q * e->bj];
            bias = bias_row;
        }
        for (int64_t r = i; r < i + m; r++)
            dense_row(e, e->z + r * e->zi + j * e->zj, e->y + r * e->yi + j * e->yj, bias, columns, buffer);
    }
}

/* x:mk w:nk b:n -> [z:mn] y:mn, with z in slot 3 and y in slot `y`. */
static int dense(const pn_call *c, int y, pn_row_value activation)
{
    int64_t m = c->dim[0], k = c->dim[1], n = c->dim[2];
    gemm_plan g = gemm_make(m, n, k, STRIDE(0, 0), STRIDE(0, 1), STRIDE(1, 1), STRIDE(1, 0),
                            STRIDE(3, 0), STRIDE(3, 1));
    dense_end end = {
        .z = OUT(T, 3), .zi = STRIDE(3, 0), .zj = STRIDE(3, 1),
        .y = OUT(T, y), .yi = STRIDE(y, 0), .yj = STRIDE(y, 1),
        .bias = IN(T, 2), .bj = STRIDE(2, 0),
        .activation = activation,
        .attrs = read_scalars(c),
    };
    gemm_finish finish = {dense_finish, &end};
    /* -0 is no bias: x + -0 is x. */
    int plain = end.bj == 0 && n > 0 && *end.bias == 0 && signbit(*end.bias) && activation == row_identity;
    return gemm(&g, IN(T, 0), IN(T, 1), end.z, plain ? NULL : &finish);
}

#define DENSE_SLOT_y 3
#define DENSE_SLOT_x 4
#define ACTIVATION(name, saved, params, value, dx, curve) \
    DEFINE(dense_##name) { return dense(c, DENSE_SLOT_##saved, row_##name); }
#define UNFUSED(name, saved, params, value, dx, curve)
#include "../activations.def"
#undef ACTIVATION
#undef UNFUSED

/* y[j * yj] = the sum of x[i * xi + j * xj] over i < m: each CUT rows in order, then these sums. */
static void dense_column_sums(const T *x, int64_t xi, int64_t xj, int64_t m, int64_t n, T *y, int64_t yj)
{
    enum { VECS = 4 };
    for (int64_t j = 0; j < n; j += VECS * LANES) {
        reg total[VECS] = {{0}};
        for (int64_t cut = 0; cut < m; cut += CUT) {
            reg sum[VECS] = {{0}};
            for (int64_t i = cut; i < least(cut + CUT, m); i++) {
#pragma GCC unroll 4
                for (int v = 0; v < VECS; v++) {
                    int64_t left = n - j - v * LANES;
                    const T *from = x + i * xi + (j + v * LANES) * xj;
                    if (left <= 0) continue;
                    sum[v] += xj == 1 ? vload_most(from, left) : vgather(from, xj, least(LANES, left));
                }
            }
#pragma GCC unroll 4
            for (int v = 0; v < VECS; v++) total[v] += sum[v];
        }
#pragma GCC unroll 4
        for (int v = 0; v < VECS; v++)
            vscatter(y + (j + v * LANES) * yj, yj, total[v], least(LANES, n - j - v * LANES));
    }
}

DEFINE(dense_grad_w)
{
    int64_t m = c->dim[0], n = c->dim[1], k = c->dim[2];
    gemm_plan g = gemm_make(n, k, m, STRIDE(0, 1), STRIDE(0, 0), STRIDE(1, 0), STRIDE(1, 1),
                            STRIDE(2, 0), STRIDE(2, 1));
    int status = gemm(&g, IN(T, 0), IN(T, 1), OUT(T, 2), NULL);
    if (status == PN_OK)
        dense_column_sums(IN(T, 0), STRIDE(0, 0), STRIDE(0, 1), m, n, OUT(T, 3), STRIDE(3, 0));
    return status;
}
