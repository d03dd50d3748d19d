/* Optimizers as torch 2.13 defines them, in one pass over the parameters. p is the parameter, g its gradient;
   the hyperparameters are double and rounded to T once. Nothing is fused: the same bits on every ISA. */

/* Runs the block for each whole vector, at i, and then for the k lanes that are left. */
#define EACH_VECTOR_FROM(i, ...)                                                                \
    do {                                                                                        \
        for (; i + LANES <= n; i += LANES) { const int64_t k = LANES; __VA_ARGS__ }             \
        if (i < n) { const int64_t k = n - i; __VA_ARGS__ }                                     \
    } while (0)
#define EACH_VECTOR(...)                                                                        \
    do {                                                                                        \
        int64_t i = 0;                                                                          \
        EACH_VECTOR_FROM(i, __VA_ARGS__);                                                       \
    } while (0)
#define LOAD(x) (k == LANES ? vload_on((x) + i, n) : vload_part((x) + i, k))
#define STORE(y, x) (k == LANES ? vstore((y) + i, x) : vstore_part((y) + i, x, k))

/* Of n numbers: so many that what comes is not in the cache already, and what lies behind the last of them no great part. */
INLINE vec vload_on(const T *p, int64_t n)
{
    if (n > 8192) vprefetch(p);
    return vload(p);
}

/* A number, and whether it is another than the one that changes nothing: multiplications by 1 and 0 are left out, as the loops
   are bound by arithmetic. */
typedef struct {
    T of;
    int counts;
} factor;
INLINE factor factor_of(T x, T nothing) { return (factor){ x, x != nothing }; }

/* What the blocks share. g is in `slot`, hyper in the next one; the last two say where in hyper they stand.
   */
#define OPTIMIZER(slot, at_weight_decay, at_maximize)                                           \
    const int64_t n = c->dim[0], g_stride = STRIDE(slot, 0);                                    \
    const T *g = IN(T, slot);                                                                   \
    const double *hyper = IN(double, slot + 1);                                                 \
    const int maximize = hyper[at_maximize] != 0;                                               \
    const factor weight_decay = factor_of((T)hyper[at_weight_decay], 0)

/* The gradient as it is given, and the direction to step against. */
#define GIVEN turned(g_stride ? LOAD(g) : vset(*g), maximize)
#define GRADIENT(p) decayed(GIVEN, p, weight_decay)
INLINE vec turned(vec g, int maximize)
{
    if (maximize) g = -g;
    return g;
}
INLINE vec shrunk(vec w, factor shrink)
{
    if (shrink.counts) w *= shrink.of;
    return w;
}
INLINE vec decayed(vec g, vec p, factor weight_decay)
{
    if (weight_decay.counts) g += weight_decay.of * p;
    return g;
}

DEFINE(sgd)
{
    OPTIMIZER(1, 3, 5);
    T *p = OUT(T, 0);
    const T lr = (T)hyper[0];
    EACH_VECTOR(
        vec w = LOAD(p);
        STORE(p, w - lr * GRADIENT(w));
    );
    return PN_OK;
}

DEFINE(momentum)
{
    OPTIMIZER(2, 3, 5);
    T *p = OUT(T, 0), *v = OUT(T, 1);
    const T lr = (T)hyper[0], mu = (T)hyper[1], share = (T)(1 - hyper[2]);
    const int nesterov = hyper[4] != 0, first = hyper[6] == 1;
    EACH_VECTOR(
        vec w = LOAD(p), d = GRADIENT(w);
        vec velocity = d;
        if (!first) velocity = mu * LOAD(v) + share * d;
        STORE(v, velocity);
        if (nesterov) d += mu * velocity;
        else d = velocity;
        STORE(p, w - lr * d);
    );
    return PN_OK;
}

DEFINE(adagrad)
{
    OPTIMIZER(2, 2, 4);
    T *p = OUT(T, 0), *s = OUT(T, 1);
    const T eps = (T)hyper[3], rate = (T)hyper[5];
    EACH_VECTOR(
        vec w = LOAD(p), d = GRADIENT(w);
        vec sum = LOAD(s) + d * d;
        STORE(s, sum);
        STORE(p, w - rate * d / vsqrt_plus(sum, vset(eps)));
    );
    return PN_OK;
}

DEFINE(rmsprop)
{
    OPTIMIZER(2, 3, 6);
    T *p = OUT(T, 0), *s = OUT(T, 1);
    const T lr = (T)hyper[0], alpha = (T)hyper[1], rest = (T)(1 - hyper[1]), eps = (T)hyper[2];
    EACH_VECTOR(
        vec w = LOAD(p), d = GRADIENT(w);
        vec square = alpha * LOAD(s) + rest * d * d;
        STORE(s, square);
        STORE(p, w - lr * d / vsqrt_plus(square, vset(eps)));
    );
    return PN_OK;
}

