/* Reductions over the middle axis of (a, n, b).

   n alone fixes the order in which n numbers are summed, so that neither ISA, strides, nor the other axes
   change a bit: number i goes to lane i mod VIRTUAL, lanes are folded in halves (lane l and l + VIRTUAL/2,
   and so on) after every BLOCK numbers, and blocks are added to a double. The error of a float32 sum is that
   of some 70 additions. Lanes start at 0, so none is ever -0, and one that no number goes to changes nothing. */
enum { VIRTUAL = 256 / sizeof(T), SLOTS = VIRTUAL / LANES, BLOCK = 4096 };

/* Up to VIRTUAL lines of n numbers each, elements from one line, and from one number, to the next; and for
   products, as many others. */
typedef struct {
    const T *x;
    int64_t  n, lines, line, number;
    const T *z;
    int64_t  z_line, z_number;
} sheet;

/* What is folded: numbers, their products with others, their distances from a centre, the squares or the
   exponentials of these. */
enum fold { SUM, MAX, MIN, PRODUCTS, DISTANCES, SQUARES, EXPONENTIALS };

INLINE T fold_start(enum fold op) { return op == MAX ? -INFINITY : op == MIN ? INFINITY : 0; }
INLINE int fold_centred(enum fold op) { return op == DISTANCES || op == SQUARES || op == EXPONENTIALS; }

/* `other` is the centre, or of a product the other factor. */
INLINE vec fold_term(enum fold op, vec x, vec other)
{
    if (fold_centred(op)) x -= other;
    if (op == PRODUCTS) x *= other;
    if (op == SQUARES) x *= x;
    if (op == EXPONENTIALS) x = vexp(x);
    return x;
}

INLINE vec fold_join(enum fold op, vec x, vec y)
{
    if (op == MAX) return vmax(x, y);
    if (op == MIN) return vmin(x, y);
    return x + y;
}

/* The same of numbers, faster; a NaN may get lost. */
INLINE vec fold_numbers(enum fold op, vec x, vec y)
{
    if (op == MAX) return vatleast(y, x);
    if (op == MIN) return vatmost(y, x);
    return x + y;
}

/* The terms of a vector, as far as there are numbers. */
INLINE vec fold_first(enum fold op, const T *x, const T *z, int64_t n, vec centre)
{
    if (n >= LANES) return fold_term(op, vload(x), op == PRODUCTS ? vload(z) : centre);
    const vec term = fold_term(op, vload_part(x, n), op == PRODUCTS ? vload_part(z, n) : centre);
    return op == SUM || op == PRODUCTS ? term : vsel(vlane() < viset((TI)n), term, vset(fold_start(op)));
}

/* A block of a contiguous row, of no more numbers than `slots` vectors hold unless these are all SLOTS; folded
   until one vector of lanes is left. */
INLINE vec fold_slots_of(int slots, enum fold op, const T *x, const T *z, int64_t n, vec centre)
{
    vint nan = {0};
    vec acc[SLOTS];
#pragma GCC unroll 16
    for (int s = 0; s < slots; s++) acc[s] = vset(fold_start(op));
    int64_t i = 0;
    for (; slots == SLOTS && i + VIRTUAL <= n; i += VIRTUAL)
        for (int s = 0; s < SLOTS; s++) {
            const vec term = fold_first(op, x + i + s * LANES, z + i + s * LANES, LANES, centre);
            if (op == MAX || op == MIN) nan |= term != term;
            acc[s] = fold_numbers(op, acc[s], term);
        }
#pragma GCC unroll 16
    for (int s = 0; s < slots; s++) {
        const int64_t left = n - i - s * LANES;
        if (left <= 0) break;
        const vec term = fold_first(op, x + i + s * LANES, z + i + s * LANES, left, centre);
        if (op == MAX || op == MIN) nan |= term != term;
        acc[s] = fold_numbers(op, acc[s], term);
    }
#pragma GCC unroll 4
    for (int half = slots / 2; half; half /= 2)
        if (n > half * LANES)
#pragma GCC unroll 16
            for (int s = 0; s < SLOTS / 2; s++)
                if (s < half) acc[s] = fold_numbers(op, acc[s], acc[s + half]);
    return op == MAX || op == MIN ? vsel(nan, vset(NAN), acc[0]) : acc[0];
}

