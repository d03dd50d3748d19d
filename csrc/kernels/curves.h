/* What rows of activations.def and losses.def have no room for: functions that they are made of, and derivatives.

   Where a limit at infinity would be 0 * inf or inf / inf, x stops at +-BOUND, whose square is a number but beyond which 1
   does not show beside it. */
#ifndef PN_CURVES_H
#define PN_CURVES_H

#include "vmath.h"

#define BOUND ((T)(PN_TYPE == 32 ? 0x1p63 : 0x1p511))
INLINE vec within(vec x, T bound) { return vclamp(x, vset(-bound), vset(bound)); }

INLINE vec vlog1p(vec x)
{
    vint usual;
    vec y = log1p_usual(x, &usual);
    return vall(usual) ? y : log1p_any(x);
}

/* sqrt(x^2 + b), b > 0. */
INLINE vec root_of_square(vec x, vec b)
{
    vec inside = within(x, BOUND);
    return vsel(vabs(x) > BOUND, vabs(x), vsqrt(vfma(inside, inside, b)));
}

INLINE vec cosh_inverse_squared(vec x)
{
    vec mirror, s = sigmoids(x + x, &mirror);
    return 4 * s * mirror;
}

/* exp(-x^2). What is lost in x^2 would show in the last digits, so it is kept. */
INLINE vec gaussian_value(vec x)
{
    vint n;
    vec a = vatmost(vabs(x), vset(PN_TYPE == 32 ? (T)9.38 : (T)26.62)), low, square = product_exact(a, a, &low);
    vec p = exp_rest(exp_reduce_sum(-square, -low, &n));
    return grown(vpow2(n), p);
}

/* atan(r) = r + r z p(z), z = r^2, for r up to tan(pi / 8); a larger one is turned by pi / 4 or pi / 2. */
#if PN_TYPE == 32
static const T ATAN_TAIL[] = {           /* 2^-28.7 */
    -0.333333317f, 0.199995234f, -0.142633666f, 0.10737397f, -0.0643103871f };
#define HALF_PI_LOW -4.37113900e-08f
#define TANHSHRINK_DEPTH 7               /* 2^-32 */
#define SINC_TERMS 7
#define QUICK_LOW -2.19345093e-08f       /* 1.702, a double, less the float nearest to it */
#else
static const T ATAN_TAIL[] = {           /* 2^-62.2 */
    -0.3333333333333333, 0.19999999999999785, -0.14285714285654638, 0.11111111104652255, -0.09090908728587459,
    0.07692295658327873, -0.06666412077725274, 0.058787824694439814, -0.0522938047378184, 0.045467195095551666,
    -0.034445844423577385, 0.016148228546771868 };
#define HALF_PI_LOW 6.123233995736766e-17
#define TANHSHRINK_DEPTH 11              /* 2^-59.7 */
#define SINC_TERMS 12
#define QUICK_LOW 0
#endif
INLINE vec vatan(vec x)
{
    const T half_pi = (T)1.5707963267948966;
    vec a = vabs(x);
    vint far = a > (T)2.414213562373095, middle = a > (T)0.4142135623730951;
    vec r = vsel(far, vset(-1), vsel(middle, a - 1, a)) / vsel(far, a, vsel(middle, a + 1, vset(1)));
    vec turn = vsel(far, vset(1), vsel(middle, vset((T)0.5), vset(0))), z = r * r;
    vec rest = vfma(r * z, polynomial(z, TERMS(ATAN_TAIL)), turn * HALF_PI_LOW);
    return vcopysign(vfma(turn, vset(half_pi), r + rest), x);
}

/* x - tanh(x), which cancels, is x c / (1 + c) with the continued fraction c = z / (3 + z / (5 + z / (7 + ...))), z = x^2:
   its numerators and denominators by their recurrence. */
INLINE vec tanhshrink_value(vec x)
{
    vec a = vatmost(vabs(x), vset(2)), z = a * a;
    vec below = vset(1), above = vset(2 * TANHSHRINK_DEPTH + 1);
#pragma GCC unroll 16
    for (int k = TANHSHRINK_DEPTH - 1; k > 0; k--) {
        vec next = vfma(z, below, above * (T)(2 * k + 1));
        below = above;
        above = next;
    }
    /* c = z below / above */
    return vsel(vabs(x) < 2, x * (z * below / vfma(z, below, above)), x - vtanh(x));
}

