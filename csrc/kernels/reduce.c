/* Reductions over the middle axis of (a, n, b).

   n alone fixes the order in which n numbers are summed, so that neither ISA, strides, nor the other axes
   change a bit: number i goes to lane i mod VIRTUAL, lanes are folded in halves (lane l and l + VIRTUAL/2,
   and so on) after every BLOCK numbers, and blocks are added to a double. The error of a float32 sum is that
   of some 70 additions. */
enum { VIRTUAL = 256 / sizeof(T), SLOTS = VIRTUAL / LANES, BLOCK = 4096 };

/* What is folded: numbers, their distances from a centre, the squares or the exponentials of these. */
enum fold { SUM, MAX, MIN, DISTANCES, SQUARES, EXPONENTIALS };

INLINE T fold_start(enum fold op) { return op == MAX ? -INFINITY : op == MIN ? INFINITY : 0; }

INLINE vec fold_term(enum fold op, vec x, vec centre)
{
    if (op == DISTANCES || op == SQUARES || op == EXPONENTIALS) x -= centre;
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

/* A macro, as it serves both T and double. */
#define FOLD_TWO(op, x, y)                                      \
    ((op) == MAX ? ((x) > (y) || (x) != (x) ? (x) : (y))        \
     : (op) == MIN ? ((x) < (y) || (x) != (x) ? (x) : (y)) : (x) + (y))

/* The first n lanes, as a mask. */
INLINE vint first_lanes(int64_t n)
{
    vint lane;
    for (int l = 0; l < LANES; l++) lane[l] = l;
    return lane < viset((TI)n);
}

/* One block of a contiguous row. */
INLINE T fold_block(enum fold op, const T *x, int64_t n, T centre)
{
    const vec at = vset(centre);
    vec acc[SLOTS];
    for (int s = 0; s < SLOTS; s++) acc[s] = vset(fold_start(op));
    int64_t i = 0;
    for (; i + VIRTUAL <= n; i += VIRTUAL)
        for (int s = 0; s < SLOTS; s++)
            acc[s] = fold_join(op, acc[s], fold_term(op, vload(x + i + s * LANES), at));
#pragma GCC unroll 16
    for (int s = 0; s < SLOTS; s++) {
        int64_t left = n - i - s * LANES;
        if (left <= 0) break;
        if (left > LANES) left = LANES;
        vec term = fold_term(op, vload_part(x + i + s * LANES, left), at);
        acc[s] = vsel(first_lanes(left), fold_join(op, acc[s], term), acc[s]);
    }
    for (int half = SLOTS / 2; half; half /= 2)
        for (int s = 0; s < half; s++) acc[s] = fold_join(op, acc[s], acc[s + half]);
    T lane[LANES];
    vstore(lane, acc[0]);
    for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) lane[l] = FOLD_TWO(op, lane[l], lane[l + half]);
    return lane[0];
}

/* A row with any stride: what is not contiguous is gathered block by block. */
INLINE double fold_row(enum fold op, const T *x, int64_t stride, int64_t n, T centre)
{
    if (stride == 1 && n <= BLOCK) return fold_block(op, x, n, centre);
    T row[BLOCK];
    double total = fold_start(op);
    for (int64_t i = 0; i < n; i += BLOCK) {
        const int64_t rest = n - i < BLOCK ? n - i : BLOCK;
        const T *block = x + i * stride;
        if (stride != 1) {
            for (int64_t k = 0; k < rest; k++) row[k] = block[k * stride];
            block = row;
        }
        double folded = fold_block(op, block, rest, centre);
        total = FOLD_TWO(op, total, folded);
    }
    return total;
}

/* width <= VIRTUAL neighbouring columns at once, the numbers of each `stride` apart; to the same bits as
   fold_row. */
INLINE void fold_columns(enum fold op, const T *x, int64_t stride, int64_t n, int64_t width,
                         const T *centre, double *total)
{
    T start[VIRTUAL], acc[VIRTUAL][VIRTUAL];
    for (int j = 0; j < VIRTUAL; j++) start[j] = fold_start(op);
    for (int64_t j = 0; j < width; j++) total[j] = fold_start(op);
    for (int64_t first = 0; first < n; first += BLOCK) {
        const int64_t rows = n - first < BLOCK ? n - first : BLOCK;
        for (int64_t i = 0; i < rows; i++) {
            const T *row = x + (first + i) * stride;
            T *to = acc[i % VIRTUAL];
            const T *from = i < VIRTUAL ? start : to;
            for (int64_t j = 0; j < width; j += LANES) {
                vec term = width - j >= LANES ? vload(row + j) : vload_part(row + j, width - j);
                vstore(to + j, fold_join(op, vload(from + j), fold_term(op, term, vload(centre + j))));
            }
        }
        for (int64_t half = VIRTUAL / 2; half; half /= 2)       /* lanes beyond `rows` would only add 0 */
            for (int64_t l = 0; l < half && l + half < rows; l++)
                for (int64_t j = 0; j < width; j += LANES)
                    vstore(&acc[l][j], fold_join(op, vload(&acc[l][j]), vload(&acc[l + half][j])));
        for (int64_t j = 0; j < width; j++) total[j] = FOLD_TWO(op, total[j], (double)acc[0][j]);
    }
}