/* With the gradient's average a (centered), or the momentum v, or both; the one not in use stays as it is. */
DEFINE(rmsprop_full)
{
    OPTIMIZER(4, 3, 6);
    T *p = OUT(T, 0), *s = OUT(T, 1), *a = OUT(T, 2), *v = OUT(T, 3);
    const T lr = (T)hyper[0], alpha = (T)hyper[1], rest = (T)(1 - hyper[1]), eps = (T)hyper[2];
    const T mu = (T)hyper[4];
    const int centered = hyper[5] != 0;
    EACH_VECTOR(
        vec w = LOAD(p), d = GRADIENT(w);
        vec square = alpha * LOAD(s) + rest * d * d, variance = square;
        STORE(s, square);
        if (centered) {
            vec average = alpha * LOAD(a) + rest * d;
            STORE(a, average);
            variance = square - average * average;
        }
        vec step = d / vsqrt_plus(variance, vset(eps));
        if (mu > 0) {
            step = mu * LOAD(v) + step;
            STORE(v, step);
        }
        STORE(p, w - lr * step);
    );
    return PN_OK;
}

DEFINE(adadelta)
{
    OPTIMIZER(3, 3, 4);
    T *p = OUT(T, 0), *s = OUT(T, 1), *u = OUT(T, 2);
    const T lr = (T)hyper[0], rho = (T)hyper[1], rest = (T)(1 - hyper[1]), eps = (T)hyper[2];
    EACH_VECTOR(
        vec w = LOAD(p), d = GRADIENT(w), moved = LOAD(u);
        vec square = rho * LOAD(s) + rest * d * d;
        vec delta = vsqrt(moved + eps) / vsqrt(square + eps) * d;
        STORE(s, square);
        STORE(u, rho * moved + rest * delta * delta);
        STORE(p, w - lr * delta);
    );
    return PN_OK;
}

/* What adam and amsgrad share, up to the second moment. Their step rate * m / (sqrt(v) / root + eps) is
   computed as rate * root * m / (sqrt(v) + eps * root), which has a division less. */
#define ADAM(slot)                                                                              \
    OPTIMIZER(slot, 4, 6);                                                                      \
    T *p = OUT(T, 0), *m = OUT(T, 1), *v = OUT(T, 2);                                           \
    const int decoupled = hyper[5] != 0;                                                        \
    const T beta1 = (T)hyper[1], rest1 = (T)(1 - hyper[1]);                                     \
    const T beta2 = (T)hyper[2], rest2 = (T)(1 - hyper[2]);                                     \
    const T rate = (T)(hyper[7] * hyper[8]), eps = (T)(hyper[3] * hyper[8]);                    \
    const factor shrink = factor_of(decoupled ? (T)(1 - hyper[0] * hyper[4]) : 1, 1);            \
    const factor added = decoupled ? (factor){0} : weight_decay
#define ADAM_MOMENTS                                                                            \
    vec w = LOAD(p), d = decayed(GIVEN, w, added);             \
    vec mean = beta1 * LOAD(m) + rest1 * d;                                                     \
    vec square = beta2 * LOAD(v) + rest2 * d * d;                                               \
    STORE(m, mean);                                                                             \
    STORE(v, square)

#define ADAM_STEP(root)                                                                         \
    ADAM_MOMENTS;                                                                               \
    STORE(p, shrunk(w, shrink) - rate * mean / root(square, vset(eps)));

DEFINE(adam)
{
    ADAM(3);
    int64_t i = 0;
    /* Mostly nothing else counts: a loop that need not ask has the ports for its arithmetic. For a third of the roots the divider
       has the time. */
    if (!maximize && !added.counts && !shrink.counts && g_stride) {
        const int64_t k = LANES;
        for (; i + 3 * LANES <= n; i += LANES) {
            { ADAM_STEP(vsqrt_plus) }
            i += LANES;
            { ADAM_STEP(vsqrt_plus) }
            i += LANES;
            { ADAM_STEP(vroot_plus) }
        }
    }
    EACH_VECTOR_FROM(i, ADAM_STEP(vsqrt_plus));
    return PN_OK;
}