INLINE vec fold_slots(enum fold op, const T *x, const T *z, int64_t n, vec centre)
{
    if (n <= 2 * LANES) return fold_slots_of(2, op, x, z, n, centre);
    if (n <= 4 * LANES) return fold_slots_of(4, op, x, z, n, centre);
    return fold_slots_of(SLOTS, op, x, z, n, centre);
}

/* LANES rows at a time: then lanes are folded for all of them by the same instructions. */
INLINE void fold_rows(enum fold op, const T *x, int64_t line, const T *z, int64_t z_line, int64_t n,
                      int64_t lines, const T *centre, double *folded)
{
    for (int64_t j = 0; j < lines; j += LANES) {
        const int64_t count = lines - j < LANES ? lines - j : LANES;
        vec row[LANES];
#pragma GCC unroll 16
        for (int k = 0; k < LANES; k++) row[k] = vset(0);
        for (int64_t k = j; k < j + count; k++)
            row[k - j] = fold_slots(op, x + k * line, z + k * z_line, n, vset(centre[k]));
#pragma GCC unroll 4
        for (int half = LANES / 2; half; half /= 2)
#pragma GCC unroll 16
            for (int k = 0; k < LANES / 2; k++)
                if (k < half)
                    row[k] = fold_join(op, vhalves(row[2 * k], row[2 * k + 1], half, 0),
                                       vhalves(row[2 * k], row[2 * k + 1], half, 1));
        for (int64_t k = 0; k < count; k++) folded[j + k] = row[0][k];
    }
}

/* `width` neighbouring columns, a vector of LANES in each slot; to the same bits as rows. The lanes of the
   definition come one after the other, in the order 0, 32, 16, 48, 8, ...: each fold follows its operands, and one
   sum for each level of folds has to wait. `whole`: width is VIRTUAL. */
INLINE void fold_columns_of(int whole, enum fold op, const T *x, int64_t stride, const T *z, int64_t z_stride,
                            int64_t n, int64_t width, const T *centre, double *folded)
{
    const enum fold plain = op == MAX || op == MIN ? op : SUM;
    vec acc[SLOTS], waiting[8][SLOTS];
    int64_t lanes = VIRTUAL;
    while (lanes / 2 >= n && lanes > 1) lanes /= 2;
    for (int64_t k = 0, lane = 0; k < lanes; k++) {
#pragma GCC unroll 16
        for (int s = 0; s < SLOTS; s++) acc[s] = vset(fold_start(op));
        for (int64_t i = lane; i < n; i += VIRTUAL) {
            const T *row = x + i * stride, *other = op == PRODUCTS ? z + i * z_stride : centre;
#pragma GCC unroll 16
            for (int s = 0; s < SLOTS; s++) {
                const int64_t left = whole ? LANES : width - s * LANES;
                if (left <= 0) break;
                vec number = {0}, with = {0};
                if (left >= LANES) number = vload(row + s * LANES), with = vload(other + s * LANES);
                else number = vload_part(row + s * LANES, left), with = vload_part(other + s * LANES, left);
                acc[s] = fold_join(op, acc[s], fold_term(op, number, with));
            }
        }
        int level = 0;
        for (; k >> level & 1; level++)
#pragma GCC unroll 16
            for (int s = 0; s < SLOTS; s++) {
                if (!whole && s * LANES >= width) break;
                acc[s] = fold_join(plain, waiting[level][s], acc[s]);
            }
#pragma GCC unroll 16
        for (int s = 0; s < SLOTS; s++) {
            if (!whole && s * LANES >= width) break;
            waiting[level][s] = acc[s];
        }
        for (int64_t bit = lanes / 2; bit && ((lane ^= bit) & bit) == 0; ) bit /= 2;       /* 1 more, bits reversed */
    }
    T row[VIRTUAL];
    for (int s = 0; s < SLOTS; s++) vstore(row + s * LANES, acc[s]);
    for (int64_t j = 0; j < width; j++) folded[j] = row[j];
}

/* to = the join of itself, or at first of the start, and n numbers. */
INLINE void join_run(enum fold op, int first, T *to, const T *x, int64_t n)
{
    const vec start = vset(fold_start(op));
    int64_t j = 0;
    for (; j + LANES <= n; j += LANES) vstore(to + j, fold_join(op, first ? start : vload(to + j), vload(x + j)));
    if (j == n) return;
    const vec old = first ? start : vload_part(to + j, n - j);
    vstore_part(to + j, fold_join(op, old, vload_part(x + j, n - j)), n - j);
}

