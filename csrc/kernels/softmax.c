/* The softmax family: exponentials shifted by the row's maximum, so that finite numbers never overflow. A row
   that is all -inf, or has a +inf, is NaN. */

/* Lines to work on: of one or two inputs, and of the output. Either each is contiguous, or where `across` each
   lies beside its neighbours. */
typedef struct {
    int   across;
    sheet x[2], out;
    T    *y;                             /* what `out` reads */
} sheets;

/* A number for each line. Whole vectors of them are read, hence the zeros beyond. */
INLINE void fold_lines(enum fold op, const sheet *s, const T *centre, T *folded)
{
    double total[VIRTUAL];
    fold(op, s, centre, total);
    for (int64_t j = 0; j < s->lines; j++) folded[j] = (T)total[j];
    for (int64_t j = s->lines; j % LANES; j++) folded[j] = 0;
}

INLINE void log_lines(T *x, int64_t lines)
{
    for (int64_t j = 0; j < lines; j += LANES) vstore(x + j, vlog(vload(x + j)));
}

/* y = f of one or two inputs, y as it was, and up to two numbers of their line. */
typedef vec (*per_number)(vec x, vec x1, vec y, vec p, vec q);

INLINE void each_number_of(int across, per_number f, int inputs, const sheets *s, const T *p, const T *q)
{
    const int64_t rows = across ? s->out.n : s->out.lines, width = across ? s->out.lines : s->out.n;
    const sheet *x = s->x, *z = inputs > 1 ? s->x + 1 : x;
    vec vp = {0}, vq = {0};
    for (int64_t i = 0; i < rows; i++) {
        const T *xi = x->x + i * (across ? x->number : x->line), *zi = z->x + i * (across ? z->number : z->line);
        T *y = s->y + i * (across ? s->out.number : s->out.line);
        if (!across && p) vp = vset(p[i]);
        if (!across && q) vq = vset(q[i]);
        int64_t j = 0;
        for (; j + LANES <= width; j += LANES) {
            if (across && p) vp = vload(p + j);
            if (across && q) vq = vload(q + j);
            vstore(y + j, f(vload(xi + j), vload(zi + j), vload(y + j), vp, vq));
        }
        const int64_t k = width - j;
        if (k == 0) continue;
        if (across && p) vp = vload(p + j);
        if (across && q) vq = vload(q + j);
        vstore_part(y + j, f(vload_part(xi + j, k), vload_part(zi + j, k), vload_part(y + j, k), vp, vq), k);
    }
}

INLINE void each_number(per_number f, int inputs, const sheets *s, const T *p, const T *q)
{
    if (s->across) each_number_of(1, f, inputs, s, p, q);
    else each_number_of(0, f, inputs, s, p, q);
}

#define EACH(name, expression) INLINE vec name(vec x, vec x1, vec y, vec p, vec q) { return expression; }
EACH(number_exp,      vexp(x - p))
EACH(number_share,    y / p)
EACH(number_shifted,  (x - p) - q)
EACH(number_centred,  (x - p) * x1)
EACH(number_residual, x - vexp(x1) * p)

static void softmax_lines(const sheets *s)
{
    T high[VIRTUAL], sum[VIRTUAL];
    fold_lines(MAX, s->x, NULL, high);
    each_number(number_exp, 1, s, high, NULL);
    fold_lines(SUM, &s->out, NULL, sum);
    each_number(number_share, 1, s, sum, NULL);
}

static void log_softmax_lines(const sheets *s)
{
    T high[VIRTUAL], above[VIRTUAL];
    fold_lines(MAX, s->x, NULL, high);
    fold_lines(EXPONENTIALS, s->x, high, above);
    log_lines(above, s->out.lines);
    each_number(number_shifted, 1, s, high, above);
}

/* x[0] is dy, x[1] is the softmax or its logarithm, and y is dx. */
static void softmax_grad_lines(const sheets *s)
{
    T sum[VIRTUAL];
    sheet products = s->x[0];
    products.z = s->x[1].x, products.z_line = s->x[1].line, products.z_number = s->x[1].number;
    fold_lines(PRODUCTS, &products, NULL, sum);
    each_number(number_centred, 2, s, sum, NULL);
}

