/* Dense layers: y = activation(x w^T + b), a kernel for each row of activations.def, and the gradient of w and b.
   The sum over k is exactly matmul's; then comes the bias, then the activation, on rows that are still in cache. */

/* The end of a layer. z, the pre-activation, is y itself where only y is wanted. Strides of rows and columns. */
typedef struct {
    T *z, *y;
    int64_t zi, zj, yi, yj;
    const T *bias;
    int64_t bj;
    pn_row_value activation;
    T a, b;                     /* its attrs */
} dense_end;

/* Columns of a row that are finished together: more than gemm_run ever hands over at once, on any ISA. */
enum { DENSE_COLUMNS = 512 };

INLINE void dense_bias(T *z, const T *bias, int64_t n, int relu)
{
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) {
        vec x = vload(z + j) + vload(bias + j);
        vstore(z + j, relu ? vsel(x <= 0, vset(0), x) : x);
    }
    if (j < n) {
        vec x = vload_part(z + j, n - j) + vload_part(bias + j, n - j);
        vstore_part(z + j, relu ? vsel(x <= 0, vset(0), x) : x, n - j);
    }
}

/* Rows i .. i + m, columns j .. j + n of z hold the products. Rows that are not contiguous are finished in a buffer. */
static void dense_finish(const void *what, int64_t i, int64_t m, int64_t j, int64_t n)
{
    const dense_end *e = what;
    T bias_row[DENSE_COLUMNS], buffer[DENSE_COLUMNS];
    const T *bias = e->bias + j * e->bj;
    int keep = e->y != e->z, relu = e->activation == row_relu && !keep;

    if (e->bj != 1 && n > 0) {
        for (int64_t q = 0; q < n; q++) bias_row[q] = bias[q * e->bj];
        bias = bias_row;
    }
    for (; m > 0; m--, i++) {
        T *z = e->z + i * e->zi + j * e->zj, *y = e->y + i * e->yi + j * e->yj;
        T *row = e->zj == 1 ? z : buffer;
        if (row != z)
            for (int64_t q = 0; q < n; q++) row[q] = z[q * e->zj];
        if (relu) dense_bias(row, bias, n, 1);
        else dense_bias(row, bias, n, 0);
        if (row != z && keep)
            for (int64_t q = 0; q < n; q++) z[q * e->zj] = row[q];
        if (keep && e->yj == 1) {
            memcpy(y, row, n * sizeof(T));
            row = y;
        } else if (keep && row == z) {
            memcpy(buffer, z, n * sizeof(T));
            row = buffer;
        }
        if (!relu && e->activation != row_identity) e->activation(row, n, e->a, e->b);
        if (row == buffer)
            for (int64_t q = 0; q < n; q++) y[q * e->yj] = row[q];
    }
}

/* x:mk w:nk b:n -> [z:mn] y:mn, with z in slot 3 and y in slot `y`. */
static int dense(const pn_call *c, int y, pn_row_value activation)
{
    int64_t m = c->dim[0], k = c->dim[1], n = c->dim[2];
    gemm_plan g = gemm_make(m, n, k, STRIDE(0, 0), STRIDE(0, 1), STRIDE(1, 1), STRIDE(1, 0), STRIDE(3, 0), STRIDE(3, 1));
    dense_end end = {
        .z = OUT(T, 3), .zi = STRIDE(3, 0), .zj = STRIDE(3, 1),
        .y = OUT(T, y), .yi = STRIDE(y, 0), .yj = STRIDE(y, 1),
        .bias = IN(T, 2), .bj = STRIDE(2, 0),
        .activation = activation,
        .a = c->attrs > 0 ? (T)c->attr[0] : 0,
        .b = c->attrs > 1 ? (T)c->attr[1] : 0,
    };
    gemm_finish finish = {dense_finish, &end};
    size_t bytes = gemm_scratch(&g);
    T *scratch = bytes ? pn_scratch(bytes) : NULL;
    if (bytes && !scratch) return PN_NO_MEMORY;
    gemm_run(&g, IN(T, 0), IN(T, 1), end.z, scratch, &finish);
    return PN_OK;
}

#define DENSE_SLOT_y 3
#define DENSE_SLOT_x 4
#define ACTIVATION(name, saved, params, value, dx, curve) \
    DEFINE(dense_##name) { return dense(c, DENSE_SLOT_##saved, row_##name); }
#include "../activations.def"
#undef ACTIVATION

/* y[j * yj] = the sum of x[i * xi + j * xj] over i < m, by the cuts of a product: each summed in order, then added. */
static void dense_column_sums(const T *x, int64_t xi, int64_t xj, int64_t m, int64_t n, T *y, int64_t yj)
{
    enum { VECS = 4 };
    for (int64_t j = 0; j < n; j += VECS * LANES) {
        int64_t columns = least(VECS * LANES, n - j);
        vec total[VECS] = {0};
        for (int64_t cut = 0; cut < m; cut += CUT) {
            vec sum[VECS] = {0};
            for (int64_t i = cut; i < least(cut + CUT, m); i++) {
                const T *row = x + i * xi + j * xj;
                if (xj == 1 && columns == VECS * LANES) {
                    for (int v = 0; v < VECS; v++) sum[v] += vload(row + v * LANES);
                } else {
                    for (int v = 0; v * LANES < columns; v++) {
                        int64_t lanes = least(LANES, columns - v * LANES);
                        sum[v] += xj == 1 ? vload_part(row + v * LANES, lanes) : vgather(row + v * LANES * xj, xj, lanes);
                    }
                }
            }
            for (int v = 0; v < VECS; v++) total[v] += sum[v];
        }
        for (int v = 0; v * LANES < columns; v++)
            vscatter(y + (j + v * LANES) * yj, yj, total[v], least(LANES, columns - v * LANES));
    }
}

DEFINE(dense_grad_w)
{
    int64_t m = c->dim[0], n = c->dim[1], k = c->dim[2];
    gemm_plan g = gemm_make(n, k, m, STRIDE(0, 1), STRIDE(0, 0), STRIDE(1, 0), STRIDE(1, 1), STRIDE(2, 0), STRIDE(2, 1));
    size_t bytes = gemm_scratch(&g);
    T *scratch = bytes ? pn_scratch(bytes) : NULL;
    if (bytes && !scratch) return PN_NO_MEMORY;
    gemm_run(&g, IN(T, 0), IN(T, 1), OUT(T, 2), scratch, NULL);
    dense_column_sums(IN(T, 0), STRIDE(0, 0), STRIDE(0, 1), m, n, OUT(T, 3), STRIDE(3, 0));
    return PN_OK;
}
