/* The softmax family: exponentials shifted by the row's maximum, so that finite numbers never overflow. A row
   that is all -inf, or has a +inf, is NaN. */

/* Lines of n numbers to work on. One, contiguous along n; or, where `across`, up to VIRTUAL of them side by
   side, each contiguous with its neighbours and its own numbers a stride apart. */
typedef struct {
    int      across;
    int64_t  n, lines;
    const T *x[2];
    T       *y;
    int64_t  xs[2], ys;
} sheet;

/* Lines of no more numbers than this are copied so that they lie side by side: a vector then is one number of
   each of LANES lines, and nothing is folded within vectors. */
enum { SHORT = 32 };

/* One number for each line. Whole vectors are read, hence all are given a value. */
typedef struct { T of[VIRTUAL]; } per_line;
static const per_line none = { {0} };

INLINE per_line fold_lines(enum fold op, const sheet *s, const T *x, int64_t stride, per_line centre)
{
    double total[VIRTUAL];
    if (s->across) fold_columns(op, x, stride, s->n, s->lines, centre.of, total);
    else total[0] = fold_row(op, x, 1, s->n, centre.of[0]);
    for (int64_t j = 0; j < (s->across ? s->lines : 1); j++) centre.of[j] = (T)total[j];
    return centre;
}

/* y = f of one or two inputs, y as it was, and two numbers of their line. */
typedef vec (*per_number)(vec x, vec x1, vec y, vec p, vec q);

INLINE void each_number(per_number f, int inputs, const sheet *s, per_line p, per_line q)
{
    const int64_t rows = s->across ? s->n : 1, width = s->across ? s->lines : s->n;
    for (int64_t i = 0; i < rows; i++) {
        const T *x = s->x[0] + i * s->xs[0], *x1 = inputs > 1 ? s->x[1] + i * s->xs[1] : x;
        T *y = s->y + i * s->ys;
        for (int64_t j = 0; j < width; j += LANES) {
            const int64_t k = width - j;
            vec vp = s->across ? vload(p.of + j) : vset(p.of[0]);
            vec vq = s->across ? vload(q.of + j) : vset(q.of[0]);
            if (k >= LANES) {
                vstore(y + j, f(vload(x + j), vload(x1 + j), vload(y + j), vp, vq));
            } else {
                vec old = vload_part(y + j, k);
                vstore_part(y + j, f(vload_part(x + j, k), vload_part(x1 + j, k), old, vp, vq), k);
            }
        }
    }
}

#define EACH(name, expression) INLINE vec name(vec x, vec x1, vec y, vec p, vec q) { return expression; }
EACH(number_exp,      vexp(x - p))
EACH(number_share,    y / p)
EACH(number_shifted,  (x - p) - q)
EACH(number_product,  x * x1)
EACH(number_centred,  (x - p) * x1)
EACH(number_residual, x - vexp(x1) * p)

INLINE void softmax_lines(const sheet *s)
{
    per_line high = fold_lines(MAX, s, s->x[0], s->xs[0], none);
    each_number(number_exp, 1, s, high, none);
    per_line sum = fold_lines(SUM, s, s->y, s->ys, none);
    each_number(number_share, 1, s, sum, none);
}

INLINE per_line log_of(per_line x, int64_t lines)
{
    for (int64_t j = 0; j < lines; j += LANES) vstore(x.of + j, vlog(vload(x.of + j)));
    return x;
}

INLINE void log_softmax_lines(const sheet *s)
{
    per_line high = fold_lines(MAX, s, s->x[0], s->xs[0], none);
    per_line sum = fold_lines(EXPONENTIALS, s, s->x[0], s->xs[0], high);
    each_number(number_shifted, 1, s, high, log_of(sum, s->lines));
}

/* x[0] is dy, x[1] is the softmax or its logarithm, and y is dx. */
INLINE void softmax_grad_lines(const sheet *s)
{
    each_number(number_product, 2, s, none, none);
    per_line sum = fold_lines(SUM, s, s->y, s->ys, none);
    each_number(number_centred, 2, s, sum, none);
}

