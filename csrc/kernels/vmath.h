/* Elementary functions of vectors, for both element types and every ISA.

   Errors in ulp (largest seen; denormal results: 1 to 2 of theirs):
     exp log pow 1.3   expm1 log1p softplus 1.8   tanh sigmoid 2.4   normcdf 4.5 (with FMA 3.4)
   Special values are C99's: NaN in, NaN out, and odd functions keep -0. Every table of coefficients is a
   minimax fit (Remez, 40 digits) of the function beside it; the size of its relative error stands there too. */
#ifndef PN_VMATH_H
#define PN_VMATH_H

#include "vec.h"

/* LN2_HIGH ends in enough zeros that n * LN2_HIGH is exact without FMA for every exponent n. */
#if PN_TYPE == 32
#define LN2_HIGH 0.693145752f
#define LN2_LOW  1.42860677e-6f
#define EXP_ZERO (-104.f)                /* exp rounds to 0 below, */
#define EXP_INF  89.f                    /* to infinity above, */
#define EXP_TINY (-20.f)                 /* and does not show beside 1 below */
#define MIN_NORMAL 0x1p-126f
static const T EXP_TAIL[] = {            /* (exp(r) - 1 - r) / r^2, |r| <= ln 2 / 2: 2^-26.2 */
    0.49999997f, 0.16666545f, 0.041668117f, 0.00836648047f, 0.00138189644f };
static const T LOG_TAIL[] = {            /* (log((1 + s) / (1 - s)) / s - 2) / z, z = s^2 < 0.0296: 2^-30.2 */
    0.666667759f, 0.399774492f, 0.298744261f };
static const T POW_TAIL[] = {            /* (that - 2/3) / z: 2^-36.8 */
    0.400001526f, 0.285470337f, 0.234210655f };
#define TWO_THIRDS_HIGH 0.666666687f
#define TWO_THIRDS_LOW  (-1.98682151e-8f)
#define NORMAL_ZERO 14.5f                /* the normal distribution is 0 left of -NORMAL_ZERO */
#define NORMAL_KNEE 3.f
static const T NORMAL_TAIL[] = {         /* see normal(): 2^-30.0 */
    0.729083717f, -0.509332001f, 0.230017707f, -0.0472626872f, -0.0104625206f, 0.00696930196f, 0.00102478417f,
    -0.00103252381f, -0.000244754629f, 0.000131253561f, 5.44549112e-05f };
#else
#define LN2_HIGH 6.93147180369123816490e-01
#define LN2_LOW  1.90821492927058770002e-10
#define EXP_ZERO (-746.)
#define EXP_INF  710.
#define EXP_TINY (-44.)
#define MIN_NORMAL 0x1p-1022
static const T EXP_TAIL[] = {            /* 2^-61.7 */
    0.5, 0.16666666666666677, 0.04166666666666631, 0.0083333333333217054, 0.0013888888889059669,
    0.00019841269885989481, 2.4801586982221643e-05, 2.755724429122606e-06, 2.7557563478670686e-07,
    2.5109028072085338e-08, 2.0826238492168047e-09 };
static const T LOG_TAIL[] = {            /* 2^-59.5 */
    0.66666666666667351, 0.3999999999940746, 0.28571428744146815, 0.2222219837799192, 0.18183575188690485,
    0.15313755192007486, 0.14799071684193016 };
static const T POW_TAIL[] = {            /* 2^-65.9 */
    0.40000000000001301, 0.2857142857048095, 0.22222222461286248, 0.18181788890082237, 0.1538657061339738,
    0.13260762327125047, 0.1316279726010241 };
#define TWO_THIRDS_HIGH 0.66666666666666663
#define TWO_THIRDS_LOW  3.7007434154171884e-17
#define NORMAL_ZERO 38.7
#define NORMAL_KNEE 5.
static const T NORMAL_TAIL[] = {         /* 2^-57.3 */
    0.76919304975006297, -0.66538250289005674, 0.49530561596997724, -0.31353315667129628,
    0.16502036617033974, -0.069118638706567009, 0.020795066800788554, -0.0029933767667615708,
    -0.00079786940748590492, 0.0005448990339824417, -5.9375677965355425e-05, -4.9762658696007991e-05,
    1.668105270635778e-05, 3.9803997763274757e-06, -2.7689772502624751e-06, -3.3557466204019913e-07,
    4.3291347335805981e-07, 4.0936884947141271e-08, -6.6024652577851997e-08, -8.3417632194030418e-09,
    7.935902300894883e-09, 1.4485532122736775e-09, -2.9650240542008866e-10 };
#endif
#define TERMS(table) table, (int)(sizeof(table) / sizeof(T))

