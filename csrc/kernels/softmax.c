/* The softmax family: exponentials shifted by the row's maximum, so that finite numbers never overflow. A row
   that is all -inf, or has a +inf, is NaN. */
#include "pack.h"

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

/* y = f of one or two inputs, y as it was, and up to three numbers of their line. */
typedef vec (*per_number)(vec x, vec x1, vec y, vec p, vec q, vec r);

/* `apart`: whole vectors have a loop of their own, which an f of few constants gains by; one of many has not the registers
   for two. */
INLINE void each_number_of(int across, int apart, per_number f, int inputs, const sheets *s, const T *p, const T *q,
                           const T *r)
{
    const int64_t rows = across ? s->out.n : s->out.lines, width = across ? s->out.lines : s->out.n;
    const sheet *x = s->x, *z = inputs > 1 ? s->x + 1 : x;
    vec vp = {0}, vq = {0}, vr = {0};
    for (int64_t i = 0; i < rows; i++) {
        const T *xi = x->x + i * (across ? x->number : x->line), *zi = z->x + i * (across ? z->number : z->line);
        T *y = s->y + i * (across ? s->out.number : s->out.line);
        if (!across && p) vp = vset(p[i]);
        if (!across && q) vq = vset(q[i]);
        if (!across && r) vr = vset(r[i]);
        int64_t j = 0;
        for (; apart && j + LANES <= width; j += LANES) {
            if (across && p) vp = vload(p + j);
            if (across && q) vq = vload(q + j);
            if (across && r) vr = vload(r + j);
            vstore(y + j, f(vload(xi + j), vload(zi + j), vload(y + j), vp, vq, vr));
        }
        for (; j < width; j += LANES) {
            const int64_t k = width - j;
            if (across && p) vp = vload(p + j);
            if (across && q) vq = vload(q + j);
            if (across && r) vr = vload(r + j);
            const vec a = apart ? vload_part(xi + j, k) : vload_most(xi + j, k);
            const vec b = apart ? vload_part(zi + j, k) : vload_most(zi + j, k);
            const vec before = apart ? vload_part(y + j, k) : vload_most(y + j, k);
            vstore_most(y + j, f(a, b, before, vp, vq, vr), k);
            if (apart) break;
        }
    }
}

INLINE void each_number(int apart, per_number f, int inputs, const sheets *s, const T *p, const T *q, const T *r)
{
    if (s->across) each_number_of(1, apart, f, inputs, s, p, q, r);
    else each_number_of(0, apart, f, inputs, s, p, q, r);
}

#define EACH(name, expression) INLINE vec name(vec x, vec x1, vec y, vec p, vec q, vec r) { return expression; }
EACH(number_exp,      vexp(x - p))
EACH(number_share,    y / p)
EACH(number_shifted,  (x - p) - q)
EACH(number_centred,  (x - p) * x1)
EACH(number_residual, x - vexp(x1) * p)
EACH(number_gained,   q * vexp(x - p))
EACH(number_smoothed, q * vexp(x - p) - r * x1)

static void softmax_lines(const sheets *s)
{
    T high[VIRTUAL], sum[VIRTUAL];
    fold_lines(MAX, s->x, NULL, high);
    each_number(1, number_exp, 1, s, high, NULL, NULL);
    fold_lines(SUM, &s->out, NULL, sum);
    each_number(1, number_share, 1, s, sum, NULL, NULL);
}

static void log_softmax_lines(const sheets *s)
{
    T high[VIRTUAL], above[VIRTUAL];
    fold_lines(MAX, s->x, NULL, high);
    fold_lines(EXPONENTIALS, s->x, high, above);
    log_lines(above, s->out.lines);
    each_number(1, number_shifted, 1, s, high, above, NULL);
}

/* x[0] is dy, x[1] is the softmax or its logarithm, and y is dx. */
static void softmax_grad_lines(const sheets *s)
{
    T sum[VIRTUAL];
    sheet products = s->x[0];
    products.z = s->x[1].x, products.z_line = s->x[1].line, products.z_number = s->x[1].number;
    fold_lines(PRODUCTS, &products, NULL, sum);
    each_number(1, number_centred, 2, s, sum, NULL, NULL);
}

static void log_softmax_grad_lines(const sheets *s)
{
    T sum[VIRTUAL];
    fold_lines(SUM, s->x, NULL, sum);
    each_number(1, number_residual, 2, s, sum, NULL, NULL);
}

