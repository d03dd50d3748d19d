/* Elementary functions of vectors, for both element types and every ISA.

   Errors in ulp (largest seen, on any ISA; tests/test_vmath.py holds them, .ci/sweep.py looks at every float32):
     log 0.9   exp 1.1   log1p pow 1.5   softplus 1.7   expm1 2.0   tanh sin cos 2.1   sigmoid erf 2.4   normcdf 4.5
   exp, log and expm1 keep denormal results, 1 or 2 of theirs wrong; where an exponential is but a part, what is not
   a normal number may be 0. Special values are C99's: NaN in, NaN out, and odd functions keep -0. Every table of
   coefficients is a minimax fit (Remez, 40 digits) of the function beside it; the size of its relative error stands
   there too. */
#ifndef PN_VMATH_H
#define PN_VMATH_H

#include "vec.h"

/* LN2_HIGH ends in enough zeros that n * LN2_HIGH is exact without FMA for every exponent n. */
#if PN_TYPE == 32
#define LN2_HIGH 0.693145752f
#define LN2_LOW  1.42860677e-6f
#define EXP_ZERO (-104.f)                /* exp rounds to 0 below, */
#define EXP_INF  89.f                    /* to infinity above, */
#define EXP2_ZERO (-150.f)               /* the same of 2^x */
#define EXP2_INF  128.f
#define EXP_NORMAL 87.f                  /* it is a normal number from -EXP_NORMAL to EXP_NORMAL */
#define EXP_FLUSH (-88.f)                /* it is below the normal numbers here, */
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
#define NORMAL_ZERO 13.25f               /* the normal distribution is below the normal numbers left of -NORMAL_ZERO */
static const T NORMAL_ABOVE[] = {        /* over NORMAL_BELOW: the tail times exp(x^2 / 2), 2^-27.6 */
    0.5f, 0.435685041f, 0.181305794f, 0.0399838421f, 0.00402014016f };
static const T NORMAL_BELOW[] = { 1.f, 1.669255f, 1.19448025f, 0.464377783f, 0.100232011f, 0.0100768538f };
#define ERF_KNEE 0.92f
#define ERF_ONE  4.05f                   /* erf rounds to 1 above */
static const T ERF_NEAR[] = {            /* erf(x) / x - 1, in x^2: 2^-31.2 */
    0.128379166f, -0.376126349f, 0.112836972f, -0.0268594995f, 0.00520128617f, -0.000814559753f, 8.38239139e-05f };
static const T ERF_FAR[] = {             /* -log(1 - erf(x)): 2^-29.1 of erf */
    -2.68255844e-05f, 1.12883091f, 0.634661198f, 0.106924161f, -0.0243102033f, 0.0038923081f, -0.000383229868f,
    1.7221264e-05f };
#define PI_HIGH   3.1415925f           /* all three positive: where x is their multiple nothing cancels to -0 */
#define PI_MIDDLE 1.50995788e-07f
#define PI_LOW    1.07806059e-14f
#define SIN_FAR   1e5f                   /* multiples of pi are exact enough below */
static const T SIN_TAIL[] = {            /* (sin(r) / r - 1) / r^2, in r^2, |r| < 1.01 pi / 2: 2^-26.2; 1 at pi / 2 */
    -0.166666672f, 0.00833333377f, -0.000198407972f, 2.75233515e-06f, -2.38692337e-08f };
#else
#define LN2_HIGH 6.93147180369123816490e-01
#define LN2_LOW  1.90821492927058770002e-10
#define EXP_ZERO (-746.)
#define EXP_INF  710.
#define EXP2_ZERO (-1075.)
#define EXP2_INF  1024.
#define EXP_NORMAL 708.
#define EXP_FLUSH (-709.)
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
#define NORMAL_ZERO 37.66
static const T NORMAL_ABOVE[] = {        /* 2^-60.0 */
    0.5, 0.82702285404692033, 0.67820400274299764, 0.35626244227681153, 0.13151625653266671, 0.035487842051674073,
    0.0070790769792702891, 0.0010320740425771254, 0.00010564761814995199, 6.904868109904848e-06,
    2.2149716654768436e-07 };
