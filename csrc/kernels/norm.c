/* Normalisation: of rows (layer_norm, rms_norm) and of columns (batch_norm), each standardised by its own mean and
   deviation, and then scaled and shifted. Sums are those of reduce.c, so no bit depends on strides or on where a call
   is cut; the rest goes number by number. */

/* Places of a matrix; where `col` is 0 one number for each row, where `row` is 0 one for each column. */
typedef struct {
    T      *p;
    int64_t row, col;
} places;

INLINE places matrix_of(const pn_call *c, int slot) { return (places){ OUT(T, slot), STRIDE(slot, 0), STRIDE(slot, 1) }; }
INLINE places by_row(const pn_call *c, int slot) { return (places){ OUT(T, slot), STRIDE(slot, 0), 0 }; }
INLINE places by_col(const pn_call *c, int slot) { return (places){ OUT(T, slot), 0, STRIDE(slot, 0) }; }
INLINE places from(places g, int64_t i, int64_t j) { return (places){ g.p + i * g.row + j * g.col, g.row, g.col }; }
INLINE T *at(places g, int64_t i, int64_t j) { return from(g, i, j).p; }

/* What is summed: rows, or columns. */
INLINE sheet rows_at(places g, int64_t i, int64_t rows, int64_t n)
{
    return (sheet){ .x = at(g, i, 0), .n = n, .number = g.col, .lines = rows, .line = g.row };
}
INLINE sheet cols_at(places g, int64_t j, int64_t cols, int64_t m)
{
    return (sheet){ .x = at(g, 0, j), .n = m, .number = g.row, .lines = cols, .line = g.col };
}

INLINE vec get(places g, int64_t i, int64_t j, int64_t k)
{
    const T *p = at(g, i, j);
    if (g.col == 0) return vset(*p);
    if (g.col == 1) return k == LANES ? vload(p) : vload_part(p, k);
    T lane[LANES] = {0};
    for (int64_t t = 0; t < k; t++) lane[t] = p[t * g.col];
    return vload(lane);
}

INLINE void put(places g, int64_t i, int64_t j, int64_t k, vec x)
{
    T *p = at(g, i, j), lane[LANES];
    if (g.col == 1) {
        if (k == LANES) vstore(p, x);
        else vstore_part(p, x, k);
        return;
    }
    vstore(lane, x);
    for (int64_t t = 0; t < k; t++) p[t * g.col] = lane[t];
}

/* y = f of two numbers and four of their row or column, at each place. y may be one of the inputs. */
typedef vec (*per_place)(vec x, vec z, vec p, vec q, vec r, vec s);

INLINE void each_place_of(per_place f, int64_t m, int64_t n, places y, places x, places z, const places *of)
{
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j += LANES) {
            const int64_t k = n - j < LANES ? n - j : LANES;
            put(y, i, j, k, f(get(x, i, j, k), get(z, i, j, k), get(of[0], i, j, k), get(of[1], i, j, k),
                              get(of[2], i, j, k), get(of[3], i, j, k)));
        }
}

/* The first `rowwise` of the four come by row, the others by column. Where all is contiguous, the compiler is told. */
INLINE void each_place(per_place f, int rowwise, int64_t m, int64_t n, places y, places x, places z, places p, places q,
                       places r, places s)
{
    places of[4] = { p, q, r, s };
    int plain = y.col == 1 && x.col == 1 && z.col == 1;
    for (int k = rowwise; k < 4; k++) plain &= of[k].col == 1;
    if (plain) {
        y.col = x.col = z.col = 1;
        for (int k = 0; k < 4; k++) of[k].col = k >= rowwise;
        each_place_of(f, m, n, y, x, z, of);
    } else {
        each_place_of(f, m, n, y, x, z, of);
    }
}

#define PLACE(name, expression) INLINE vec name(vec x, vec z, vec p, vec q, vec r, vec s) { return expression; }
PLACE(place_affine,       ((x - p) * q) * r + s)                 /* mean, 1 / deviation, weight, bias */
PLACE(place_scaled,       (x * q) * r)
PLACE(place_product,      x * z)
PLACE(place_weighted,     ((x - p) * q) * z)                     /* z is dy, or dy weight */
PLACE(place_residual,     (x - p - (z - q) * r) * s)

static const T no_mean[1];
#define NO_MEAN ((places){ (T *)no_mean, 0, 0 })

/* 1 / deviation of each line. */
INLINE void store_rstd(places to, int64_t first, int64_t lines, const double *var, double eps)
{
    for (int64_t k = 0; k < lines; k++) *at(to, first + k, first + k) = (T)(1 / sqrt(var[k] + eps));
}