INLINE void log_softmax_grad_lines(const sheet *s)
{
    per_line sum = fold_lines(SUM, s, s->x[0], s->xs[0], none);
    each_number(number_residual, 2, s, sum, none);
}

/* y[i, k] = x[i, k] for `lines` lines of n numbers. */
INLINE void copy_lines(T *y, int64_t y_line, int64_t y_number, const T *x, int64_t x_line, int64_t x_number,
                       int64_t lines, int64_t n)
{
    for (int64_t i = 0; i < lines; i++)
        for (int64_t k = 0; k < n; k++) y[i * y_line + k * y_number] = x[i * x_line + k * x_number];
}

/* f along the middle axis of the inputs and the output, which is the slot after them. Where all slots are
   contiguous along another axis, or along this one and it is not short, f works on them as they are;
   otherwise on copies. */
INLINE int along_middle(const pn_call *c, int inputs, void (*f)(const sheet *))
{
    const int64_t n = c->dim[1];
    if (n == 0) return PN_OK;                  /* however many lines of nothing there are */
    int row = n > SHORT, side_a = c->dim[0] > 1, side_b = c->dim[2] > 1;
    for (int slot = 0; slot <= inputs; slot++) {
        row &= STRIDE(slot, 1) == 1;
        side_a &= STRIDE(slot, 0) == 1;
        side_b &= STRIDE(slot, 2) == 1;
    }
    const int side = side_a || side_b, across = !row && (side || n <= SHORT);
    const int inner = (side ? side_b : c->dim[2] > c->dim[0]) ? 2 : 0, outer = 2 - inner;
    const int64_t number = across ? VIRTUAL : 1, size = n * number;
    T *copy = NULL;
    if (!row && !side && !(copy = pn_scratch((size_t)(3 * size + 1) * sizeof(T)))) return PN_NO_MEMORY;

    for (int64_t i = 0; i < c->dim[outer]; i++)
        for (int64_t j = 0, lines; j < c->dim[inner]; j += lines) {
            const int64_t left = c->dim[inner] - j;
            lines = !across ? 1 : left < VIRTUAL ? left : VIRTUAL;
            T *y = OUT(T, inputs) + i * STRIDE(inputs, outer) + j * STRIDE(inputs, inner);
            sheet s = { .across = across, .n = n, .lines = lines, .y = copy ? copy : y,
                        .ys = copy ? number : STRIDE(inputs, 1) };
            for (int slot = 0; slot < inputs; slot++) {
                const T *x = IN(T, slot) + i * STRIDE(slot, outer) + j * STRIDE(slot, inner);
                s.x[slot] = x;
                s.xs[slot] = STRIDE(slot, 1);
                if (!copy) continue;
                T *to = copy + (slot + 1) * size;
                copy_lines(to, 1, number, x, STRIDE(slot, inner), STRIDE(slot, 1), lines, n);
                s.x[slot] = to;
                s.xs[slot] = number;
            }
            if (across) f(&s);
            else s.across = 0, s.lines = 1, f(&s);          /* a copy of f that is compiled for one line */
            if (copy) copy_lines(y, STRIDE(inputs, inner), STRIDE(inputs, 1), copy, 1, number, lines, n);
        }
    return PN_OK;
}

DEFINE(softmax) { return along_middle(c, 1, softmax_lines); }
DEFINE(softmax_grad) { return along_middle(c, 2, softmax_grad_lines); }
DEFINE(log_softmax) { return along_middle(c, 1, log_softmax_lines); }
DEFINE(log_softmax_grad) { return along_middle(c, 2, log_softmax_grad_lines); }

/* The losses of classification. Row i has label l: with weights w and smoothing e, over n classes,
     loss = (1 - e) w[l] (lse - x[l]) + e / n * sum_c w[c] (lse - x[c]),   lse = log sum_c exp(x[c]);
   0, with weight 0, where the label is ignored. total is the sum of w[l]. */

/* x where it is contiguous, else copied to `to`. */
INLINE const T *contiguous(const T *x, int64_t stride, int64_t n, T *to)
{
    if (stride == 1) return x;
    copy_lines(to, 0, 1, x, 0, stride, 1, n);
    return to;
}