/* sin(pi x) / (pi x) and two derivatives. x = w + 2 n with |w| <= 1 exactly; beyond 2^MANTISSA every number is whole. */
INLINE vec sinc_turn(vec x)
{
    vec half = x * (T)0.5;
    vint inside = vabs(x) < (T)((TI)1 << MANTISSA);
    return vsel(inside, vfma(vround(vsel(inside, half, vset(0))), vset(-2), x), x - x);
}
/* sin(pi r) for |r| <= 1/2. */
INLINE vec sin_of_pi(vec r)
{
    vec t = r * (T)3.1415926535897932, z = t * t;
    return vfma(t * z, polynomial(z, TERMS(SIN_TAIL)), t);
}
INLINE vec sinc_value(vec x)
{
    vec w = sinc_turn(x), folded = vsel(vabs(w) > (T)0.5, vcopysign(vset(1), w) - w, w);
    return vsel(x == 0, vset(1), sin_of_pi(folded) / (x * (T)3.1415926535897932));
}
/* With t = pi x: the sum of (-1)^k t^2k / (2^k k! (2k + 3)!!), which is (sin(t) / t - cos(t)) / t^2. */
INLINE vec sinc_series(vec z)
{
    vec sum = vset(1);
#pragma GCC unroll 16
    for (int k = SINC_TERMS; k > 0; k--) sum = vfma(sum * z, vset((T)-1 / (T)(2 * k * (2 * k + 3))), vset(1));
    return sum * (T)(1.0 / 3);
}
INLINE vec sinc_slope(vec dy, vec x)
{
    const T pi = (T)3.1415926535897932;
    vec w = sinc_turn(x), t = pi * vclamp(x, vset(-0.5), vset(0.5));
    vec cosine = sin_of_pi((T)0.5 - vabs(w));
    return vsel(vabs(x) < (T)0.5, dy * (-pi * t * sinc_series(t * t)), dy * (cosine - sinc_value(x)) / x);
}
INLINE vec sinc_curve(vec x)
{
    const T square = (T)9.869604401089358;
    vec t = (T)3.1415926535897932 * vclamp(x, vset(-0.5), vset(0.5));
    vec turned = vsel(vabs(x) < (T)0.5, 2 * square * sinc_series(t * t), -2 * sinc_slope(vset(1), x) / x);
    return turned - square * sinc_value(x);
}

/* x / sqrt(1 + a x^2) and *s, 1 / sqrt(1 + a x^2). */
INLINE vec isru_value(vec x, vec a, vec *s)
{
    vint large = vabs(x) > 1;
    vec inverse = 1 / vsel(large, x, vset(1)), small = vsel(large, vset(1), x);
    vec near = 1 / vsqrt(vfma(a, small * small, vset(1))), far = 1 / vsqrt(vfma(inverse, inverse, a));
    *s = vsel(large, vabs(inverse) * far, near);
    return vsel(large, vcopysign(far, x), x * near);
}

/* (exp(ax) - exp(-bx)) / (exp(cx) + exp(-dx)). For x > 0 it is exp(k m) n / d, m = |x|, k = a - c, p = a + b, q = c + d,
   n = 1 - exp(-p m), d = 1 + exp(-q m); for x < 0 the same negated, with a and b, c and d changed. */
typedef struct { vec grow, k, p, q, ratio, e, f, d; } smht_parts;
INLINE smht_parts smht_split(vec x, vec a, vec b, vec c, vec d)
{
    smht_parts s;
    vec m = vabs(x);
    s.k = vsel(x < 0, b - d, a - c), s.p = a + b, s.q = c + d;
    s.grow = vexp(vsel(s.k == 0, vset(0), s.k * m));
    s.e = vexp(-s.p * m), s.f = vexp(-s.q * m);
    s.d = 1 + s.f;
    s.ratio = -vexpm1(-s.p * m) / s.d;
    return s;
}
INLINE vec smht_value(vec x, vec a, vec b, vec c, vec d)
{
    smht_parts s = smht_split(x, a, b, c, d);
    return vsel(x < 0, -s.grow, s.grow) * s.ratio;
}
INLINE vec smht_slope(vec x, vec a, vec b, vec c, vec d)
{
    smht_parts s = smht_split(x, a, b, c, d);
    vec first = (s.p * s.e + s.q * s.f * s.ratio) / s.d;
    return s.grow * (s.k * s.ratio + first);
}
INLINE vec smht_curve(vec x, vec a, vec b, vec c, vec d)
{
    smht_parts s = smht_split(x, a, b, c, d);
    vec first = (s.p * s.e + s.q * s.f * s.ratio) / s.d;
    vec second = (2 * s.q * s.f * first - s.p * s.p * s.e - s.q * s.q * s.f * s.ratio) / s.d;
    return vsel(x < 0, -s.grow, s.grow) * (s.k * s.k * s.ratio + 2 * s.k * first + second);
}

/* Left of 0: (exp(x) - 1) sigmoid(x). Right of it elish is silu. */
INLINE vec elish_value(vec x)
{
    return vsel(x < 0, expm1_below(vatmost(x, vset(0))), x) * vsigmoid(x);
}
INLINE vec elish_slope(vec x)
{
    vec left = vatmost(x, vset(0)), mirror, s = sigmoids(x, &mirror);
    vec below = s * vfma(expm1_below(left), mirror, exp_below(left));
    return vsel(x < 0, below, silu_slope(x));
}
INLINE vec elish_curve(vec x)
{
    vec left = vatmost(x, vset(0)), mirror, s = sigmoids(x, &mirror), e = exp_below(left);
    vec below = s * (e * (1 + 2 * mirror) + expm1_below(left) * mirror * (mirror - s));
    return vsel(x < 0, below, silu_curve(x));
}

