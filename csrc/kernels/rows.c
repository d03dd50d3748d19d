/* Rows of a table by number, and numbers of a line. Indices may repeat: they are taken in order. */

/* The rows of a matrix: in order, or by number where there is an index. */
typedef struct {
    T             *data;
    int64_t        row, number;
    const int64_t *index;
    int64_t        step;
} rows;

INLINE rows rows_of(const pn_call *c, int slot)
{
    return (rows){ OUT(T, slot), STRIDE(slot, 0), STRIDE(slot, 1), NULL, 0 };
}

INLINE rows rows_by(const pn_call *c, int slot, int index_slot)
{
    return (rows){ OUT(T, slot), STRIDE(slot, 0), STRIDE(slot, 1), IN(int64_t, index_slot), STRIDE(index_slot, 0) };
}

INLINE T *row_at(const rows *r, int64_t i) { return r->data + (r->index ? r->index[i * r->step] : i) * r->row; }

typedef void (*per_row)(T *y, int64_t ys, const T *x, int64_t xs, int64_t n);

INLINE void copy_row(T *y, int64_t ys, const T *x, int64_t xs, int64_t n)
{
    if (ys != 1 || xs != 1) {
        for (int64_t j = 0; j < n; j++) y[j * ys] = x[j * xs];
    } else if (n <= 4) {
        memcpy(y, x, (size_t)n * sizeof(T));
    } else if (n >= LANES) {
        for (int64_t j = 0; j < n - LANES; j += LANES) vstore(y + j, vload(x + j));
        vstore(y + n - LANES, vload(x + n - LANES));        /* may overlap the one before */
    } else {
        vstore_part(y, vload_part(x, n), n);
    }
}

INLINE void add_row(T *y, int64_t ys, const T *x, int64_t xs, int64_t n)
{
    int64_t j = 0;
    if (ys != 1 || xs != 1 || n <= 4) {
        for (; j < n; j++) y[j * ys] += x[j * xs];
        return;
    }
    for (; j + LANES <= n; j += LANES) vstore(y + j, vload(y + j) + vload(x + j));
    if (j < n) vstore_part(y + j, vload_part(y + j, n - j) + vload_part(x + j, n - j), n - j);
}

INLINE void each_row_of(per_row f, rows y, rows x, int64_t m, int64_t n)
{
    for (int64_t i = 0; i < m; i++) f(row_at(&y, i), y.number, row_at(&x, i), x.number, n);
}

/* f of m pairs of rows. Short ones have a loop of their own: a loop within would cost more than the row. */
INLINE void each_row(per_row f, rows y, rows x, int64_t m, int64_t n)
{
    if (y.number != 1 || x.number != 1) {
        each_row_of(f, y, x, m, n);
        return;
    }
    y.number = x.number = 1;
    switch (n) {
    case 1: each_row_of(f, y, x, m, 1); break;
    case 2: each_row_of(f, y, x, m, 2); break;
    case 3: each_row_of(f, y, x, m, 3); break;
    case 4: each_row_of(f, y, x, m, 4); break;
    case 8: each_row_of(f, y, x, m, 8); break;
    default: each_row_of(f, y, x, m, n);
    }
}

DEFINE(take)
{
    int error = indices_fit(c, 1, c->dim[2], c->dim[0], NULL);
    if (error) return error;
    each_row(copy_row, rows_of(c, 2), rows_by(c, 0, 1), c->dim[2], c->dim[1]);
    return PN_OK;
}

/* From a table of any type, where rows are that are not floats yet: the step that reads them is spared a pass or two. */
#define TAKE_SCALED(number, type, conversion)                                                               \
    case number:                                                                                            \
        for (int64_t i = 0; i < c->dim[2]; i++) {                                                           \
            const type *x = IN(type, 0) + IN(int64_t, 1)[i * STRIDE(1, 0)] * STRIDE(0, 0);                  \
            T *y = OUT(T, 4) + i * STRIDE(4, 0);                                                            \
            if (adjacent)                                                                                   \
                for (int64_t j = 0; j < n; j++) y[j] = ((T)(x[j] conversion) - mean[j]) / std[j];           \
            else                                                                                            \
                for (int64_t j = 0; j < n; j++)                                                             \
                    y[j * STRIDE(4, 1)] = ((T)(x[j * STRIDE(0, 1)] conversion) - mean[j * STRIDE(2, 0)])    \
                                        / std[j * STRIDE(3, 0)];                                            \
        }                                                                                                   \
        return PN_OK;
DEFINE(take_scaled)
{
    int error = indices_fit(c, 1, c->dim[2], c->dim[0], NULL);
    if (error) return error;
    const int64_t n = c->dim[1];
    const T *mean = IN(T, 2), *std = IN(T, 3);
    const int adjacent = STRIDE(0, 1) == 1 && STRIDE(2, 0) == 1 && STRIDE(3, 0) == 1 && STRIDE(4, 1) == 1;
    switch (c->type2) { EACH_CASTABLE(TAKE_SCALED) }
    return PN_NO_KERNEL;
}

DEFINE(put)
{
    int error = indices_fit(c, 1, c->dim[2], c->dim[0], NULL);
    if (error) return error;
    each_row(copy_row, rows_by(c, 0, 1), rows_of(c, 2), c->dim[2], c->dim[1]);
    return PN_OK;
}

DEFINE(scatter_add)
{
    int error = indices_fit(c, 1, c->dim[2], c->dim[0], NULL);
    if (error) return error;
    each_row(add_row, rows_by(c, 0, 1), rows_of(c, 2), c->dim[2], c->dim[1]);
    return PN_OK;
}

/* gather, gather_put and gather_add. The longer of the axes b and c is the inner loop; x stands still along c. */
enum indexing { GATHER, PUT, ADD };
INLINE int indexed(const pn_call *c, enum indexing what)
{
    const int inner = c->dim[2] > c->dim[3] ? 2 : 1, outer = 3 - inner;       /* axes of index and y */
    const int64_t a = c->dim[0], n = c->dim[1], b = c->dim[2], others = inner == 2 ? c->dim[3] : b;
    const int64_t count = inner == 2 ? b : c->dim[3], xs = STRIDE(0, 1), is = STRIDE(1, inner), ys = STRIDE(2, inner);
    const int64_t x_inner = inner == 2 ? STRIDE(0, 2) : 0, x_outer = STRIDE(0, 2) - x_inner;
    for (int64_t i = 0; i < a; i++)
        for (int64_t j = 0; j < others; j++)
            if (!indices_inside(IN(int64_t, 1) + i * STRIDE(1, 0) + j * STRIDE(1, outer), is, count, n))
                return PN_INDEX | 1 << 8;
    for (int64_t i = 0; i < a; i++)
        for (int64_t j = 0; j < others; j++) {
            const int64_t *index = IN(int64_t, 1) + i * STRIDE(1, 0) + j * STRIDE(1, outer);
            T *x = OUT(T, 0) + i * STRIDE(0, 0) + j * x_outer, *y = OUT(T, 2) + i * STRIDE(2, 0) + j * STRIDE(2, outer);
            for (int64_t k = 0; k < count; k++, x += x_inner) {
                if (what == ADD) x[index[k * is] * xs] += y[k * ys];
                else if (what == PUT) x[index[k * is] * xs] = y[k * ys];
                else y[k * ys] = x[index[k * is] * xs];
            }
        }
    return PN_OK;
}

DEFINE(gather)     { return indexed(c, GATHER); }
DEFINE(gather_put) { return indexed(c, PUT); }
DEFINE(gather_add) { return indexed(c, ADD); }