/* lse = high + above for some rows: one, or where they are short as many as VIRTUAL, whose copy takes SHORT *
   VIRTUAL. */
typedef struct {
    int64_t  rows;
    per_line high, above;
} row_lse;

INLINE row_lse lse_of(const T *x, int64_t row, int64_t stride, int64_t rows, int64_t n, T *copy)
{
    sheet s = { .across = n <= SHORT, .n = n, .lines = 1, .xs[0] = 1 };
    if (s.across) {
        s.lines = rows < VIRTUAL ? rows : VIRTUAL;
        copy_lines(copy, 1, VIRTUAL, x, row, stride, s.lines, n);
        s.x[0] = copy, s.xs[0] = VIRTUAL;
    } else {
        s.x[0] = contiguous(x, stride, n, copy);
    }
    row_lse r = { .rows = s.lines, .high = fold_lines(MAX, &s, s.x[0], s.xs[0], none) };
    r.above = log_of(fold_lines(EXPONENTIALS, &s, s.x[0], s.xs[0], r.high), s.lines);
    return r;
}

/* The loss, from the sum of losses: divided by the total weight where asked. */
INLINE void finish(T *loss, T *total, double sum, double weights, int mean)
{
    *loss = (T)(mean ? sum / weights : sum);
    *total = (T)weights;
}

DEFINE(cross_entropy)
{
    const int64_t m = c->dim[0], n = c->dim[1], size = n > SHORT ? n : SHORT * VIRTUAL;
    const int64_t ignore = (int64_t)c->attr[0], *labels = IN(int64_t, 1);
    const double smoothing = c->attr[1];
    const T *weight = IN(T, 2);
    T *losses = OUT(T, 4), *lse = OUT(T, 5);
    int error = indices_fit(c, 1, m, n, &ignore);
    if (error) return error;
    T *copy = pn_scratch((size_t)(3 * size) * sizeof(T));
    if (!copy) return PN_NO_MEMORY;
    T *terms = copy + 2 * size;
    const T *w = smoothing != 0 ? contiguous(weight, STRIDE(2, 0), n, copy + size) : NULL;

    double sum = 0, weights = 0;
    row_lse r = { .rows = 0 };
    for (int64_t i = 0, first = 0; i < m; i++) {
        const T *x = IN(T, 0) + i * STRIDE(0, 0);
        if (i == first + r.rows) r = lse_of(x, STRIDE(0, 0), STRIDE(0, 1), m - i, n, copy), first = i;
        const T high = r.high.of[i - first], above = r.above.of[i - first];
        const int64_t label = labels[i * STRIDE(1, 0)];
        lse[i * STRIDE(5, 0)] = high + above;
        losses[i * STRIDE(4, 0)] = 0;
        if (label == ignore) continue;

        /* lse - x[label] without the rounding of lse, which may be large where the difference is small. */
        const double w_label = weight[label * STRIDE(2, 0)];
        double loss = (1 - smoothing) * w_label * ((double)high - x[label * STRIDE(0, 1)] + above);
        if (smoothing != 0) {
            for (int64_t k = 0; k < n; k++) terms[k] = w[k] * ((high - x[k * STRIDE(0, 1)]) + above);
            loss += smoothing / (double)n * fold_row(SUM, terms, 1, n, 0);
        }
        losses[i * STRIDE(4, 0)] = (T)loss;
        sum += (T)loss;
        weights += w_label;
    }
    finish(OUT(T, 3), OUT(T, 6), sum, weights, c->attr[2] != 0);
    return PN_OK;
}

/* With p = exp(x - lse) and scale = dloss, divided by total where asked:
     dlogits[c] = scale ((1 - e) w[l] (p[c] - [c = l]) + e / n (p[c] sum w - w[c])). */