INLINE vec hard_elish_value(vec x)
{
    vec gate = vclamp((x + 1) * (T)0.5, vset(0), vset(1));
    return vsel(x < 0, expm1_below(vatmost(x, vset(0))), x) * gate;
}
/* The derivatives between -1 and 1, and beyond. */
INLINE vec hard_elish_slope(vec x)
{
    vec left = within(vatmost(x, vset(0)), 1);
    vec below = (T)0.5 * vfma(exp_below(left), 1 + left, expm1_below(left));
    return vsel(x >= 1, vset(1), vsel(x >= 0, x + (T)0.5, vsel(x <= -1, vset(0), below)));
}
INLINE vec hard_elish_curve(vec x)
{
    vec left = within(vatmost(x, vset(0)), 1);
    return vsel(x >= 1, vset(0), vsel(x >= 0, vset(1), vsel(x <= -1, vset(0), (T)0.5 * exp_below(left) * (3 + left))));
}

/* -ln(1 - a (x + a)) / a for a < 0, x for a = 0, (exp(a x) - 1) / a + a for a > 0. The 1 / a goes to where it does not
   cancel: for a near 1 to the other a. */
INLINE vec soft_exponential_value(vec x, vec a)
{
    vec u = a * (x + a);
    vec above = vsel(a * a < (T)0.5, vexpm1(a * x) / a + a, vexp(a * x) / a + (a - 1 / a));
    return vsel(a > 0, above, vsel(a < 0, vlog1p(-u) / -a, x));
}

/* (x + sqrt(x^2 + b)) / 2, which left of 0 is b / (2 (sqrt(x^2 + b) - x)). */
INLINE vec squareplus_value(vec x, vec b)
{
    vec r = root_of_square(x, b);
    return vsel(x < 0, b / (2 * (r - x)), (T)0.5 * x + (T)0.5 * r);
}
INLINE vec squareplus_slope(vec x, vec b)
{
    vec inside = within(x, BOUND), r = root_of_square(x, b);
    return vsel(x < 0, b / (2 * r) / (r - x), (T)0.5 + (T)0.5 * (inside / root_of_square(inside, b)));
}

/* sigmoid(1.702 x) and *mirror, that of -1.702 x: 1.702 x with what rounding it lost. */
INLINE vec quick_sigmoids(vec x, vec *mirror)
{
    vint n;
    vec a = vatmost(vabs(x), vset(-EXP_FLUSH / (T)1.702)), low, high = product_exact(a, vset((T)1.702), &low);
    low = vfma(a, vset(QUICK_LOW), low);
    vec p = exp_rest(exp_reduce_sum(-high, -low, &n)), e = grown(vpow2(n), p);
    vec large = 1 / (1 + e), small = e * large;
    *mirror = vsel(x > 0, small, large);
    return vsel(x > 0, large, small);
}
/* Derivatives of x s, s = sigmoid(v), v = beta x, mirror = sigmoid(-v). */
INLINE vec swish_slope(vec v, vec s, vec mirror)
{
    return s * vfma(within(v, -EXP_FLUSH), mirror, vset(1));
}
INLINE vec swish_curve(vec v, vec s, vec mirror, vec beta)
{
    return beta * s * mirror * vfma(within(v, -EXP_FLUSH), mirror - s, vset(2));
}

INLINE vec swish_dx(vec x, vec beta)
{
    vec mirror, s = sigmoids(beta * x, &mirror);
    return swish_slope(beta * x, s, mirror);
}
INLINE vec swish_ddx(vec x, vec beta)
{
    vec mirror, s = sigmoids(beta * x, &mirror);
    return swish_curve(beta * x, s, mirror, beta);
}
INLINE vec quick_gelu_value(vec x)
{
    vec mirror, s = quick_sigmoids(x, &mirror);
    return x * s;
}
INLINE vec quick_gelu_dx(vec x)
{
    vec mirror, s = quick_sigmoids(x, &mirror);
    return swish_slope(x * (T)1.702, s, mirror);
}
INLINE vec quick_gelu_ddx(vec x)
{
    vec mirror, s = quick_sigmoids(x, &mirror);
    return swish_curve(x * (T)1.702, s, mirror, vset((T)1.702));
}

INLINE vec isru_dx(vec x, vec a) { vec s; isru_value(x, a, &s); return s * s * s; }
INLINE vec isru_ddx(vec x, vec a) { vec s, y = isru_value(x, a, &s); return -3 * a * y * (s * s) * (s * s); }
INLINE vec isru_y(vec x, vec a) { vec s; return isru_value(x, a, &s); }

/* ln cosh d, by way of cosh d - 1 = (e^d - 1)^2 / (2 e^d) where that is small. */
INLINE vec log_cosh_value(vec d)
{
    vec a = vabs(d), less = vexpm1(vatmost(a, vset(1)));
    vec far = a + vlog1p(exp_below(a * -2)) - (T)0.69314718055994531;
    return vsel(a < 1, vlog1p(less * less / (2 * (1 + less))), far);
}

#endif
