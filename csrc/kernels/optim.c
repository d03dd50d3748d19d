/* Optimizers as torch 2.13 defines them, in one pass over the parameters. p is the parameter, g its gradient;
   the hyperparameters are double and rounded to T once. Nothing is fused: the same bits on every ISA. */

/* Runs the block for each whole vector, at i, and then for the k lanes that are left. */
#define EACH_VECTOR(...)                                                                        \
    do {                                                                                        \
        int64_t i = 0;                                                                          \
        for (; i + LANES <= n; i += LANES) { const int64_t k = LANES; __VA_ARGS__ }             \
        if (i < n) { const int64_t k = n - i; __VA_ARGS__ }                                     \
    } while (0)
#define LOAD(x) (k == LANES ? vload((x) + i) : vload_part((x) + i, k))
#define STORE(y, x) (k == LANES ? vstore((y) + i, x) : vstore_part((y) + i, x, k))

/* What the blocks share. g is in `slot`, hyper in the next one; the last two say where in hyper they stand.
   */
#define OPTIMIZER(slot, at_weight_decay, at_maximize)                                           \
    const int64_t n = c->dim[0], g_stride = STRIDE(slot, 0);                                    \
    const T *g = IN(T, slot);                                                                   \
    const double *hyper = IN(double, slot + 1);                                                 \
    const T sign = hyper[at_maximize] != 0 ? -1 : 1, weight_decay = (T)hyper[at_weight_decay]

/* The direction to step against. */
#define GRADIENT(p) decayed(sign * (g_stride ? LOAD(g) : vset(*g)), p, weight_decay)
INLINE vec decayed(vec g, vec p, T weight_decay)
{
    if (weight_decay != 0) g += weight_decay * p;
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
        STORE(p, w - rate * d / (vsqrt(sum) + eps));
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
        STORE(p, w - lr * d / (vsqrt(square) + eps));
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
        vec step = d / (vsqrt(variance) + eps);
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
    const T shrink = decoupled ? (T)(1 - hyper[0] * hyper[4]) : 1, added = decoupled ? 0 : weight_decay
#define ADAM_MOMENTS                                                                            \
    vec w = LOAD(p), d = decayed(sign * (g_stride ? LOAD(g) : vset(*g)), w, added);             \
    vec mean = beta1 * LOAD(m) + rest1 * d;                                                     \
    vec square = beta2 * LOAD(v) + rest2 * d * d;                                               \
    STORE(m, mean);                                                                             \
    STORE(v, square)

DEFINE(adam)
{
    ADAM(3);
    EACH_VECTOR(
        ADAM_MOMENTS;
        STORE(p, shrink * w - rate * mean / (vsqrt(square) + eps));
    );
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
        STORE(p, shrink * w - rate * mean / (vsqrt(highest) + eps));
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
