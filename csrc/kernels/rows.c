/* Rows of a table by number. Indices may repeat: rows are taken in the order of m. */

INLINE void copy_row(T *y, int64_t ys, const T *x, int64_t xs, int64_t n)
{
    if (ys != 1 || xs != 1) {
        for (int64_t j = 0; j < n; j++) y[j * ys] = x[j * xs];
        return;
    }
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) vstore(y + j, vload(x + j));
    vstore_part(y + j, vload_part(x + j, n - j), n - j);
}

INLINE void add_row(T *y, int64_t ys, const T *x, int64_t xs, int64_t n)
{
    if (ys != 1 || xs != 1) {
        for (int64_t j = 0; j < n; j++) y[j * ys] += x[j * xs];
        return;
    }
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) vstore(y + j, vload(y + j) + vload(x + j));
    vstore_part(y + j, vload_part(y + j, n - j) + vload_part(x + j, n - j), n - j);
}

DEFINE(take)
{
    const int64_t v = c->dim[0], n = c->dim[1], m = c->dim[2];
    const T *table = IN(T, 0);
    const int64_t *index = IN(int64_t, 1);
    T *y = OUT(T, 2);
    int error = indices_fit(c, 1, m, v, NULL);
    if (error) return error;
    for (int64_t i = 0; i < m; i++)
        copy_row(y + i * STRIDE(2, 0), STRIDE(2, 1),
                 table + index[i * STRIDE(1, 0)] * STRIDE(0, 0), STRIDE(0, 1), n);
    return PN_OK;
}

/* put and scatter_add: `join` is what a row of x does to its row of the table. */
#define INTO_ROWS(join)                                                                         \
    const int64_t v = c->dim[0], n = c->dim[1], m = c->dim[2];                                  \
    T *table = OUT(T, 0);                                                                       \
    const int64_t *index = IN(int64_t, 1);                                                      \
    const T *x = IN(T, 2);                                                                      \
    int error = indices_fit(c, 1, m, v, NULL);                                                  \
    if (error) return error;                                                                    \
    for (int64_t i = 0; i < m; i++)                                                             \
        join(table + index[i * STRIDE(1, 0)] * STRIDE(0, 0), STRIDE(0, 1),                      \
             x + i * STRIDE(2, 0), STRIDE(2, 1), n);                                            \
    return PN_OK

DEFINE(put) { INTO_ROWS(copy_row); }
DEFINE(scatter_add) { INTO_ROWS(add_row); }