static const T NORMAL_BELOW[] = {
    1., 2.4519302688967062, 2.8127653112038877, 1.9967832853444476, 0.97697151401409288, 0.34688288757628727,
    0.091507238705561905, 0.018008323389464297, 0.0026043339144966953, 0.00026537451785899773,
    1.7307937636919041e-05, 5.552110604189302e-07 };
#define ERF_KNEE 1.5
#define ERF_ONE  6.
static const T ERF_NEAR[] = {            /* 2^-57.7 */
    0.12837916709551256, -0.37612638903183659, 0.1128379167095217, -0.026866170644752444, 0.0052239776228879663,
    -0.00085483269193187468, 0.00012055330200268342, -1.4925599209876117e-05, 1.6461446817226053e-06,
    -1.6359554667776739e-07, 1.4764141301625795e-08, -1.2077473415961315e-09, 8.6725359506225136e-11,
    -4.8913250888877949e-12, 1.5771220060263339e-13 };
static const T ERF_FAR[] = {             /* 2^-57.7 */
    1.183873525067091e-05, 1.1282900329914292, 0.63693604467800169, 0.10206948938684056, -0.018030809345500824,
    -0.0014861081220754271, 0.0028406760578029593, -0.0013934506754298356, 0.00046759066881238838,
    -0.00012124919264165122, 2.5156480293614411e-05, -4.2125093241911908e-06, 5.6710074817295428e-07,
    -6.0581446277452797e-08, 5.0195134962515467e-09, -3.1093125441257571e-10, 1.3544129962617471e-11,
    -3.6981395875451905e-13, 4.75866410421529e-15 };
#define PI_HIGH   3.141592653589793
#define PI_MIDDLE 1.224646799147353e-16
#define PI_LOW    2.165713347843828e-32
#define SIN_FAR   1e9
static const T SIN_TAIL[] = {            /* 2^-61.4 */
    -0.16666666666666666, 0.0083333333333331736, -0.00019841269841201409, 2.75573192097752e-06,
    -2.5052106746131417e-08, 1.6058933249877185e-10, -7.6428213990131337e-13, 2.7193642813717996e-15 };
#endif
#define TERMS(table) table, (int)(sizeof(table) / sizeof(T))

/* c[0] + c[step] x + c[2 step] x^2 + ... by Horner's rule, for the first n of c. */
INLINE vec horner(vec x, const T *c, int n, int step)
{
    int last = (n - 1) / step * step;
    vec p = vset(c[last]);
#pragma GCC unroll 32
    for (int i = last - step; i >= 0; i -= step) p = vfma(p, x, vset(c[i]));
    return p;
}

INLINE vec even_odd(vec x, vec square, const T *c, int n)
{
    return vfma(horner(square, c + 1, n - 1, 2), x, horner(square, c, n, 2));
}