/* x and y of a reduction, with their strides along a, n and b. */
typedef struct {
    const T *x;
    T       *y;
    int64_t  a, n, b, xa, xn, xb, ya, yb;
} reduction;

/* a and b play the same part: b becomes the one along which x is contiguous. */
INLINE reduction reduction_of(const T *x, T *y, int64_t a, int64_t n, int64_t b,
                              int64_t xa, int64_t xn, int64_t xb, int64_t ya, int64_t yb)
{
    if (xn != 1 && xa == 1 && (xb != 1 || a > b)) return (reduction){ x, y, b, n, a, xb, xn, xa, yb, ya };
    return (reduction){ x, y, a, n, b, xa, xn, xb, ya, yb };
}

/* The reduction of slot 0, anb, to slot 1, ab. */
INLINE reduction middle(const pn_call *c)
{
    return reduction_of(IN(T, 0), OUT(T, 1), c->dim[0], c->dim[1], c->dim[2],
                        STRIDE(0, 0), STRIDE(0, 1), STRIDE(0, 2), STRIDE(1, 0), STRIDE(1, 1));
}

/* How many neighbours along b are reduced at once, and their reduction at (i, j). */
INLINE int64_t columns_at_once(const reduction *r, int64_t j)
{
    if (r->xb != 1 || r->xn == 1) return 1;
    return r->b - j < VIRTUAL ? r->b - j : VIRTUAL;
}

INLINE void fold_at(enum fold op, const reduction *r, const T *x, int64_t width, const T *centre,
                    double *total)
{
    if (width == 1) total[0] = fold_row(op, x, r->xn, r->n, centre[0]);
    else fold_columns(op, x, r->xn, r->n, width, centre, total);
}

/* The fold, divided by `divisor`. */
INLINE int reduce(enum fold op, reduction r, double divisor)
{
    const T centre[VIRTUAL] = {0};
    double total[VIRTUAL];
    for (int64_t i = 0; i < r.a; i++)
        for (int64_t j = 0, width; j < r.b; j += width) {
            width = columns_at_once(&r, j);
            fold_at(op, &r, r.x + i * r.xa + j * r.xb, width, centre, total);
            for (int64_t k = 0; k < width; k++) r.y[i * r.ya + (j + k) * r.yb] = (T)(total[k] / divisor);
        }
    return PN_OK;
}

DEFINE(sum) { return reduce(SUM, middle(c), 1); }
DEFINE(mean) { return reduce(SUM, middle(c), (double)c->dim[1]); }
DEFINE(max) { return reduce(MAX, middle(c), c->dim[1] ? 1 : NAN); }
DEFINE(min) { return reduce(MIN, middle(c), c->dim[1] ? 1 : NAN); }

/* The sum of squared distances from the rounded mean, less what the rounding put in (Chan, Golub, LeVeque
   1983). */
DEFINE(var)
{
    const reduction r = middle(c);
    const double n = (double)r.n, freedom = fmax(0, n - c->attr[0]);
    T mean[VIRTUAL] = {0};
    double total[VIRTUAL], squares[VIRTUAL];
    for (int64_t i = 0; i < r.a; i++)
        for (int64_t j = 0, width; j < r.b; j += width) {
            const T *x = r.x + i * r.xa + j * r.xb;
            width = columns_at_once(&r, j);
            fold_at(SUM, &r, x, width, mean, total);
            for (int64_t k = 0; k < width; k++) mean[k] = (T)(total[k] / n);
            fold_at(DISTANCES, &r, x, width, mean, total);
            fold_at(SQUARES, &r, x, width, mean, squares);
            for (int64_t k = 0; k < width; k++) {
                double sum = squares[k] - total[k] * total[k] / n;
                r.y[i * r.ya + (j + k) * r.yb] = (T)((sum < 0 ? 0 : sum) / freedom);
            }
        }
    return PN_OK;
}