/* c[0] + c[1] x + ... by Horner's rule. */
INLINE vec polynomial(vec x, const T *c, int n)
{
    vec p = vset(c[n - 1]);
#pragma GCC unroll 32
    for (int i = n - 2; i >= 0; i--) p = vfma(p, x, vset(c[i]));
    return p;
}

/* The sum a + b and, in *low, what rounding it lost, exactly. |a| >= |b|, or a = 0. */
INLINE vec sum_exact(vec a, vec b, vec *low)
{
    vec sum = a + b;
    *low = b - (sum - a);
    return sum;
}

/* The product a b and, in *low, what rounding it lost, exactly; by Dekker's halves where there is no FMA. */
INLINE vec product_exact(vec a, vec b, vec *low)
{
    vec product = a * b;
#if defined(__FMA__) || defined(__ARM_NEON)
    *low = vfma(a, b, -product);
#else
    const vec split = vset((T)(((TI)1 << (MANTISSA + 2) / 2) + 1));
    vec a_high = a * split - (a * split - a), b_high = b * split - (b * split - b);
    vec a_low = a - a_high, b_low = b - b_high;
    *low = a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low);
#endif
    return product;
}

/* x = n ln 2 + r, |r| <= ln 2 / 2, for |x| <= -EXP_ZERO; and the same of x + low, with low far below x. */
INLINE vec exp_reduce(vec x, vec *n)
{
    *n = vround(x * vset((T)1.4426950408889634));
    return vfma(*n, vset(-LN2_LOW), vfma(*n, vset(-LN2_HIGH), x));
}
INLINE vec exp_reduce_sum(vec x, vec low, vec *n)
{
    *n = vround(x * vset((T)1.4426950408889634));
    return vfma(*n, vset(-LN2_HIGH), x) + vfma(*n, vset(-LN2_LOW), low);
}

/* exp(r) - 1 for |r| <= ln 2 / 2. */
INLINE vec exp_rest(vec r) { return vfma(r * r, polynomial(r, TERMS(EXP_TAIL)), r); }

/* exp(x) for EXP_ZERO <= x <= EXP_INF. */
INLINE vec exp_inside(vec x)
{
    vec n, r = exp_reduce(x, &n);
    return vscale(1 + exp_rest(r), n);
}

INLINE vec vexp(vec x) { return exp_inside(vclamp(x, vset(EXP_ZERO), vset(EXP_INF))); }

/* exp(-|x|) */
INLINE vec exp_decay(vec x) { return exp_inside(vatleast(-vabs(x), vset(EXP_ZERO))); }

/* 2^n p + (2^n - 1), halved so that 2^n is finite. Tiny x is its own result: -0, and denormals, which have no
   half. */
INLINE vec vexpm1(vec x)
{
    vec n, r = exp_reduce(vclamp(x, vset(EXP_TINY), vset(EXP_INF)), &n);
    vec power = vpow2(n - 1), half = vfma(power, exp_rest(r), power - (T)0.5);
    return vsel(vabs(x) < vset((T)0.5 / (T)((TI)1 << MANTISSA)), x, half + half);
}

/* log(2^k (1 + f)) for 1 + f in [sqrt(1/2), sqrt(2)). With s = f / (2 + f), log(1 + f) = 2s + s^3 tail(s^2);
   as 2s is f - f^2/2 + s f^2/2, the leading term f is exact and what is rounded is small beside it. (A
   polynomial in f needs no division but thrice the terms, and is slower.) */
INLINE vec log_sum(vec k, vec f)
{
    vec s = f / (2 + f), z = s * s, h = (T)0.5 * f * f;
    vec tail = vfma(s, vfma(z, polynomial(z, TERMS(LOG_TAIL)), h), k * vset(LN2_LOW));
    return vfma(k, vset(LN2_HIGH), f - (h - tail));
}

/* vsplit for denormals as well. */
INLINE vec log_split(vec x, vec *k)
{
    const T up = (T)((TI)1 << MANTISSA);
    vint denormal = x < vset(MIN_NORMAL);
    vec m = vsplit(vsel(denormal, x * up, x), k);
    *k = *k - vsel(denormal, vset(MANTISSA), vset(0));
    return m;
}

INLINE vec vlog(vec x)
{
    vec k, m = log_split(x, &k);
    vec other = vsel(x == 0, vset(-INFINITY), vsel(x < 0, vset(NAN), x));
    return vsel((x > 0) & (x < vset(INFINITY)), log_sum(k, m - 1), other);
}