/* c[0] + c[1] x + ... A long chain of sums is what a vector waits for: it is cut into two, or four. */
INLINE vec polynomial(vec x, const T *c, int n)
{
    if (n < 8) return horner(x, c, n, 1);
    vec square = x * x;
    if (n < 20) return even_odd(x, square, c, n);
    vec fourth = square * square;
    vec even = vfma(horner(fourth, c + 2, n - 2, 4), square, horner(fourth, c, n, 4));
    return vfma(vfma(horner(fourth, c + 3, n - 3, 4), square, horner(fourth, c + 1, n - 1, 4)), x, even);
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

/* a (1 + b), also for an a so small that a b is denormal and counts as 0. */
INLINE vec grown(vec a, vec b)
{
#if defined(__FMA__) || defined(__ARM_NEON)
    return vfma(a, b, a);
#else
    return a * (1 + b);
#endif
}

/* x - a b, exactly where the two are so near to each other that the difference has no more digits. */
INLINE vec minus_product(vec x, vec a, vec b)
{
#if defined(__FMA__) || defined(__ARM_NEON)
    return vfma(-a, b, x);
#else
    vec low, product = product_exact(a, b, &low);
    return (x - product) - low;
#endif
}

/* x = n ln 2 + r, |r| <= ln 2 / 2, for |x| <= -EXP_ZERO, with n as vpow2 takes it; and the same of x + low, with
   low far below x. */
INLINE vec exp_reduce(vec x, vint *n)
{
    vec whole = vnearest(x, vset((T)1.4426950408889634), n);
    return vfma(whole, vset(-LN2_LOW), vfma(whole, vset(-LN2_HIGH), x));
}
INLINE vec exp_reduce_sum(vec x, vec low, vint *n)
{
    vec whole = vnearest(x, vset((T)1.4426950408889634), n);
    return vfma(whole, vset(-LN2_HIGH), x) + vfma(whole, vset(-LN2_LOW), low);
}

/* exp(r) - 1 for |r| <= ln 2 / 2. */
INLINE vec exp_rest(vec r) { return vfma(r * r, polynomial(r, TERMS(EXP_TAIL)), r); }

INLINE vec vexp(vec x)
{
    vint n;
    vec r = exp_reduce(vclamp(x, vset(EXP_ZERO), vset(EXP_INF)), &n);
    return vscale(exp_rest(r), n);
}

/* 2^x: what is left of x beside its nearest integer is exact. */
INLINE vec vexp2(vec x)
{
    vint n;
    vec inside = vclamp(x, vset(EXP2_ZERO), vset(EXP2_INF));
    vec r = inside - vnearest(inside, vset(1), &n);
    return vscale(exp_rest(r * vset((T)0.69314718055994531)), n);
}

/* exp(x) for x <= 0, and exp(-|x|): a part of something larger, so that what is not a normal number may be 0. */
INLINE vec exp_below(vec x)
{
    vint n;
    vec r = exp_reduce(vatleast(x, vset(EXP_FLUSH)), &n);
    return grown(vpow2(n), exp_rest(r));
}
INLINE vec exp_decay(vec x) { return exp_below(-vabs(x)); }

/* exp(x) - 1 for EXP_TINY <= x, and 2^n finite: 2^n p + (2^n - 1). */
INLINE vec expm1_inside(vec x)
{
    vint n;
    vec r = exp_reduce(x, &n), power = vpow2(n);
    return vfma(power, exp_rest(r), power - 1);
}
INLINE vec expm1_below(vec x) { return expm1_inside(vatleast(x, vset(EXP_TINY))); }

/* The same halved, so that 2^n is finite. Tiny x is its own result: -0, and denormals, which have no half. */
INLINE vec vexpm1(vec x)
{
    vint n;
    vec r = exp_reduce(vclamp(x, vset(EXP_TINY), vset(EXP_INF)), &n);
    vec power = vpow2(n - 1), half = vfma(power, exp_rest(r), power - (T)0.5);
    return vsel(vabs(x) < vset((T)0.5 / (T)((TI)1 << MANTISSA)), x, half + half);
}

/* Lanes where low <= x < high, for positive numbers low and high: their bits count upwards, and are moved here so
   that high is beyond the largest integer. One comparison finds zeros, denormals (whether or not they count as 0),
   negative numbers, infinities and NaN. */
INLINE vint vwithin(vec x, T low, T high)
{
    vuint top = (vuint)viset((TI)((TU)-1 >> 1));
    vuint moved = (vuint)vbits(x) + (top + 1 - (vuint)vbits(vset(high)));
    return (vint)moved > (vint)(top - ((vuint)vbits(vset(high)) - (vuint)vbits(vset(low))));
}
INLINE vint vnormal(vec x) { return vwithin(x, MIN_NORMAL, INFINITY); }

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

/* A function whose special cases are rare is two. NAME_usual is inline and says in which lanes it may be used; NAME_any
   is not, takes everything, and is called for a vector that has other lanes; usual ones then come out with the same bits,
   for which lanes share a vector is decided by its width and by where a part begins. */
#define RARE static __attribute__((noinline)) vec

INLINE vec log_usual(vec x, vint *usual)
{
    vec k, m = vsplit(x, &k);
    *usual = vnormal(x);
    return log_sum(k, m - 1);
}

RARE log_any(vec x)
{
    vec k, m = log_split(x, &k);
    vec other = vsel(x == 0, vset(-INFINITY), vsel(x < 0, vset(NAN), x));
    return vsel((x > 0) & (x < vset(INFINITY)), log_sum(k, m - 1), other);
}

INLINE vec vlog(vec x)
{
    vint usual;
    vec y = log_usual(x, &usual);
    return vall(usual) ? y : log_any(x);
}

/* 1 + x is u + low exactly; u = 2^k m gives k and all but the last bits of f. 2^-k has m's bits less u's. The sign
   is that of x, also of a zero. */
INLINE vec log1p_sum(vec x, vec u)
{
    vec t = u - x, low = (x - (u - t)) + (1 - t);
    vec k, m = vsplit(u, &k), unit = (vec)(vbits(m) - vbits(u) + vbits(vset(1)));
    return vcopysign(log_sum(k, vfma(low, unit, m - 1)), x);
}

INLINE vec log1p_usual(vec x, vint *usual)
{
    vec u = 1 + x;
    *usual = vwithin(u, MIN_NORMAL, 1 / MIN_NORMAL);
    return log1p_sum(x, u);
}

RARE log1p_any(vec x)
{
    vint large = x >= vset(1 / MIN_NORMAL);                            /* log(x) to the last digit */
    vec y = vsel(large, vlog(vsel(large, x, vset(1))), log1p_sum(x, vsel(large, vset(1), 1 + x)));
    vec other = vsel(x == -1, vset(-INFINITY), vsel(x < -1, vset(NAN), x));
    return vsel((x > -1) & (x < vset(INFINITY)), y, other);
}

/* log(1 + exp(x)) = max(x, 0) + log(1 + e), e = exp(-|x|) in [0, 1]. */
INLINE vec vsoftplus(vec x)
{
    vec e = exp_decay(x);
    vint large = e > vset((T)0.41421356237309505);
    vec y = log_sum(vsel(large, vset(1), vset(0)), vsel(large, vfma(e, vset((T)0.5), vset((T)-0.5)), e));
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
    vec a = vabs(x), e = expm1_inside(vatmost(a + a, vset(-EXP_TINY)));
    vec d1, d = sum_exact(vset(2), e, &d1);
    vint small = a < vset((T)0.55);
    vec q = vsel(small, e, vset(2)) / d;
    return vcopysign(vsel(small, vfma(q * d1, (T)0.5 * q - (T)0.5, q), 1 - q), x);
}

/* x (1 + p(x^2)) near 0, 1 - exp(-p(|x|)) beyond. */
INLINE vec verf(vec x)
{
    vec a = vatmost(vabs(x), vset(ERF_ONE));
    vec near = grown(a, horner(a * a, TERMS(ERF_NEAR), 1));             /* cut in two, it would cancel */
    vec far = 1 - exp_below(-polynomial(a, TERMS(ERF_FAR)));
    return vcopysign(vsel(a < vset(ERF_KNEE), near, far), x);
}

/* f of x, which libm knows, in the lanes that are not done. */
#if PN_TYPE == 32
#define LIBM(name) name##f
#else
#define LIBM(name) name
#endif
INLINE vec other_lanes(T (*f)(T), vec x, vec y, vint done)
{
    for (int i = 0; i < LANES; i++)
        if (!done[i]) y[i] = f(x[i]);
    return y;
}

/* sin(a - n pi) for 0 <= a < SIN_FAR, |a - n pi| < 1.01 pi / 2. n PI_HIGH and n PI_MIDDLE are subtracted without an
   error where a is near their sum: there nothing is left but the digits that cancellation uncovers. */
INLINE vec sin_rest(vec a, vec n)
{
    vec r = minus_product(minus_product(a, n, vset(PI_HIGH)), n, vset(PI_MIDDLE));
    r = vfma(-n, vset(PI_LOW), r);
    vec z = r * r;
    return vfma(r * z, polynomial(z, TERMS(SIN_TAIL)), r);
}

/* -sin(a) for an odd n. */
INLINE vec sin_usual(vec x, vint *usual)
{
    vint n;
    vec a = vabs(x), y = sin_rest(a, vnearest(a, vset((T)0.31830988618379067), &n));
    *usual = a < vset(SIN_FAR);
    return (vec)(vbits(y) ^ vbits(x) ^ vbits(a) ^ (n << (8 * (int)sizeof(T) - 1)));
}

/* cos(r + (n + 1/2) pi) = -sin(r) for an even n. */
INLINE vec cos_usual(vec x, vint *usual)
{
    vint n;
    vec a = vabs(x), turns = vfma(a, vset((T)0.31830988618379067), vset((T)-0.5));
    vec y = sin_rest(a, vnearest(turns, vset(1), &n) + (T)0.5);
    *usual = a < vset(SIN_FAR);
    return (vec)(vbits(y) ^ (~n << (8 * (int)sizeof(T) - 1)));
}

RARE sin_any(vec x)
{
    vint usual;
    vec y = sin_usual(x, &usual);
    return other_lanes(LIBM(sin), x, y, usual);
}
RARE cos_any(vec x)
{
    vint usual;
    vec y = cos_usual(x, &usual);
    return other_lanes(LIBM(cos), x, y, usual);
}

/* The standard normal distribution at x, and *density, exp(-x^2 / 2) / sqrt(2 pi). The tail is exp(-a^2 / 2), a = |x|,
   times a function that falls smoothly from 1/2 like 1 / a: a quotient of polynomials without a negative term. What is
   lost in a^2 would show in the exponential's last digits, so it is kept. */
INLINE vec normal(vec x, vec *density)
{
    vint n;
    vec a = vatmost(vabs(x), vset(NORMAL_ZERO));
    vec low, square = product_exact(a, a, &low);
    vec p = exp_rest(exp_reduce_sum(square * (T)-0.5, low * (T)-0.5, &n)), power = vpow2(n);
    vec above = even_odd(a, square, TERMS(NORMAL_ABOVE)), below = even_odd(a, square, TERMS(NORMAL_BELOW));
    vec tail = power * (vfma(above, p, above) / below);
    *density = grown(power, p) * (T)0.39894228040143268;
    return vsel(x > 0, 1 - tail, tail);
}

INLINE vec vnormcdf(vec x)
{
    vec density;
    return normal(x, &density);
}

/* log(2^k m), m as vsplit leaves it, as the sum of the result and *low: pow multiplies an error in it by as much as
   1000. s, z, w and v below have the rest of their value in s1, z1, w1 and v1. */
INLINE vec log_exact(vec k, vec m, vec *low)
{
    vec f = m - 1, d1, d = sum_exact(vset(2), f, &d1), inverse = 1 / d; /* s = f / (2 + f) */
    vec s = f * inverse, s1 = vfma(-s, d1, minus_product(f, s, d)) * inverse;
    vec z1, z = product_exact(s, s, &z1);                               /* z = s^2 */
    z1 = vfma(s + s, s1, z1);
    vec w1, w = product_exact(z, vset(TWO_THIRDS_HIGH), &w1);          /* w = 2/3 z + 2/5 z^2 + ... */
    w1 = vfma(z, vset(TWO_THIRDS_LOW), vfma(z1, vset(TWO_THIRDS_HIGH), w1));
    w = sum_exact(w, vfma(z * z, polynomial(z, TERMS(POW_TAIL)), w1), &w1);
    vec v1, v = product_exact(s, w, &v1);                               /* v = s w */
    v1 = vfma(s, w1, vfma(s1, w, v1));
    vec low1, low2, high = sum_exact(k * vset(LN2_HIGH), s + s, &low1); /* log = k ln 2 + 2 s + v */
    high = sum_exact(high, v, &low2);
    *low = vfma(k, vset(LN2_LOW), vfma(vset(2), s1, v1)) + (low1 + low2);
    return high;
}

/* exp(y log|x|). Zeros, infinities, NaN and y from POW_FAR on, where vround ends, are libm's. */
#define POW_FAR vset((T)((TI)1 << (MANTISSA - 1)))
RARE pow_any(vec x, vec y)
{
    x = vsel(x == 0, vcopysign(vset(0), x), x);     /* where denormals count as 0: libm would be led astray by one */
    vec base = vabs(x), k, m = log_split(base, &k), low, high = log_exact(k, m, &low);
    vec e1, e = product_exact(high, y, &e1), bounded = vclamp(e, vset(EXP_ZERO), vset(EXP_INF));
    vint n;
    vec r = exp_reduce_sum(bounded, vsel(e == bounded, vfma(low, y, e1), vset(0)), &n);
    vec power = vscale(exp_rest(r), n), half = y * (T)0.5;
    vec negative = vsel(vround(y) != y, vset(NAN), vsel(vround(half) != half, -power, power));
    vint done = (base > 0) & (base < vset(INFINITY)) & (vabs(y) < POW_FAR);
    vec result = vsel(x < 0, negative, power);
    for (int i = 0; i < LANES; i++)
        if (!done[i]) result[i] = LIBM(pow)(x[i], y[i]);
    return result;
}

/* The same where neither x nor the result is special. */
INLINE vec pow_usual(vec x, vec y, vint *usual)
{
    vint n;
    vec k, m = vsplit(x, &k), low, high = log_exact(k, m, &low), e1, e = product_exact(high, y, &e1);
    vec r = exp_reduce_sum(e, vfma(low, y, e1), &n);
    *usual = vnormal(x) & (vabs(e) < vset(EXP_NORMAL)) & (vabs(y) < POW_FAR);
    return grown(vpow2(n), exp_rest(r));
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
    return s * vfma(vclamp(x, vset(EXP_FLUSH), vset(-EXP_FLUSH)), mirror, vset(1));
}
INLINE vec silu_curve(vec x)
{
    vec mirror, s = sigmoids(x, &mirror);
    return s * mirror * vfma(vclamp(x, vset(EXP_FLUSH), vset(-EXP_FLUSH)), mirror - s, vset(2));
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

/* mish: with e = exp(x), t = tanh(log(1 + e)) = top / d, top = e^2 + 2 e, d = top + 2; and sigmoid(x) (1 - t^2) =
   bend / d^2, bend = 4 e (1 + e). Right of 0 all are multiplied by powers of exp(-x), and that is *e. */
INLINE void mish_parts(vec x, vec *e, vec *top, vec *d, vec *bend)
{
    *e = exp_decay(x);
    vint right = x > 0;
    vec square = *e * *e, twice = *e + *e;
    *top = vsel(right, 1 + twice, square + twice);
    *d = *top + vsel(right, square + square, vset(2));
    *bend = 4 * vsel(right, square, *e) * (1 + *e);
}
INLINE vec mish_value(vec x)
{
    vec e, top, d, bend;
    mish_parts(x, &e, &top, &d, &bend);
    return x * (top / d);
}
INLINE vec mish_slope(vec x)
{
    vec e, top, d, bend, b = vclamp(x, vset(EXP_FLUSH), vset(-EXP_FLUSH));
    mish_parts(x, &e, &top, &d, &bend);
    vec inverse = 1 / d;
    return inverse * vfma(b * bend, inverse, top);
}
INLINE vec mish_curve(vec x)
{
    vec e, top, d, bend, b = vclamp(x, vset(EXP_FLUSH), vset(-EXP_FLUSH));
    mish_parts(x, &e, &top, &d, &bend);
    vec inverse = 1 / d, s = vsel(x > 0, vset(1), e) / (1 + e);
    vec rest = 1 - s - 2 * (top * inverse) * s;
    return bend * inverse * inverse * vfma(b, rest, vset(2));
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