DEFINE(layer_norm)
{
    const int64_t m = c->dim[0], n = c->dim[1], most = rows_at_once(n);
    const places x = matrix_of(c, 0), y = matrix_of(c, 3), mean = by_row(c, 4), rstd = by_row(c, 5);
    double centre[VIRTUAL], var[VIRTUAL];
    for (int64_t i = 0, rows; i < m; i += rows) {
        rows = m - i < most ? m - i : most;
        const sheet s = rows_at(x, i, rows, n);
        spread_of(&s, (double)n, centre, var);
        for (int64_t k = 0; k < rows; k++) *at(mean, i + k, 0) = (T)centre[k];
        store_rstd(rstd, i, rows, var, c->attr[0]);
        each_place(place_affine, 2, rows, n, from(y, i, 0), from(x, i, 0), from(x, i, 0), from(mean, i, 0),
                   from(rstd, i, 0), by_col(c, 1), by_col(c, 2));
    }
    return PN_OK;
}

DEFINE(rms_norm)
{
    const int64_t m = c->dim[0], n = c->dim[1], most = rows_at_once(n);
    const places x = matrix_of(c, 0), weight = by_col(c, 1), y = matrix_of(c, 2), rstd = by_row(c, 3);
    double squares[VIRTUAL];
    for (int64_t i = 0, rows; i < m; i += rows) {
        rows = m - i < most ? m - i : most;
        const sheet s = rows_at(x, i, rows, n);
        fold(SQUARES, &s, NULL, squares);
        for (int64_t k = 0; k < rows; k++) squares[k] /= (double)n;
        store_rstd(rstd, i, rows, squares, c->attr[0]);
        each_place(place_scaled, 2, rows, n, from(y, i, 0), from(x, i, 0), from(x, i, 0), NO_MEAN, from(rstd, i, 0),
                   weight, weight);
    }
    return PN_OK;
}

/* With g = dy weight and z = (x - mean) / deviation: dx = (g - mean of g - z (mean of g z)) / deviation; where there
   is no mean, without its term. */
INLINE int rows_grad(const pn_call *c, int centred)
{
    const int64_t m = c->dim[0], n = c->dim[1], most = rows_at_once(n);
    const places dy = matrix_of(c, 0), x = matrix_of(c, 1), weight = by_col(c, 2);
    const places mean = centred ? by_row(c, 3) : NO_MEAN, rstd = by_row(c, 3 + centred), dx = matrix_of(c, 4 + centred);
    T of_g[VIRTUAL], of_gz[VIRTUAL];
    double sum[VIRTUAL], products[VIRTUAL];
    T *room = pn_scratch((size_t)(2 * most * n + 1) * sizeof(T));
    if (!room) return PN_NO_MEMORY;
    const places g = { room, n, 1 }, gz = { room + most * n, n, 1 };
    for (int64_t i = 0, rows; i < m; i += rows) {
        rows = m - i < most ? m - i : most;
        const places xi = from(x, i, 0), of_mean = from(mean, i, 0), r = from(rstd, i, 0);
        each_place(place_product, 4, rows, n, g, from(dy, i, 0), weight, r, r, r, r);
        each_place(place_weighted, 4, rows, n, gz, xi, g, of_mean, r, r, r);
        const sheet of[2] = { rows_at(g, 0, rows, n), rows_at(gz, 0, rows, n) };
        fold(SUM, of, NULL, sum);
        fold(SUM, of + 1, NULL, products);
        for (int64_t k = 0; k < rows; k++) {
            of_g[k] = centred ? (T)(sum[k] / (double)n) : 0;
            of_gz[k] = (T)(products[k] / (double)n * *at(r, k, 0));
        }
        each_place(place_residual, 4, rows, n, from(dx, i, 0), g, xi, (places){ of_g, 1, 0 }, of_mean,
                   (places){ of_gz, 1, 0 }, r);
    }
    return PN_OK;
}

DEFINE(layer_norm_grad) { return rows_grad(c, 1); }
DEFINE(rms_norm_grad) { return rows_grad(c, 0); }

/* Of some columns: the sums of dy, and of dy times the standardised x; `room` takes CHUNK rows of these products. */
enum { CHUNK = 256 };

INLINE void column_sums(int rowwise, int64_t m, int64_t cols, places dy, places x, places mean, places rstd, T *room,
                        double *sum, double *products)
{
    static const T zero[VIRTUAL];
    const places all = { room, VIRTUAL, 1 }, none = { (T *)zero, 0, 1 };
    double more[VIRTUAL];
    for (int64_t k = 0; k < cols; k++) sum[k] = products[k] = 0;
    for (int64_t i = 0; i < m; i += CHUNK) {
        const int64_t rows = m - i < CHUNK ? m - i : CHUNK;
        const places dyi = from(dy, i, 0);
        each_place(place_weighted, rowwise, rows, cols, all, from(x, i, 0), dyi, from(mean, i, 0), from(rstd, i, 0),
                   none, none);
        const sheet of[2] = { cols_at(dyi, 0, cols, rows), cols_at(all, 0, cols, rows) };
        fold_block(SUM, of, 0, rows, zero, more);
        for (int64_t k = 0; k < cols; k++) sum[k] += more[k];
        fold_block(SUM, of + 1, 0, rows, zero, more);
        for (int64_t k = 0; k < cols; k++) products[k] += more[k];
    }
}