DEFINE(amsgrad)
{
    ADAM(4);
    T *peak = OUT(T, 3);
    EACH_VECTOR(
        ADAM_MOMENTS;
        vec highest = vmax(LOAD(peak), square);
        STORE(peak, highest);
        STORE(p, shrunk(w, shrink) - rate * mean / vsqrt_plus(highest, vset(eps)));
    );
    return PN_OK;
}

/* Adam with the distance of g from its mean for g in the second moment, which eps keeps above 0. */
DEFINE(adabelief)
{
    ADAM(3);
    const T floor = (T)hyper[3];
    EACH_VECTOR(
        vec w = LOAD(p), d = decayed(GIVEN, w, added);
        vec mean = beta1 * LOAD(m) + rest1 * d, off = d - mean;
        vec square = beta2 * LOAD(v) + rest2 * off * off + floor;
        STORE(m, mean);
        STORE(v, square);
        STORE(p, shrunk(w, shrink) - rate * mean / vsqrt_plus(square, vset(eps)));
    );
    return PN_OK;
}

DEFINE(yogi)
{
    ADAM(3);
    (void)beta2;
    EACH_VECTOR(
        vec w = LOAD(p), d = decayed(GIVEN, w, added);
        vec mean = beta1 * LOAD(m) + rest1 * d, second = d * d, old = LOAD(v);
        vec square = old - rest2 * vsign(old - second) * second;
        STORE(m, mean);
        STORE(v, square);
        STORE(p, shrunk(w, shrink) - rate * mean / vsqrt_plus(square, vset(eps)));
    );
    return PN_OK;
}

DEFINE(adamax)
{
    OPTIMIZER(3, 4, 5);
    T *p = OUT(T, 0), *m = OUT(T, 1), *u = OUT(T, 2);
    const T beta1 = (T)hyper[1], rest1 = (T)(1 - hyper[1]), beta2 = (T)hyper[2], eps = (T)hyper[3];
    const T rate = (T)(hyper[0] / (1 - pow(hyper[1], hyper[6])));
    EACH_VECTOR(
        vec w = LOAD(p), d = GRADIENT(w);
        vec mean = beta1 * LOAD(m) + rest1 * d, highest = vmax(beta2 * LOAD(u), vabs(d) + eps);
        STORE(m, mean);
        STORE(u, highest);
        STORE(p, w - rate * mean / highest);
    );
    return PN_OK;
}

/* While the variance of the first steps cannot be told, momentum alone. */
DEFINE(radam)
{
    OPTIMIZER(3, 4, 6);
    T *p = OUT(T, 0), *m = OUT(T, 1), *v = OUT(T, 2);
    const int decoupled = hyper[5] != 0;
    const double step = hyper[7], left = pow(hyper[2], step), longest = 2 / (1 - hyper[2]) - 1;
    const double length = longest - 2 * step * left / (1 - left);
    const int rectified = length > 5;
    const double lr = hyper[0] / (1 - pow(hyper[1], step));
    const double share = sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length));
    const T rate = (T)(rectified ? lr * share * sqrt(1 - left) : lr), eps = (T)hyper[3];
    const T beta1 = (T)hyper[1], rest1 = (T)(1 - hyper[1]), beta2 = (T)hyper[2], rest2 = (T)(1 - hyper[2]);
    const factor shrink = factor_of(decoupled ? (T)(1 - hyper[0] * hyper[4]) : 1, 1), added = decoupled ? (factor){0} : weight_decay;
    EACH_VECTOR(
        vec w = LOAD(p), d = decayed(GIVEN, w, added);
        vec mean = beta1 * LOAD(m) + rest1 * d, square = beta2 * LOAD(v) + rest2 * d * d;
        vec move = rate * mean;
        if (rectified) move /= vsqrt_plus(square, vset(eps));
        STORE(m, mean);
        STORE(v, square);
        STORE(p, shrunk(w, shrink) - move);
    );
    return PN_OK;
}

DEFINE(nadam)
{
    OPTIMIZER(3, 4, 7);
    T *p = OUT(T, 0), *m = OUT(T, 1), *v = OUT(T, 2);
    const int decoupled = hyper[6] != 0;
    const double lr = hyper[0], mu = hyper[8], mu_next = hyper[9], product = hyper[10];
    const T now = (T)(lr * (1 - mu) / (1 - product)), next = (T)(lr * mu_next / (1 - product * mu_next));
    const T beta1 = (T)hyper[1], rest1 = (T)(1 - hyper[1]), beta2 = (T)hyper[2], rest2 = (T)(1 - hyper[2]);
    const T root = (T)sqrt(1 - pow(hyper[2], hyper[11])), eps = (T)hyper[3];
    const factor shrink = factor_of(decoupled ? (T)(1 - lr * hyper[4]) : 1, 1), added = decoupled ? (factor){0} : weight_decay;
    EACH_VECTOR(
        vec w = LOAD(p), d = decayed(GIVEN, w, added);
        vec mean = beta1 * LOAD(m) + rest1 * d, square = beta2 * LOAD(v) + rest2 * d * d;
        STORE(m, mean);
        STORE(v, square);
        STORE(p, shrunk(w, shrink) - (now * d + next * mean) / (vsqrt(square) / root + eps));
    );
    return PN_OK;
}