static void log_softmax_grad_lines(const sheets *s)
{
    T sum[VIRTUAL];
    fold_lines(SUM, s->x, NULL, sum);
    each_number(number_residual, 2, s, sum, NULL);
}

INLINE void copy_strided(T *y, int64_t ys, const T *x, int64_t xs, int64_t n)
{
    for (int64_t k = 0; k < n; k++) y[k * ys] = x[k * xs];
}

/* Short rows come many at a time, yet no more than stay in the cache from one pass to the next. */
INLINE int64_t rows_at_once(int64_t n)
{
    enum { CACHED = 2048 };
    return n * VIRTUAL <= CACHED ? VIRTUAL : n > CACHED ? 1 : CACHED / n;
}

/* f along the middle axis of the inputs and the output, which is the slot after them. Where all slots are
   contiguous along this axis, or along another one, f works on them as they are; otherwise on copies, line by
   line. */
static int along_middle(const pn_call *c, int inputs, void (*f)(const sheets *))
{
    const int64_t n = c->dim[1];
    if (n == 0) return PN_OK;                  /* however many lines of nothing there are */
    int row = 1, side_a = c->dim[0] > 1, side_b = c->dim[2] > 1;
    for (int slot = 0; slot <= inputs; slot++) {
        row &= STRIDE(slot, 1) == 1 || n == 1;
        side_a &= STRIDE(slot, 0) == 1;
        side_b &= STRIDE(slot, 2) == 1;
    }
    const int across = !row && (side_a || side_b), copied = !row && !across;
    const int inner = (across ? side_b : c->dim[2] > c->dim[0]) ? 2 : 0, outer = 2 - inner;
    const int64_t most = copied ? 1 : across ? VIRTUAL : rows_at_once(n);
    T *copy = copied ? pn_scratch((size_t)(3 * n + 1) * sizeof(T)) : NULL;
    if (copied && !copy) return PN_NO_MEMORY;

    for (int64_t i = 0; i < c->dim[outer]; i++)
        for (int64_t j = 0, lines; j < c->dim[inner]; j += lines) {
            lines = c->dim[inner] - j < most ? c->dim[inner] - j : most;
            sheets s = { .across = across };
            T *at[3];
            for (int slot = 0; slot <= inputs; slot++) {
                sheet *to = slot < inputs ? s.x + slot : &s.out;
                at[slot] = OUT(T, slot) + i * STRIDE(slot, outer) + j * STRIDE(slot, inner);
                *to = (sheet){ .x = at[slot], .n = n, .lines = lines, .line = STRIDE(slot, inner),
                               .number = across ? STRIDE(slot, 1) : 1 };
                if (!copied) continue;
                if (slot < inputs) copy_strided(copy + slot * n, 1, at[slot], STRIDE(slot, 1), n);
                to->x = copy + slot * n;
            }
            s.y = copied ? copy + inputs * n : at[inputs];
            f(&s);
            if (copied) copy_strided(at[inputs], STRIDE(inputs, 1), s.y, 1, n);
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
    copy_strided(to, 1, x, stride, n);
    return to;
}

/* The loss, from the sum of losses: divided by the total weight where asked. */
INLINE void finish(T *loss, T *total, double sum, double weights, int mean)
{
    *loss = (T)(mean ? sum / weights : sum);
    *total = (T)weights;
}

/* Both ways: where the operands lie, by slot. */
typedef struct {
    const pn_call *c;
    int dloss, logits, labels, weight, losses, lse, dlogits;
    int64_t n, ignore;
    double smoothing, divisor, w_sum;    /* divisor of dloss; sum of the weights of the classes */
    const T *w;                          /* contiguous, or NULL where nothing is smoothed */
    T *room;                             /* 3 n + 1 */
} entropy;

INLINE int64_t entropy_label(const entropy *e, int64_t i)
{
    return ((const int64_t *)e->c->buf[e->labels].data)[i * e->c->buf[e->labels].stride[0]];
}

/* Losses of rows first .. first + rows, at most rows_at_once, added to sum. */
static void entropy_forward(const entropy *e, int64_t first, int64_t rows, double *sum)
{
    const pn_call *c = e->c;
    const int64_t n = e->n;
    const T *weight = IN(T, e->weight);
    T highs[VIRTUAL], aboves[VIRTUAL];                  /* lse = high + above */
    const sheet s = { .x = IN(T, e->logits) + first * STRIDE(e->logits, 0), .n = n, .lines = rows,
                      .line = STRIDE(e->logits, 0), .number = STRIDE(e->logits, 1) };
    fold_lines(MAX, &s, NULL, highs);
    fold_lines(EXPONENTIALS, &s, highs, aboves);
    log_lines(aboves, rows);
    for (int64_t i = first; i < first + rows; i++) {
        const T *x = IN(T, e->logits) + i * STRIDE(e->logits, 0);
        const T high = highs[i - first], above = aboves[i - first];
        const int64_t label = entropy_label(e, i);
        T *loss_of_row = OUT(T, e->losses) + i * STRIDE(e->losses, 0);
        OUT(T, e->lse)[i * STRIDE(e->lse, 0)] = high + above;
        *loss_of_row = 0;
        if (label == e->ignore) continue;

        /* lse - x[label] without the rounding of lse, which may be large where the difference is small. */
        const double w_label = weight[label * STRIDE(e->weight, 0)];
        double loss = (1 - e->smoothing) * w_label * ((double)high - x[label * STRIDE(e->logits, 1)] + above);
        if (e->smoothing != 0) {
            T *terms = e->room;
            for (int64_t k = 0; k < n; k++)
                terms[k] = weight[k * STRIDE(e->weight, 0)] * ((high - x[k * STRIDE(e->logits, 1)]) + above);
            loss += e->smoothing / (double)n * row_sum(terms, n);
        }
        *loss_of_row = (T)loss;
        *sum += (T)loss;
    }
}

/* The sum of the labels' weights. */
static double entropy_weights(const entropy *e, int64_t m)
{
    const pn_call *c = e->c;
    double weights = 0;
    for (int64_t i = 0; i < m; i++) {
        const int64_t label = entropy_label(e, i);
        if (label == e->ignore) continue;
        weights += IN(T, e->weight)[label * STRIDE(e->weight, 0)];
    }
    return weights;
}

/* With p = exp(x - lse) and scale = dloss, divided by total where asked:
     dlogits[c] = scale ((1 - e) w[l] (p[c] - [c = l]) + e / n (p[c] sum w - w[c])). */
static void entropy_backward(const entropy *e, int64_t first, int64_t rows)
{
    const pn_call *c = e->c;
    const int64_t n = e->n, ys = STRIDE(e->dlogits, 1);
    const double share = e->smoothing / (double)n;
    for (int64_t i = first; i < first + rows; i++) {
        const int64_t label = entropy_label(e, i);
        T *y = OUT(T, e->dlogits) + i * STRIDE(e->dlogits, 0), *dx = ys == 1 ? y : e->room + 2 * n;
        if (label == e->ignore) {
            for (int64_t k = 0; k < n; k++) y[k * ys] = 0;
            continue;
        }
        const T *x = contiguous(IN(T, e->logits) + i * STRIDE(e->logits, 0), STRIDE(e->logits, 1), n, e->room);
        const double scale = IN(T, e->dloss)[i * STRIDE(e->dloss, 0)] / e->divisor;
        const double hit = scale * (1 - e->smoothing) * IN(T, e->weight)[label * STRIDE(e->weight, 0)];
        const T gain = (T)(hit + scale * share * e->w_sum), spread = (T)(scale * share);
        const vec shift = vset(IN(T, e->lse)[i * STRIDE(e->lse, 0)]);
        for (int64_t k = 0; k < n; k += LANES) {
            const int64_t left = n - k;
            vec d = gain * vexp((left >= LANES ? vload(x + k) : vload_part(x + k, left)) - shift);
            if (e->w) d -= spread * (left >= LANES ? vload(e->w + k) : vload_part(e->w + k, left));
            if (left >= LANES) vstore(dx + k, d);
            else vstore_part(dx + k, d, left);
        }
        dx[label] -= (T)hit;
        if (dx != y) for (int64_t k = 0; k < n; k++) y[k * ys] = dx[k];
    }
}

/* Checks the labels and finds room; attrs are the same for all three kernels. */
static int entropy_begin(entropy *e, int64_t m)
{
    const pn_call *c = e->c;
    e->n = c->dim[1], e->ignore = (int64_t)c->attr[0], e->smoothing = c->attr[1];
    int error = indices_fit(c, e->labels, m, e->n, &e->ignore);
    if (error) return error;
    if (e->dlogits < 0 && e->smoothing == 0) return PN_OK;
    e->room = pn_scratch((size_t)(3 * e->n + 1) * sizeof(T));
    if (!e->room) return PN_NO_MEMORY;
    if (e->smoothing == 0) return PN_OK;
    e->w = contiguous(IN(T, e->weight), STRIDE(e->weight, 0), e->n, e->room + e->n);
    e->w_sum = row_sum(e->w, e->n);
    return PN_OK;
}

DEFINE(cross_entropy)
{
    const int64_t m = c->dim[0], most = rows_at_once(c->dim[1]);
    entropy e = { .c = c, .dloss = -1, .logits = 0, .labels = 1, .weight = 2, .losses = 4, .lse = 5, .dlogits = -1 };
    int error = entropy_begin(&e, m);
    if (error) return error;
    double sum = 0;
    for (int64_t i = 0; i < m; i += most) entropy_forward(&e, i, least(most, m - i), &sum);
    finish(OUT(T, 3), OUT(T, 6), sum, entropy_weights(&e, m), c->attr[2] != 0);
    return PN_OK;
}

DEFINE(cross_entropy_grad)
{
    entropy e = { .c = c, .dloss = 0, .logits = 1, .labels = 2, .weight = 3, .losses = -1, .lse = 4, .dlogits = 6 };
    int error = entropy_begin(&e, c->dim[0]);
    if (error) return error;
    e.divisor = c->attr[2] != 0 ? *IN(T, 5) : 1;
    entropy_backward(&e, 0, c->dim[0]);
    return PN_OK;
}

/* Rows on their way back while they are still in cache. */
DEFINE(cross_entropy_both)
{
    const int64_t m = c->dim[0], most = rows_at_once(c->dim[1]);
    entropy e = { .c = c, .dloss = 0, .logits = 1, .labels = 2, .weight = 3, .losses = 5, .lse = 6, .dlogits = 8 };
    int error = entropy_begin(&e, m);
    if (error) return error;
    const double weights = entropy_weights(&e, m);
    double sum = 0;
    e.divisor = c->attr[2] != 0 ? (T)weights : 1;
    for (int64_t i = 0, rows; i < m; i += rows) {
        rows = least(most, m - i);
        entropy_forward(&e, i, rows, &sum);
        entropy_backward(&e, i, rows);
    }
    finish(OUT(T, 4), OUT(T, 7), sum, weights, c->attr[2] != 0);
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

/* The tau for which the numbers above it, less tau, sum to 1: of ever fewer of them (Michelot 1986), as each tau leaves
   out what cannot be above the last. All relative to the largest. */
DEFINE(sparsemax)
{
    const int64_t n = c->dim[1], xs = STRIDE(0, 1), ys = STRIDE(1, 1);
    for (int64_t line = 0; line < c->dim[0] * c->dim[2]; line++) {
        const int64_t i = line / c->dim[2], j = line % c->dim[2];
        const T *x = IN(T, 0) + i * STRIDE(0, 0) + j * STRIDE(0, 2);
        T *y = OUT(T, 1) + i * STRIDE(1, 0) + j * STRIDE(1, 2), peak = -INFINITY;
        double tau = -INFINITY;
        for (int64_t k = 0; k < n; k++)
            if (x[k * xs] > peak || x[k * xs] != x[k * xs]) peak = x[k * xs];     /* a NaN stays: nothing is above it */
        for (int64_t kept = 0, before = -1; kept != before;) {
            double sum = 0;
            before = kept, kept = 0;
            for (int64_t k = 0; k < n; k++) {
                double z = (double)x[k * xs] - peak;
                if (z > tau) sum += z, kept++;
            }
            tau = (sum - 1) / kept;
        }
        for (int64_t k = 0; k < n; k++) {
            double z = (double)x[k * xs] - peak - tau;
            y[k * ys] = z <= 0 ? 0 : (T)z;
        }
    }
    return PN_OK;
}