/* 1 + x is u + low exactly; u = 2^k m gives k and all but the last bits of f. */
INLINE vec vlog1p(vec x)
{
    vec u = 1 + x, t = u - x, low = (x - (u - t)) + (1 - t);
    vec k, m = vsplit(u, &k);
    vec y = log_sum(k, (m - 1) + low * vpow2(vatleast(-k, vset(-BIAS))));
    vec other = vsel(x == -1, vset(-INFINITY), vsel(x < -1, vset(NAN), x));
    return vsel((x > -1) & (x < vset(INFINITY)) & (x != 0), y, other);
}

/* log(1 + exp(x)) = max(x, 0) + log(1 + e), e = exp(-|x|) in [0, 1]. */
INLINE vec vsoftplus(vec x)
{
    vec e = exp_decay(x);
    vint large = e > vset((T)0.41421356237309505);
    vec y = log_sum(vsel(large, vset(1), vset(0)), vsel(large, (e - 1) * (T)0.5, e));
    return vatleast(x, vset(0)) + y;
}

INLINE vec vsigmoid(vec x)
{
    vec e = exp_decay(x);
    return vsel(x > 0, vset(1), e) / (1 + e);
}

/* With e = exp(2|x|) - 1, tanh|x| = e / (e + 2) = 1 - 2 / (e + 2): the first keeps all digits of a small x,
   the second is rounded less for a large one. d1 is what rounding lost in d = e + 2; 1 / d is (1 - q) / 2. */
INLINE vec vtanh(vec x)
{
    vec a = vabs(x), n, r = exp_reduce(vatmost(a + a, vset(-EXP_TINY)), &n);
    vec power = vpow2(n), e = vfma(power, exp_rest(r), power - 1);
    vec d1, d = sum_exact(vset(2), e, &d1);
    vint small = a < vset((T)0.55);
    vec q = vsel(small, e, vset(2)) / d;
    return vcopysign(vsel(small, vfma(q * d1, (T)0.5 * q - (T)0.5, q), 1 - q), x);
}

/* The standard normal distribution at x, and *density, exp(-x^2 / 2) / sqrt(2 pi). With a = |x|, the left
   tail is exp(-a^2 / 2) times a smooth function that falls like 1 / a: a polynomial in t = (a - KNEE) / (a +
   KNEE), over d = a + KNEE. What is lost in a^2, d and 1 / d would show in the last digits of the tail, so it
   is kept. */
INLINE vec normal(vec x, vec *density)
{
    vec a = vatmost(vabs(x), vset(NORMAL_ZERO));
    vec a1, square = product_exact(a, a, &a1), n;
    vec p = exp_rest(exp_reduce_sum(square * (T)-0.5, a1 * (T)-0.5, &n));

    vec d = a + NORMAL_KNEE, d1 = a - (d - NORMAL_KNEE), u = 1 / d;
    vec e1, e = product_exact(u, d, &e1), u1 = u * (((1 - e) - e1) - u * d1);
    vec t = vfma(u, vset(-2 * NORMAL_KNEE), vset(1)) - u1 * (2 * NORMAL_KNEE);
    vec q = polynomial(t, TERMS(NORMAL_TAIL)), g1, g = product_exact(u, q, &g1);

    vec tail = vscale(g + vfma(g, p, vfma(u1, q, g1)), n);
    *density = vscale(vfma(p, vset((T)0.39894228040143268), vset((T)0.39894228040143268)), n);
    return vsel(x > 0, 1 - tail, tail);
}

INLINE vec vnormcdf(vec x)
{
    vec density;
    return normal(x, &density);
}

/* libm's pow in the lanes that are not done. */
static __attribute__((noinline, cold)) vec pow_lanes(vec x, vec y, vec z, vint done)
{
    for (int i = 0; i < LANES; i++)
        if (!done[i]) z[i] = PN_TYPE == 32 ? powf(x[i], y[i]) : pow(x[i], y[i]);
    return z;
}

/* exp(y log|x|). An error in log x is multiplied by as much as 1000, so the logarithm is the sum of two
   vectors: s, z, w and v below have the rest of their value in s1, z1, w1 and v1. Zeros, infinities, NaN and
   |y| >= 2^(MANTISSA - 1) go to libm. */