/* Each number has a step size of its own; where the sign of its gradient changes it waits for the next step. */
DEFINE(rprop)
{
    const int64_t n = c->dim[0], g_stride = STRIDE(3, 0);
    T *p = OUT(T, 0), *prev = OUT(T, 1), *size = OUT(T, 2);
    const T *g = IN(T, 3);
    const double *hyper = IN(double, 4);
    const int maximize = hyper[5] != 0;
    const vec minus = vset((T)hyper[1]), plus = vset((T)hyper[2]), low = vset((T)hyper[3]), high = vset((T)hyper[4]);
    EACH_VECTOR(
        vec d = GIVEN, same = d * LOAD(prev);
        vec step = vclamp(LOAD(size) * vsel(same > 0, plus, vsel(same < 0, minus, vset(1))), low, high);
        d = vsel(same < 0, vset(0), d);
        STORE(size, step);
        STORE(p, LOAD(p) - vsign(d) * step);
        STORE(prev, d);
    );
    return PN_OK;
}

DEFINE(asgd)
{
    OPTIMIZER(2, 4, 5);
    T *p = OUT(T, 0), *ax = OUT(T, 1);
    const T eta = (T)hyper[6], mu = (T)hyper[7];
    const factor shrink = factor_of((T)(1 - hyper[1] * hyper[6]), 1);
    const int first = hyper[7] == 1;
    EACH_VECTOR(
        vec w = LOAD(p), d = GRADIENT(w);
        w = shrunk(w, shrink) - eta * d;
        vec average = w;
        if (!first) average = LOAD(ax) + mu * (w - LOAD(ax));
        STORE(p, w);
        STORE(ax, average);
    );
    return PN_OK;
}

DEFINE(lion)
{
    const int64_t n = c->dim[0], g_stride = STRIDE(2, 0);
    T *p = OUT(T, 0), *m = OUT(T, 1);
    const T *g = IN(T, 2);
    const double *hyper = IN(double, 3);
    const int maximize = hyper[4] != 0;
    const T lr = (T)hyper[0];
    const factor shrink = factor_of((T)(1 - hyper[0] * hyper[3]), 1);
    const T beta1 = (T)hyper[1], rest1 = (T)(1 - hyper[1]), beta2 = (T)hyper[2], rest2 = (T)(1 - hyper[2]);
    EACH_VECTOR(
        vec w = LOAD(p), d = GIVEN, mean = LOAD(m);
        STORE(m, beta2 * mean + rest2 * d);
        STORE(p, shrunk(w, shrink) - lr * vsign(beta1 * mean + rest1 * d));
    );
    return PN_OK;
}

/* p is where gradients are taken, between z, where the steps lead, and the average of all z. */
DEFINE(schedulefree)
{
    OPTIMIZER(3, 4, 8);
    T *p = OUT(T, 0), *z = OUT(T, 1), *v = OUT(T, 2);
    const T beta2 = (T)hyper[2], rest2 = (T)(1 - hyper[2]), eps = (T)hyper[3];
    const T rate = (T)hyper[9], pull = (T)hyper[10], push = (T)(hyper[9] * (hyper[1] * (1 - hyper[10]) - 1));
    const T root = (T)sqrt(1 - pow(hyper[2], hyper[13]));
    EACH_VECTOR(
        vec w = LOAD(p), d = GIVEN, far = LOAD(z);
        vec square = beta2 * LOAD(v) + rest2 * d * d;
        d = decayed(d / (vsqrt(square) / root + eps), w, weight_decay);
        STORE(v, square);
        STORE(p, w + pull * (far - w) + push * d);
        STORE(z, far - rate * d);
    );
    return PN_OK;
}

