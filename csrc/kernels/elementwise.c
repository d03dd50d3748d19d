/* Elementwise kernels: a row says what a vector of the result is, of vectors x, y, z and attrs a, b, c, d. */
#define MAP_INTO(slot, name, inputs, expression)                                                     \
    INLINE vec each_##name(vec x, vec y, vec z, params p) { PARAMS; return expression; }             \
    DEFINE(name) { return vmap(c, each_##name, inputs, slot); }
#define MAP(name, inputs, expression) MAP_INTO(inputs, name, inputs, expression)

MAP(copy,    1, x)
MAP(fill,    0, a)
MAP(add,     2, x + y)
MAP(sub,     2, x - y)
MAP(mul,     2, x * y)
MAP(div,     2, x / y)
MAP(maximum, 2, vmax(x, y))
MAP(minimum, 2, vmin(x, y))
MAP(neg,     1, -x)
MAP(abs,     1, vabs(x))
MAP(sign,    1, vsel(x > 0, vset(1), vsel(x < 0, vset(-1), vset(0))))      /* of NaN 0, as in torch */
MAP(exp,     1, vexp(x))
MAP(expm1,   1, vexpm1(x))
MAP(erf,     1, verf(x))
MAP(sqrt,    1, vsqrt(x))
MAP(rsqrt,   1, 1 / vsqrt(x))
MAP(exp2,    1, vexp2(x))
MAP(copysign, 2, vcopysign(x, y))
MAP(clamp,   1, vmin(vmax(x, a), b))
MAP_INTO(0, accumulate, 2, x + y)

/* Functions that are two in vmath.h. A vector with special lanes leaves the inner loop: with a call inside, the
   constants would be loaded again for every vector. */
typedef vec (*pn_usual)(vec x, vec y, vint *usual);

INLINE int vmap_usual(const pn_call *c, pn_usual f, pn_each any, int inputs)
{
    T lanes[2][LANES];
    const vec no = {0};
    const params none = vparams((scalars){{0}});
    stream x = vstream(c, 0, lanes[0]), y = inputs > 1 ? vstream(c, 1, lanes[1]) : x;
    T *z = OUT(T, inputs);
    int64_t n = c->dim[0];
    for (; n >= LANES; x.p += x.step, y.p += y.step, z += LANES, n -= LANES) {
        for (; n >= LANES; x.p += x.step, y.p += y.step, z += LANES, n -= LANES) {
            vint usual;
            vec value = f(vload(x.p), vload(y.p), &usual);
            if (!vall(usual)) break;
            vstore(z, value);
        }
        if (n < LANES) break;
        vstore(z, any(vload(x.p), vload(y.p), no, none));
    }
    if (n > 0) vstore_part(z, any(vload_part(x.p, n), vload_part(y.p, n), no, none), n);
    return PN_OK;
}

#define USUAL(name, inputs, ...)                                                                     \
    INLINE vec usual_##name(vec x, vec y, vint *usual) { return name##_usual(__VA_ARGS__, usual); }  \
    INLINE vec each_##name(vec x, vec y, vec z, params p) { return name##_any(__VA_ARGS__); }        \
    INLINE int run_##name(const pn_call *c) { return vmap_usual(c, usual_##name, each_##name, inputs); }
USUAL(log,   1, x)
USUAL(log1p, 1, x)
USUAL(sin,   1, x)
USUAL(cos,   1, x)
USUAL(pow,   2, x, y)
DEFINE(log)   { return run_log(c); }
DEFINE(log1p) { return run_log1p(c); }
DEFINE(sin)   { return run_sin(c); }
DEFINE(cos)   { return run_cos(c); }

/* Functions that dense networks seldom need are libm's, one number at a time. (Of rounding GCC makes vectors.) Where denormal
   numbers count as 0, + 0 makes them so before libm takes them apart by their bits. */
#define ONE_BY_ONE(name, inputs, result)                                                             \
    DEFINE(name)                                                                                     \
    {                                                                                                \
        const T *left = IN(T, 0), *right = IN(T, inputs - 1);                                        \
        const int64_t n = c->dim[0], i_step = STRIDE(0, 0) != 0, j_step = STRIDE(inputs - 1, 0) != 0; \
        T *z = OUT(T, inputs);                                                                       \
        for (int64_t k = 0; k < n; k++) {                                                            \
            const T x = left[k * i_step], y = right[k * j_step];                                     \
            z[k] = result;                                                                           \
            (void)y;                                                                                 \
        }                                                                                            \
        return PN_OK;                                                                                \
    }
ONE_BY_ONE(log2,  1, LIBM(log2)(x + 0))
ONE_BY_ONE(log10, 1, LIBM(log10)(x))
ONE_BY_ONE(tan,   1, LIBM(tan)(x))
ONE_BY_ONE(asin,  1, LIBM(asin)(x))
ONE_BY_ONE(acos,  1, LIBM(acos)(x))
ONE_BY_ONE(sinh,  1, LIBM(sinh)(x))
ONE_BY_ONE(cosh,  1, LIBM(cosh)(x))
ONE_BY_ONE(asinh, 1, LIBM(asinh)(x))
ONE_BY_ONE(acosh, 1, LIBM(acosh)(x))
ONE_BY_ONE(atanh, 1, LIBM(atanh)(x))
ONE_BY_ONE(erfc,  1, LIBM(erfc)(x))
ONE_BY_ONE(floor, 1, LIBM(floor)(x))
ONE_BY_ONE(ceil,  1, LIBM(ceil)(x))
ONE_BY_ONE(trunc, 1, LIBM(trunc)(x))
ONE_BY_ONE(round, 1, LIBM(rint)(x))
ONE_BY_ONE(atan2, 2, LIBM(atan2)(LIBM(copysign)(x + 0, x), LIBM(copysign)(y + 0, y)))
ONE_BY_ONE(hypot, 2, LIBM(hypot)(x, y))
ONE_BY_ONE(fmod,  2, LIBM(fmod)(x, y))

/* A single exponent often has a shorter way, and a more exact one. Roots: -0 has the root 0, -inf has inf. */
INLINE vec root(vec x) { return vsel(x == -INFINITY, vset(INFINITY), vsqrt(x + 0)); }
#define POWERS(POWER)                                                                                \
    POWER(itself,       1,    x)                                                                     \
    POWER(square,       2,    x * x)                                                                 \
    POWER(cube,         3,    x * x * x)                                                             \
    POWER(inverse,      -1,   1 / x)                                                                 \
    POWER(root,         0.5,  root(x))                                                               \
    POWER(inverse_root, -0.5, 1 / root(x))
#define EACH_POWER(name, exponent, expression)                                                       \
    INLINE vec each_##name(vec x, vec y, vec z, params p) { return expression; }
#define RUN_POWER(name, exponent, expression)                                                        \
    if (*IN(T, 1) == (T)(exponent)) return vmap(c, each_##name, 1, 2);
POWERS(EACH_POWER)
DEFINE(pow)
{
    if (c->dim[0] && !STRIDE(1, 0)) {
        POWERS(RUN_POWER)
    }
    return run_pow(c);
}

/* GCC vectorises comparisons and conversions by itself, and packs their results better than vectors of T can be. NaN
   is unequal to everything. */
#define COMPARE_LOOP(x, operator, y) for (int64_t i = 0; i < n; i++) z[i] = (x) operator (y);
#define COMPARE(name, operator)                                                                      \
    DEFINE(name)                                                                                     \
    {                                                                                                \
        const T *restrict x = IN(T, 0), *restrict y = IN(T, 1);                                      \
        uint8_t *restrict z = OUT(uint8_t, 2);                                                       \
        const int64_t n = c->dim[0];                                                                 \
        if (STRIDE(0, 0) && STRIDE(1, 0)) COMPARE_LOOP(x[i], operator, y[i])                         \
        else if (STRIDE(0, 0)) COMPARE_LOOP(x[i], operator, y[0])                                    \
        else if (STRIDE(1, 0)) COMPARE_LOOP(x[0], operator, y[i])                                    \
        else COMPARE_LOOP(x[0], operator, y[0])                                                      \
        return PN_OK;                                                                                \
    }
COMPARE(eq, ==)
COMPARE(ne, !=)
COMPARE(lt, <)
COMPARE(le, <=)
COMPARE(gt, >)
COMPARE(ge, >=)

DEFINE(where)
{
    T lanes[2][LANES];
    uint8_t spread[LANES];
    const uint8_t *mask = IN(uint8_t, 0);
    stream x = vstream(c, 1, lanes[0]), y = vstream(c, 2, lanes[1]);
    T *z = OUT(T, 3);
    int64_t n = c->dim[0], step = LANES;
    if (n && !STRIDE(0, 0)) {
        memset(spread, *mask, LANES);
        mask = spread;
        step = 0;
    }
    for (; n >= LANES; n -= LANES) {
        vstore(z, vsel(vload_bool(mask, LANES), vload(x.p), vload(y.p)));
        mask += step, x.p += x.step, y.p += y.step, z += LANES;
    }
    vstore_part(z, vsel(vload_bool(mask, n), vload_part(x.p, n), vload_part(y.p, n)), n);
    return PN_OK;
}

#define CAST(number, type, conversion)                                                               \
    case number: {                                                                                   \
        const type *x = IN(type, 0);                                                                 \
        if (STRIDE(0, 0))                                                                            \
            for (int64_t i = 0; i < n; i++) y[i] = (T)(x[i] conversion);                             \
        else                                                                                         \
            for (int64_t i = 0; i < n; i++) y[i] = (T)(x[0] conversion);                             \
        return PN_OK;                                                                                \
    }
DEFINE(cast)
{
    T *y = OUT(T, 1);
    int64_t n = c->dim[0];
    switch (c->type2) { EACH_CASTABLE(CAST) }
    return PN_NO_KERNEL;
}

#undef MAP
#undef MAP_INTO
#undef USUAL
#undef ONE_BY_ONE
#undef POWERS
#undef EACH_POWER
#undef RUN_POWER
#undef COMPARE_LOOP
#undef COMPARE
#undef CAST