/* Fewer columns, without a gap between rows: then as many rows as there are lanes are one run of numbers. */
INLINE void fold_run(enum fold op, const T *x, int64_t n, int64_t width, double *folded)
{
    T acc[VIRTUAL * VIRTUAL];
    int64_t lanes = VIRTUAL;
    while (lanes >= n && lanes > 1) lanes /= 2;
    join_run(op, 1, acc, x, (n < lanes ? n : lanes) * width);
    for (int64_t i = lanes; i < n; i += lanes)
        join_run(op, 0, acc, x + i * width, (n - i < lanes ? n - i : lanes) * width);
    for (int64_t half = lanes / 2; half; half /= 2) join_run(op, 0, acc, acc + half * width, half * width);
    for (int64_t j = 0; j < width; j++) folded[j] = n ? acc[j] : fold_start(op);
}

static void fold_block(enum fold op, const sheet *s, int64_t first, int64_t n, const T *centre, double *folded);

/* The numbers of a sheet from `first` on, n <= BLOCK of each line. Where neither neighbouring lines nor
   neighbouring numbers are contiguous, a line is gathered. */
INLINE void fold_part(enum fold op, const sheet *s, int64_t first, int64_t n, const T *centre, double *folded)
{
    const T *x = s->x + first * s->number, *z = op == PRODUCTS ? s->z + first * s->z_number : x;
    if (s->number == 1) {
        fold_rows(op, x, s->line, z, s->z_line, n, s->lines, centre, folded);
    } else if (s->line == 1 && s->lines == VIRTUAL) {
        fold_columns_of(1, op, x, s->number, z, s->z_number, n, VIRTUAL, centre, folded);
    } else if (s->line == 1 && s->lines > 1) {
        const int run = s->number == s->lines && (op == SUM || op == MAX || op == MIN);
        if (run) fold_run(op, x, n, s->lines, folded);
        else fold_columns_of(0, op, x, s->number, z, s->z_number, n, s->lines, centre, folded);
    } else {
        for (int64_t j = 0; j < s->lines; j++) {
            T row[BLOCK];
            const sheet gathered = { .x = row, .n = n, .lines = 1, .number = 1 };
            for (int64_t i = 0; i < n; i++) row[i] = x[j * s->line + i * s->number];
            for (int64_t i = 0; op == PRODUCTS && i < n; i++) row[i] *= z[j * s->z_line + i * s->z_number];
            fold_block(op == PRODUCTS ? SUM : op, &gathered, 0, n, centre + j, folded + j);
        }
    }
}

static void fold_block(enum fold op, const sheet *s, int64_t first, int64_t n, const T *centre, double *folded)
{
    switch (op) {
    case SUM: fold_part(SUM, s, first, n, centre, folded); break;
    case MAX: fold_part(MAX, s, first, n, centre, folded); break;
    case MIN: fold_part(MIN, s, first, n, centre, folded); break;
    case PRODUCTS: fold_part(PRODUCTS, s, first, n, centre, folded); break;
    case DISTANCES: fold_part(DISTANCES, s, first, n, centre, folded); break;
    case SQUARES: fold_part(SQUARES, s, first, n, centre, folded); break;
    case EXPONENTIALS: fold_part(EXPONENTIALS, s, first, n, centre, folded); break;
    }
}

INLINE double fold_two(enum fold op, double x, double y)
{
    if (op == MAX) return x > y || x != x ? x : y;
    if (op == MIN) return x < y || x != x ? x : y;
    return x + y;
}

/* The fold of each line. Of `centre` whole vectors are read; without, it is 0. */
static void fold(enum fold op, const sheet *s, const T *centre, double *total)
{
    static const T zero[VIRTUAL];
    if (!centre) centre = zero;
    fold_block(op, s, 0, s->n < BLOCK ? s->n : BLOCK, centre, total);
    for (int64_t first = BLOCK; first < s->n; first += BLOCK) {
        double folded[VIRTUAL];
        fold_block(op, s, first, s->n - first < BLOCK ? s->n - first : BLOCK, centre, folded);
        for (int64_t k = 0; k < s->lines; k++) total[k] = fold_two(op, total[k], folded[k]);
    }
}

/* The sum of a contiguous row. */
INLINE double row_sum(const T *x, int64_t n)
{
    double total;
    fold(SUM, &(sheet){ .x = x, .n = n, .lines = 1, .number = 1 }, NULL, &total);
    return total;
}