/* The direction u; how far, the norms of p and u say. */
DEFINE(lamb)
{
    const int64_t n = c->dim[0], p_stride = STRIDE(3, 0), g_stride = STRIDE(4, 0);
    T *u = OUT(T, 0), *m = OUT(T, 1), *v = OUT(T, 2);
    const T *p = IN(T, 3), *g = IN(T, 4);
    const double *hyper = IN(double, 5);
    const int maximize = hyper[5] != 0;
    const T eps = (T)hyper[3];
    const factor weight_decay = factor_of((T)hyper[4], 0);
    const T beta1 = (T)hyper[1], rest1 = (T)(1 - hyper[1]), beta2 = (T)hyper[2], rest2 = (T)(1 - hyper[2]);
    const T whole = (T)(1 - pow(hyper[1], hyper[6])), root = (T)sqrt(1 - pow(hyper[2], hyper[6]));
    EACH_VECTOR(
        vec d = GIVEN;
        vec mean = beta1 * LOAD(m) + rest1 * d, square = beta2 * LOAD(v) + rest2 * d * d;
        STORE(m, mean);
        STORE(v, square);
        d = mean / whole / (vsqrt(square) / root + eps);
        STORE(u, decayed(d, p_stride ? LOAD(p) : vset(*p), weight_decay));
    );
    return PN_OK;
}

/* Once a step, before the parameters: counts it in the last entry. */
DEFINE(tick)
{
    OUT(double, 0)[(c->dim[0] - 1) * STRIDE(0, 0)] += 1;
    return PN_OK;
}

DEFINE(adagrad_tick)
{
    double *hyper = OUT(double, 0);
    const int64_t s = STRIDE(0, 0);
    const double lr = hyper[0], lr_decay = hyper[s], step = hyper[6 * s] + 1;
    hyper[6 * s] = step;
    hyper[5 * s] = lr / (1 + (step - 1) * lr_decay);
    return PN_OK;
}

DEFINE(adam_tick)
{
    double *hyper = OUT(double, 0);
    const int64_t s = STRIDE(0, 0);
    const double lr = hyper[0], beta1 = hyper[s], beta2 = hyper[2 * s], step = hyper[9 * s] + 1;
    hyper[9 * s] = step;
    hyper[7 * s] = lr / (1 - pow(beta1, step));
    hyper[8 * s] = sqrt(1 - pow(beta2, step));
    return PN_OK;
}

DEFINE(nadam_tick)
{
    double *hyper = OUT(double, 0);
    const int64_t s = STRIDE(0, 0);
    const double beta1 = hyper[s], decay = hyper[5 * s], step = hyper[11 * s] + 1;
    hyper[11 * s] = step;
    hyper[8 * s] = beta1 * (1 - 0.5 * pow(0.96, step * decay));
    hyper[9 * s] = beta1 * (1 - 0.5 * pow(0.96, (step + 1) * decay));
    hyper[10 * s] *= hyper[8 * s];
    return PN_OK;
}

/* This step's eta and mu are what the one before has left. */
DEFINE(asgd_tick)
{
    double *hyper = OUT(double, 0);
    const int64_t s = STRIDE(0, 0);
    const double lr = hyper[0], lambd = hyper[s], alpha = hyper[2 * s], t0 = hyper[3 * s], step = hyper[10 * s] + 1;
    hyper[10 * s] = step;
    hyper[6 * s] = hyper[8 * s];
    hyper[7 * s] = hyper[9 * s];
    hyper[8 * s] = lr / pow(1 + lambd * lr * step, alpha);
    hyper[9 * s] = 1 / (step - t0 > 1 ? step - t0 : 1);
    return PN_OK;
}

DEFINE(schedulefree_tick)
{
    double *hyper = OUT(double, 0);
    const int64_t s = STRIDE(0, 0);
    const double step = hyper[13 * s] + 1, warmup = hyper[7 * s];
    const double rate = step < warmup ? hyper[0] * step / warmup : hyper[0];
    const double lr_max = rate > hyper[11 * s] ? rate : hyper[11 * s];
    const double weight = pow(step, hyper[5 * s]) * pow(lr_max, hyper[6 * s]), sum = hyper[12 * s] + weight;
    hyper[13 * s] = step;
    hyper[9 * s] = rate;
    hyper[10 * s] = sum > 0 ? weight / sum : 0;
    hyper[11 * s] = lr_max;
    hyper[12 * s] = sum;
    return PN_OK;
}

DEFINE(adafactor_tick)
{
    double *hyper = OUT(double, 0);
    const int64_t s = STRIDE(0, 0);
    const double lr = hyper[0], step = hyper[8 * s] + 1, slow = 1 / sqrt(step);
    hyper[8 * s] = step;
    hyper[6 * s] = pow(step, hyper[s]);
    hyper[7 * s] = lr < slow ? lr : slow;
    return PN_OK;
}