INLINE vec vpow(vec x, vec y)
{
    vec base = vabs(x), k, m = log_split(base, &k), f = m - 1;

    vec d1, d = sum_exact(vset(2), f, &d1), inverse = 1 / d;           /* s = f / (2 + f) */
    vec s = f * inverse, p1, p = product_exact(s, d, &p1);
    vec s1 = (((f - p) - p1) - s * d1) * inverse;
    vec z1, z = product_exact(s, s, &z1);                               /* z = s^2 */
    z1 = vfma(s + s, s1, z1);
    vec w1, w = product_exact(z, vset(TWO_THIRDS_HIGH), &w1);          /* w = 2/3 z + 2/5 z^2 + ... */
    w1 = vfma(z, vset(TWO_THIRDS_LOW), vfma(z1, vset(TWO_THIRDS_HIGH), w1));
    w = sum_exact(w, vfma(z * z, polynomial(z, TERMS(POW_TAIL)), w1), &w1);
    vec v1, v = product_exact(s, w, &v1);                               /* v = s w */
    v1 = vfma(s, w1, vfma(s1, w, v1));
    vec low1, low2, high = sum_exact(k * vset(LN2_HIGH), s + s, &low1); /* log = k ln 2 + 2 s + v */
    high = sum_exact(high, v, &low2);
    vec low = vfma(k, vset(LN2_LOW), s1 + s1 + v1) + low1 + low2;
    high = sum_exact(high, low, &low);

    vec e1, e = product_exact(high, y, &e1), bounded = vclamp(e, vset(EXP_ZERO), vset(EXP_INF));
    e1 = vsel(e == bounded, vfma(low, y, e1), vset(0));
    vec n, r = exp_reduce_sum(bounded, e1, &n);
    vec power = vscale(1 + exp_rest(r), n);

    vec half = y * (T)0.5;
    vec negative = vsel(vround(y) != y, vset(NAN), vsel(vround(half) != half, -power, power));
    vec result = vsel(x < 0, negative, power);
    vint done = (base > 0) & (base < vset(INFINITY)) & (vabs(y) < vset((T)((TI)1 << (MANTISSA - 1))));
    return vmovemask(~done) ? pow_lanes(x, y, result, done) : result;
}

/* sigmoid(x) and sigmoid(-x), neither a difference. */
INLINE vec sigmoids(vec x, vec *mirror)
{
    vec e = exp_decay(x), large = 1 / (1 + e), small = e * large;
    *mirror = vsel(x > 0, small, large);
    return vsel(x > 0, large, small);
}

/* Derivatives of x sigmoid(x) and x vnormcdf(x). Their limits at infinity are products 0 * inf, so x stops
   where the factor beside it has become 0. */
INLINE vec silu_slope(vec x)
{
    vec mirror, s = sigmoids(x, &mirror);
    return s * vfma(vclamp(x, vset(EXP_ZERO), vset(-EXP_ZERO)), mirror, vset(1));
}
INLINE vec silu_curve(vec x)
{
    vec mirror, s = sigmoids(x, &mirror);
    return s * mirror * vfma(vclamp(x, vset(EXP_ZERO), vset(-EXP_ZERO)), mirror - s, vset(2));
}
INLINE vec gelu_slope(vec x)
{
    vec density, p = normal(x, &density);
    return vfma(vclamp(x, vset(-NORMAL_ZERO), vset(NORMAL_ZERO)), density, p);
}
INLINE vec gelu_curve(vec x)
{
    vec density, bounded = vclamp(x, vset(-NORMAL_ZERO), vset(NORMAL_ZERO));
    normal(x, &density);
    return density * vfma(-bounded, bounded, vset(2));
}

/* The usual x (1 + tanh(u)) / 2 is x sigmoid(2u): 2u = x (TANH_LINEAR + TANH_CUBIC x^2), that is
   2 sqrt(2 / pi) (x + 0.044715 x^3). Beyond |x| = TANH_FLAT the sigmoid is 0 or 1. */
#define TANH_LINEAR ((T)1.5957691216057308)
#define TANH_CUBIC  ((T)(1.5957691216057308 * 0.044715))
#define TANH_FLAT   ((T)(PN_TYPE == 32 ? 12 : 24))
INLINE vec gelu_tanh_value(vec x)
{
    return x * vsigmoid(x * vfma(x * x, vset(TANH_CUBIC), vset(TANH_LINEAR)));
}
INLINE vec gelu_tanh_slope(vec x)
{
    vec b = vclamp(x, vset(-TANH_FLAT), vset(TANH_FLAT)), square = b * b;
    vec mirror, s = sigmoids(b * vfma(square, vset(TANH_CUBIC), vset(TANH_LINEAR)), &mirror);
    return s * vfma(b * mirror, vfma(square, vset(3 * TANH_CUBIC), vset(TANH_LINEAR)), vset(1));
}
INLINE vec gelu_tanh_curve(vec x)
{
    vec b = vclamp(x, vset(-TANH_FLAT), vset(TANH_FLAT)), square = b * b;
    vec mirror, s = sigmoids(b * vfma(square, vset(TANH_CUBIC), vset(TANH_LINEAR)), &mirror);
    vec du = vfma(square, vset(3 * TANH_CUBIC), vset(TANH_LINEAR));
    vec bend = vfma((mirror - s) * du, du, b * (6 * TANH_CUBIC));
    return s * mirror * vfma(b, bend, du + du);
}

#endif