/* x and y of a reduction, with their strides along a, n and b. */
typedef struct {
    const T *x;
    T       *y;
    int64_t  a, n, b, xa, xn, xb, ya, yb;
} reduction;

/* The reduction of slot 0, anb, to slot 1, ab. a and b play the same part: b becomes the one along which x is
   contiguous, or else the longer one. */
INLINE reduction middle(const pn_call *c)
{
    const int64_t a = c->dim[0], b = c->dim[2], xa = STRIDE(0, 0), xb = STRIDE(0, 2);
    const reduction r = { IN(T, 0), OUT(T, 1), a, c->dim[1], b, xa, STRIDE(0, 1), xb, STRIDE(1, 0), STRIDE(1, 1) };
    const int swap = r.xn != 1 && (xa == 1) != (xb == 1) ? xa == 1 : a > b;
    return swap ? (reduction){ r.x, r.y, b, r.n, a, xb, r.xn, xa, r.yb, r.ya } : r;
}

/* As many neighbours along b as are reduced at once. */
INLINE sheet lines_at(const reduction *r, int64_t i, int64_t j)
{
    return (sheet){ .x = r->x + i * r->xa + j * r->xb, .n = r->n, .number = r->xn,
                    .lines = r->b - j < VIRTUAL ? r->b - j : VIRTUAL, .line = r->xb };
}

/* The fold, divided by `divisor`. */
INLINE int reduce(enum fold op, reduction r, double divisor)
{
    double total[VIRTUAL];
    for (int64_t i = 0; i < r.a; i++)
        for (int64_t j = 0; j < r.b; j += VIRTUAL) {
            const sheet s = lines_at(&r, i, j);
            fold(op, &s, NULL, total);
            for (int64_t k = 0; k < s.lines; k++) r.y[i * r.ya + (j + k) * r.yb] = (T)(total[k] / divisor);
        }
    return PN_OK;
}

DEFINE(sum) { return reduce(SUM, middle(c), 1); }
DEFINE(mean) { return reduce(SUM, middle(c), (double)c->dim[1]); }
DEFINE(max) { return reduce(MAX, middle(c), c->dim[1] ? 1 : NAN); }
DEFINE(min) { return reduce(MIN, middle(c), c->dim[1] ? 1 : NAN); }

/* The mean of each line, and its squared distances from it, summed and divided by `divisor`. Of each block the sum of
   squared distances from its rounded mean, less what the rounding put in; blocks are joined in double (Chan, Golub,
   LeVeque 1983). */
static void spread_of(const sheet *s, double divisor, double *mean, double *spread)
{
    T centre[VIRTUAL] = {0};
    double rest[VIRTUAL], more[VIRTUAL];
    for (int64_t k = 0; k < s->lines; k++) mean[k] = s->n ? 0 : NAN, spread[k] = 0;
    for (int64_t first = 0; first < s->n; first += BLOCK) {
        const int64_t n = s->n - first < BLOCK ? s->n - first : BLOCK;
        const double share = (double)n / (double)(first + n);
        fold_block(SUM, s, first, n, centre, rest);
        for (int64_t k = 0; k < s->lines; k++) centre[k] = (T)(rest[k] / (double)n);
        fold_block(DISTANCES, s, first, n, centre, rest);
        fold_block(SQUARES, s, first, n, centre, more);
        for (int64_t k = 0; k < s->lines; k++) {
            const double inside = more[k] - rest[k] * rest[k] / (double)n;
            const double step = centre[k] + rest[k] / (double)n - mean[k];
            spread[k] += (inside < 0 ? 0 : inside) + step * step * (double)first * share;
            mean[k] += step * share;
        }
    }
    for (int64_t k = 0; k < s->lines; k++) spread[k] /= divisor;
}

DEFINE(var)
{
    const reduction r = middle(c);
    const double freedom = fmax(0, (double)r.n - c->attr[0]);
    double mean[VIRTUAL], spread[VIRTUAL];
    for (int64_t i = 0; i < r.a; i++)
        for (int64_t j = 0; j < r.b; j += VIRTUAL) {
            const sheet s = lines_at(&r, i, j);
            spread_of(&s, freedom, mean, spread);
            for (int64_t k = 0; k < s.lines; k++) r.y[i * r.ya + (j + k) * r.yb] = (T)spread[k];
        }
    return PN_OK;
}