DEFINE(cross_entropy_grad)
{
    const int64_t m = c->dim[0], n = c->dim[1], ignore = (int64_t)c->attr[0];
    const double smoothing = c->attr[1], share = smoothing / (double)n;
    const T *dloss = IN(T, 0), *weight = IN(T, 3), *lse = IN(T, 4);
    const int64_t *labels = IN(int64_t, 2);
    int error = indices_fit(c, 2, m, n, &ignore);
    if (error) return error;
    T *copy = pn_scratch((size_t)(3 * n + 1) * sizeof(T));
    if (!copy) return PN_NO_MEMORY;
    const T *w = smoothing != 0 ? contiguous(weight, STRIDE(3, 0), n, copy + n) : NULL;
    const double w_sum = smoothing != 0 ? fold_row(SUM, w, 1, n, 0) : 0;
    const double divisor = c->attr[2] != 0 ? *IN(T, 5) : 1;

    for (int64_t i = 0; i < m; i++) {
        const int64_t label = labels[i * STRIDE(2, 0)], ys = STRIDE(6, 1);
        T *y = OUT(T, 6) + i * STRIDE(6, 0), *dx = ys == 1 ? y : copy + 2 * n;
        if (label == ignore) {
            for (int64_t k = 0; k < n; k++) y[k * ys] = 0;
            continue;
        }
        const T *x = contiguous(IN(T, 1) + i * STRIDE(1, 0), STRIDE(1, 1), n, copy);
        const double scale = dloss[i * STRIDE(0, 0)] / divisor;
        const double hit = scale * (1 - smoothing) * weight[label * STRIDE(3, 0)];
        const T gain = (T)(hit + scale * share * w_sum), spread = (T)(scale * share);
        const vec shift = vset(lse[i * STRIDE(4, 0)]);
        for (int64_t k = 0; k < n; k += LANES) {
            const int64_t left = n - k;
            vec d = gain * vexp((left >= LANES ? vload(x + k) : vload_part(x + k, left)) - shift);
            if (w) d -= spread * (left >= LANES ? vload(w + k) : vload_part(w + k, left));
            if (left >= LANES) vstore(dx + k, d);
            else vstore_part(dx + k, d, left);
        }
        dx[label] -= (T)hit;
        if (dx != y) for (int64_t k = 0; k < n; k++) y[k * ys] = dx[k];
    }
    return PN_OK;
}

/* The same on logarithms of probabilities: loss = -w[l] logp[l]. */
DEFINE(nll)
{
    const int64_t m = c->dim[0], n = c->dim[1], ignore = (int64_t)c->attr[0];
    const T *logp = IN(T, 0), *weight = IN(T, 2);
    const int64_t *labels = IN(int64_t, 1);
    T *losses = OUT(T, 4);
    int error = indices_fit(c, 1, m, n, &ignore);
    if (error) return error;

    double sum = 0, weights = 0;
    for (int64_t i = 0; i < m; i++) {
        const int64_t label = labels[i * STRIDE(1, 0)];
        losses[i * STRIDE(4, 0)] = 0;
        if (label == ignore) continue;
        const T w = weight[label * STRIDE(2, 0)], loss = -w * logp[i * STRIDE(0, 0) + label * STRIDE(0, 1)];
        losses[i * STRIDE(4, 0)] = loss;
        sum += loss;
        weights += w;
    }
    finish(OUT(T, 3), OUT(T, 5), sum, weights, c->attr[1] != 0);
    return PN_OK;
}

DEFINE(nll_grad)
{
    const int64_t m = c->dim[0], n = c->dim[1], ignore = (int64_t)c->attr[0];
    const T *dloss = IN(T, 0), *weight = IN(T, 2);
    const int64_t *labels = IN(int64_t, 1);
    int error = indices_fit(c, 1, m, n, &ignore);
    if (error) return error;
    const double divisor = c->attr[1] != 0 ? *IN(T, 3) : 1;

    for (int64_t i = 0; i < m; i++) {
        const int64_t label = labels[i * STRIDE(1, 0)], ys = STRIDE(4, 1);
        T *y = OUT(T, 4) + i * STRIDE(4, 0);
        for (int64_t k = 0; k < n; k++) y[k * ys] = 0;
        if (label != ignore)
            y[label * ys] = (T)(-(double)dloss[i * STRIDE(0, 0)] * weight[label * STRIDE(2, 0)] / divisor);
    }
    return PN_OK;
}