DEFINE(layer_norm_grad_w)
{
    const int64_t m = c->dim[0], n = c->dim[1];
    const places dy = matrix_of(c, 0), x = matrix_of(c, 1), dw = by_col(c, 4), db = by_col(c, 5);
    double sum[VIRTUAL], products[VIRTUAL];
    T *room = pn_scratch(CHUNK * VIRTUAL * sizeof(T));
    if (!room) return PN_NO_MEMORY;
    for (int64_t j = 0, cols; j < n; j += cols) {
        cols = n - j < VIRTUAL ? n - j : VIRTUAL;
        column_sums(2, m, cols, from(dy, 0, j), from(x, 0, j), by_row(c, 2), by_row(c, 3), room, sum, products);
        for (int64_t k = 0; k < cols; k++) *at(dw, 0, j + k) = (T)products[k], *at(db, 0, j + k) = (T)sum[k];
    }
    return PN_OK;
}

DEFINE(batch_norm)
{
    const int64_t m = c->dim[0], n = c->dim[1];
    const places x = matrix_of(c, 0), y = matrix_of(c, 3), mean = by_col(c, 4), var = by_col(c, 5), rstd = by_col(c, 6);
    double centre[VIRTUAL], spread[VIRTUAL];
    for (int64_t j = 0, cols; j < n; j += cols) {
        cols = n - j < VIRTUAL ? n - j : VIRTUAL;
        const sheet s = cols_at(x, j, cols, m);
        spread_of(&s, (double)m, centre, spread);
        for (int64_t k = 0; k < cols; k++) *at(mean, 0, j + k) = (T)centre[k], *at(var, 0, j + k) = (T)spread[k];
        store_rstd(rstd, j, cols, spread, c->attr[0]);
        each_place(place_affine, 0, m, cols, from(y, 0, j), from(x, 0, j), from(x, 0, j), from(mean, 0, j),
                   from(rstd, 0, j), from(by_col(c, 1), 0, j), from(by_col(c, 2), 0, j));
    }
    return PN_OK;
}

/* With z = (x - mean) / deviation: dx = (dy - mean of dy - z (mean of dy z)) weight / deviation. */
DEFINE(batch_norm_grad)
{
    const int64_t m = c->dim[0], n = c->dim[1];
    const places dy = matrix_of(c, 0), x = matrix_of(c, 1), weight = by_col(c, 2), mean = by_col(c, 3), rstd = by_col(c, 4);
    const places dx = matrix_of(c, 5), dw = by_col(c, 6), db = by_col(c, 7);
    double sum[VIRTUAL], products[VIRTUAL];
    T of_dy[VIRTUAL], of_dyz[VIRTUAL], scale[VIRTUAL];
    T *room = pn_scratch(CHUNK * VIRTUAL * sizeof(T));
    if (!room) return PN_NO_MEMORY;
    for (int64_t j = 0, cols; j < n; j += cols) {
        cols = n - j < VIRTUAL ? n - j : VIRTUAL;
        const places mj = from(mean, 0, j), rj = from(rstd, 0, j);
        column_sums(0, m, cols, from(dy, 0, j), from(x, 0, j), mj, rj, room, sum, products);
        for (int64_t k = 0; k < cols; k++) {
            const T deviation = *at(rj, 0, k);
            *at(dw, 0, j + k) = (T)products[k], *at(db, 0, j + k) = (T)sum[k];
            of_dy[k] = (T)(sum[k] / (double)m);
            of_dyz[k] = (T)(products[k] / (double)m * deviation);
            scale[k] = deviation * *at(weight, 0, j + k);
        }
        each_place(place_residual, 0, m, cols, from(dx, 0, j), from(dy, 0, j), from(x, 0, j), (places){ of_dy, 0, 1 },
                   mj, (places){ of_dyz, 0, 1 }, (places){ scale, 0, 1 });
    }
    return PN_OK;
}

/* A running average takes in what is new; `factor` is the weight of the new. */
DEFINE(track)
{
    const T factor = *IN(T, 2), scale = (T)c->attr[0];
    T *y = OUT(T, 0);
    const T *x = IN(T, 1);
    for (int64_t i = 0; i < c->dim[0]; i++)
        y[i * STRIDE(0, 0)] = (1 - factor) * y[i * STRIDE(0, 0)] + factor * (scale * x[i * STRIDE(1, 0)]);
    return PN_OK;
}