INLINE void copy_strided(T *y, int64_t ys, const T *x, int64_t xs, int64_t n)
{
    if (xs == 1 && ys == 1 && n >= LANES) memcpy(y, x, n * sizeof(T));
    else for (int64_t k = 0; k < n; k++) y[k * ys] = x[k * xs];
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

/* A sum over rows: of each 8th row by itself, as one chain would wait for its sums. */
enum { CHAINS = 8 };
typedef struct {
    double of[CHAINS];
} chains;

/* x is 0 from `rows` on to the next multiple of CHAINS. */
INLINE void add_rows(chains *sum, const T *x, int64_t rows)
{
    chains s = *sum;
    for (int64_t i = 0; i < rows; i += CHAINS)
        for (int q = 0; q < CHAINS; q++) s.of[q] += x[i + q];
    *sum = s;
}
INLINE double sum_of(const chains *sum)
{
    const double *s = sum->of;
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
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
    int8_t dloss, logits, labels, weight, losses, lse, dlogits;
    int8_t across;                       /* rows are short: vectors run across them, on a copy */
    int64_t n, ignore;
    double smoothing, divisor, w_sum;    /* divisor of dloss; sum of the weights of the classes */
    const T *w;                          /* these, as a row or w_number times each, where anything is smoothed */
    int64_t w_number;
    T *room, *more, *terms;              /* for lines of numbers, twice; and for a row */
} entropy;

/* Rows first .. first + rows, at most VIRTUAL: their logits, and number by number what else a row has. Numbers up to a
   whole vector are defined. */
typedef struct {
    int64_t first, rows;
    sheet   x;
    int64_t label[VIRTUAL];                                                     /* -1: ignored */
    T       w[VIRTUAL], dloss[VIRTUAL], lse[VIRTUAL], gain[VIRTUAL], spread[VIRTUAL], hit[VIRTUAL];    /* w of the label */
} entropy_rows;

/* Slot's numbers of these rows: read to, or written from, an array. */
INLINE void entropy_read(const entropy *e, const entropy_rows *r, int slot, T *to)
{
    const pn_call *c = e->c;
    copy_strided(to, 1, IN(T, slot) + r->first * STRIDE(slot, 0), STRIDE(slot, 0), r->rows);
    for (int64_t i = r->rows; i % LANES; i++) to[i] = 0;
}
INLINE void entropy_write(const entropy *e, const entropy_rows *r, int slot, const T *from)
{
    const pn_call *c = e->c;
    copy_strided(OUT(T, slot) + r->first * STRIDE(slot, 0), STRIDE(slot, 0), from, 1, r->rows);
}

/* Finds rows first .. first + rows. */
INLINE void entropy_find(const entropy *e, int64_t first, int64_t rows, entropy_rows *r)
{
    const pn_call *c = e->c;
    const int64_t ls = STRIDE(e->labels, 0), ws = STRIDE(e->weight, 0), ignore = e->ignore;
    const int64_t *labels = IN(int64_t, e->labels) + first * ls;
    const T *weight = IN(T, e->weight);
    const int64_t width = round_up(rows, LANES);
    r->first = first, r->rows = rows;
    for (int64_t i = 0; i < width; i++) {
        const int64_t label = i < rows ? labels[i * ls] : ignore;
        r->label[i] = label == ignore ? -1 : label;
        r->w[i] = label == ignore ? 0 : weight[label * ws];
    }

    const T *x = IN(T, e->logits) + first * STRIDE(e->logits, 0);
    const int64_t line = STRIDE(e->logits, 0), number = STRIDE(e->logits, 1);
    r->x = (sheet){ .x = x, .n = e->n, .lines = rows, .line = line, .number = number };
    if (!e->across || (line == 1 && rows == width)) return;
    pack(e->room, width, x, number, line, e->n, rows);
    r->x = (sheet){ .x = e->room, .n = e->n, .lines = width, .line = 1, .number = width };
}

/* The losses, added to sum. */
static void entropy_forward(const entropy *e, entropy_rows *r, chains *sum)
{
    const int64_t n = e->n, rows = r->rows, line = r->x.line, number = r->x.number;
    const double most = 1 - e->smoothing;
    const sheet *x = &r->x;
    T high[VIRTUAL], above[VIRTUAL], at_label[VIRTUAL], losses[VIRTUAL];        /* lse = high + above */
    double loss[VIRTUAL];

    fold_lines(MAX, x, NULL, high);
    if (e->across) {
        const sheet powers = { .x = e->more, .n = n, .lines = x->lines, .line = 1, .number = x->lines };
        const sheets s = { .across = 1, .x = { *x }, .out = powers, .y = e->more };
        each_number(1, number_exp, 1, &s, high, NULL, NULL);
        fold_lines(SUM, &powers, NULL, above);
    } else {
        fold_lines(EXPONENTIALS, x, high, above);
    }
    log_lines(above, rows);
    for (int64_t i = 0; i < rows; i++) at_label[i] = r->label[i] < 0 ? 0 : x->x[i * line + r->label[i] * number];
    for (int64_t i = 0; i < rows; i++) {
        r->lse[i] = high[i] + above[i];
        /* lse - x[label] without the rounding of lse, which may be large where the difference is small. */
        loss[i] = most * r->w[i] * ((double)high[i] - at_label[i] + above[i]);
    }
    for (int64_t i = 0; e->smoothing != 0 && i < rows; i++) {
        for (int64_t k = 0; k < n; k++)
            e->terms[k] = e->w[k * e->w_number] * ((high[i] - x->x[i * line + k * number]) + above[i]);
        loss[i] += e->smoothing / (double)n * row_sum(e->terms, n);
    }
    for (int64_t i = 0; i < rows; i++) losses[i] = r->label[i] < 0 ? 0 : (T)loss[i];
    for (int64_t i = rows; i % CHAINS; i++) losses[i] = 0;
    add_rows(sum, losses, rows);
    entropy_write(e, r, e->lse, r->lse);
    entropy_write(e, r, e->losses, losses);
}

/* The sum of the labels' weights. */
static double entropy_weights(const entropy *e, int64_t m)
{
    const pn_call *c = e->c;
    const int64_t ls = STRIDE(e->labels, 0), ws = STRIDE(e->weight, 0), ignore = e->ignore;
    const int64_t *labels = IN(int64_t, e->labels);
    const T *weight = IN(T, e->weight);
    chains sum = {{0}};
    for (int64_t i = 0; i < m; i += CHAINS, labels += CHAINS * ls) {
        T w[CHAINS] = {0};
        for (int64_t q = 0; q < least(CHAINS, m - i); q++)
            if (labels[q * ls] != ignore) w[q] = weight[labels[q * ls] * ws];
        add_rows(&sum, w, CHAINS);
    }
    return sum_of(&sum);
}

/* y = gain exp(x - lse), less spread times the weights where these count. */
INLINE void entropy_numbers(const entropy *e, const sheets *s, const T *lse, const T *gain, const T *spread)
{
    if (e->w) each_number(0, number_smoothed, 2, s, lse, gain, spread);
    else each_number(0, number_gained, 1, s, lse, gain, NULL);
}

INLINE void entropy_scale(const entropy *e, entropy_rows *r, int64_t i, double scale)
{
    const double share = e->smoothing / (double)e->n, of_label = scale * (1 - e->smoothing) * r->w[i];
    r->hit[i] = (T)of_label, r->gain[i] = (T)(of_label + scale * share * e->w_sum), r->spread[i] = (T)(scale * share);
}

/* With p = exp(x - lse) and scale = dloss, divided by total where asked:
     dlogits[c] = scale ((1 - e) w[l] (p[c] - [c = l]) + e / n (p[c] sum w - w[c])). */
static void entropy_backward(const entropy *e, entropy_rows *r)
{
    const pn_call *c = e->c;
    const int64_t n = e->n, rows = r->rows, ys = STRIDE(e->dlogits, 1), y_line = STRIDE(e->dlogits, 0);
    T *y = OUT(T, e->dlogits) + r->first * y_line;
    if (e->losses < 0) entropy_read(e, r, e->lse, r->lse);
    if (STRIDE(e->dloss, 0)) {
        entropy_read(e, r, e->dloss, r->dloss);
        for (int64_t i = 0; i < round_up(rows, LANES); i++) entropy_scale(e, r, i, r->dloss[i] / e->divisor);
    } else {
        const double scale = *IN(T, e->dloss) / e->divisor;
        for (int64_t i = 0; i < round_up(rows, LANES); i++) entropy_scale(e, r, i, scale);
    }
    if (e->across) {
        const int direct = y_line == 1 && rows % LANES == 0;
        T *dx = direct ? y : e->room;
        const int64_t number = direct ? ys : round_up(rows, LANES);
        const sheet out = { .x = dx, .n = n, .lines = r->x.lines, .line = 1, .number = number };
        const sheets s = { .across = 1, .x = { r->x, { .x = e->w, .number = e->w_number } }, .out = out, .y = dx };
        entropy_numbers(e, &s, r->lse, r->gain, r->spread);
        for (int64_t i = 0; i < rows; i++)
            if (r->label[i] >= 0) dx[r->label[i] * number + i] -= r->hit[i];
            else for (int64_t k = 0; k < n; k++) dx[k * number + i] = 0;
        if (!direct) unpack(dx, number, y, ys, y_line, n, rows);
        return;
    }
    const int direct = r->x.number == 1 && ys == 1;
    for (int64_t i = 0, lines; i < rows; i += lines, y += lines * y_line) {
        for (lines = 0; i + lines < rows && r->label[i + lines] >= 0 && (direct || lines == 0); lines++) {}
        if (lines == 0) {
            for (int64_t k = 0; k < n; k++) y[k * ys] = 0;
            lines = 1;
            continue;
        }
        const T *x = r->x.x + i * r->x.line;
        T *dx = direct ? y : e->more;
        if (!direct) copy_strided(e->room, 1, x, r->x.number, n), x = e->room;
        const sheets s = { .x = { { .x = x, .line = r->x.line }, { .x = e->w } },
                           .out = { .n = n, .lines = lines, .line = y_line }, .y = dx };
        entropy_numbers(e, &s, r->lse + i, r->gain + i, r->spread + i);
        for (int64_t q = 0; q < lines; q++) dx[q * y_line + r->label[i + q]] -= r->hit[i + q];
        if (!direct) copy_strided(y, ys, dx, 1, n);
    }
}

/* Checks the labels and finds room; attrs are the same for all three kernels. */
static int entropy_begin(entropy *e, int64_t m)
{
    enum { SHORT = 96 / sizeof(T) };     /* a row that takes longer by itself */
    const pn_call *c = e->c;
    const int64_t n = c->dim[1], lines = n <= SHORT ? VIRTUAL : 1;
    e->n = n, e->ignore = (int64_t)c->attr[0], e->smoothing = c->attr[1], e->across = lines > 1;
    int error = indices_fit(c, e->labels, m, n, &e->ignore);
    if (error) return error;
    e->room = pn_scratch((size_t)(n * (3 * lines + 2)) * sizeof(T) + 1);
    if (!e->room) return PN_NO_MEMORY;
    e->more = e->room + n * lines;
    if (e->smoothing == 0) return PN_OK;
    T *w = e->more + n * lines;
    e->terms = w + n * lines;
    copy_strided(e->terms, 1, IN(T, e->weight), STRIDE(e->weight, 0), n);
    e->w_sum = row_sum(e->terms, n);
    for (int64_t k = 0; k < n; k++) for (int64_t i = 0; i < lines; i++) w[k * lines + i] = e->terms[k];
    e->w = w, e->w_number = lines;
    return PN_OK;
}

/* The losses of all rows where there is a sum, and their gradients where there is a slot for these: rows on their way
   back are still in cache. */
INLINE void entropy_all(const entropy *e, int64_t m, chains *sum)
{
    const int64_t most = sum ? rows_at_once(e->n) : VIRTUAL;
    entropy_rows r;
    for (int64_t first = 0; first < m; first += most) {
        entropy_find(e, first, least(most, m - first), &r);
        if (sum) entropy_forward(e, &r, sum);
        if (e->dlogits >= 0) entropy_backward(e, &r);
    }
}

DEFINE(cross_entropy)
{
    const int64_t m = c->dim[0];
    entropy e = { .c = c, .dloss = -1, .logits = 0, .labels = 1, .weight = 2, .losses = 4, .lse = 5, .dlogits = -1 };
    int error = entropy_begin(&e, m);
    if (error) return error;
    chains sum = {{0}};
    entropy_all(&e, m, &sum);
    finish(OUT(T, 3), OUT(T, 6), sum_of(&sum), entropy_weights(&e, m), c->attr[2] != 0);
    return PN_OK;
}

DEFINE(cross_entropy_grad)
{
    entropy e = { .c = c, .dloss = 0, .logits = 1, .labels = 2, .weight = 3, .losses = -1, .lse = 4, .dlogits = 6 };
    int error = entropy_begin(&e, c->dim[0]);
    if (error) return error;
    e.divisor = c->attr[2] != 0 ? *IN(T, 5) : 1;
    entropy_all(&e, c->dim[0], NULL);
    return PN_OK;
}

DEFINE(cross_entropy_both)
{
    const int64_t m = c->dim[0];
    entropy e = { .c = c, .dloss = 0, .logits = 1, .labels = 2, .weight = 3, .losses = 5, .lse = 6, .dlogits = 8 };
    int error = entropy_begin(&e, m);
    if (error) return error;
    const double weights = entropy_weights(&e, m);
    chains sum = {{0}};
    e.divisor = c->attr[2] != 0 ? (T)weights : 1;
    entropy_all(&e, m, &sum);
    finish(OUT(T, 4), OUT(T, 7), sum_of(&sum), weights, c->attr[2] != 0);
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
