/* A vector as wide as the ISA, of the element type being compiled, in GCC/Clang vector extensions: + - * / and
   comparisons just work. Intrinsics only for what the extensions lack: fused multiply-add, square root, rounding,
   partial loads. Each file of isa/ is compiled once with PN_TYPE 32 (float) and once with 64 (double). */
#ifndef PN_VEC_H
#define PN_VEC_H

#include <math.h>
#include <string.h>
#include "../pyneuro.h"

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if PN_TYPE == 32
typedef float    T;
typedef int32_t  TI;
typedef uint32_t TU;
enum { MANTISSA = 23, BIAS = 127 };
#define PN_ELEMENT PN_F32
#else
typedef double   T;
typedef int64_t  TI;
typedef uint64_t TU;
enum { MANTISSA = 52, BIAS = 1023 };
#define PN_ELEMENT PN_F64
#endif

typedef T  vec  __attribute__((vector_size(PN_WIDTH), aligned(sizeof(T)), may_alias));
typedef TI vint __attribute__((vector_size(PN_WIDTH), aligned(sizeof(T)), may_alias));
typedef TU vuint __attribute__((vector_size(PN_WIDTH), aligned(sizeof(T)), may_alias));
/* For arrays of vectors that are to live in registers: GCC keeps those of vec, which may alias, in memory. */
typedef T reg __attribute__((vector_size(PN_WIDTH)));
enum { LANES = PN_WIDTH / sizeof(T) };

#define INLINE static inline __attribute__((always_inline, unused))

INLINE int64_t least(int64_t x, int64_t y) { return x < y ? x : y; }
/* x / y, and the multiple of y next to x: both upwards. */
INLINE int64_t parts_of(int64_t x, int64_t y) { return (x + y - 1) / y; }
INLINE int64_t round_up(int64_t x, int64_t y) { return parts_of(x, y) * y; }

#define DEFINE(name) static int k_##name(const pn_call *c)
#define IN(type, slot)  ((const type *)c->buf[slot].data)
#define OUT(type, slot) ((type *)c->buf[slot].data)
#define STRIDE(slot, axis) (c->buf[slot].stride[axis])

/* Intrinsics by width and element type: MM(add)(a, b) is _mm512_add_ps, ... */
#define PN_PASTE_(a, b, c) a##b##c
#define PN_PASTE(a, b, c) PN_PASTE_(a, b, c)
#if PN_TYPE == 32
#define PN_SUFFIX _ps
#else
#define PN_SUFFIX _pd
#endif
#if defined(__SSE2__) && PN_WIDTH == 64
#define MM(op) PN_PASTE(_mm512_, op, PN_SUFFIX)
#elif defined(__SSE2__) && PN_WIDTH == 32
#define MM(op) PN_PASTE(_mm256_, op, PN_SUFFIX)
#elif defined(__SSE2__)
#define MM(op) PN_PASTE(_mm_, op, PN_SUFFIX)
#endif

INLINE vec vset(T s) { return s - (vec){0}; }
INLINE vint viset(TI s) { return s - (vint){0}; }
INLINE vec vload(const T *p) { return *(const vec *)p; }
INLINE void vstore(T *p, vec x) { *(vec *)p = x; }
INLINE vint vbits(vec x) { return (vint)x; }
INLINE vec vfrombits(vint x) { return (vec)x; }

/* mask is a comparison's result: all ones or all zeros in each lane. */
INLINE vec vsel(vint mask, vec yes, vec no)
{
#if defined(__AVX2__) && PN_WIDTH == 32
    return (vec)MM(blendv)(no, yes, (vec)mask);
#else
    return (vec)((mask & (vint)yes) | (~mask & (vint)no));
#endif
}
INLINE vec vabs(vec x) { return (vec)(vbits(x) & ~viset((TI)1 << (8 * sizeof(T) - 1))); }
INLINE vec vcopysign(vec magnitude, vec sign)
{
    vint top = viset((TI)1 << (8 * sizeof(T) - 1));
    return (vec)((vbits(magnitude) & ~top) | (vbits(sign) & top));
}
/* -1, 0 or 1; the sign of a zero is kept, NaN is NaN. */
INLINE vec vsign(vec x) { return vsel(x > 0, vset(1), vsel(x < 0, vset(-1), x)); }
/* NaN in either operand comes out of vmax and vmin; vatleast and vatmost keep a NaN in x. (The x86 instructions
   hand out their second operand if either is NaN.) */
#if defined(MM)
INLINE vec vmax(vec x, vec y) { return vsel(x != x, x, (vec)MM(max)(x, y)); }
INLINE vec vmin(vec x, vec y) { return vsel(x != x, x, (vec)MM(min)(x, y)); }
INLINE vec vatleast(vec x, vec low) { return (vec)MM(max)(low, x); }
INLINE vec vatmost(vec x, vec high) { return (vec)MM(min)(high, x); }
#else
INLINE vec vmax(vec x, vec y) { return vsel((x > y) | (x != x), x, y); }
INLINE vec vmin(vec x, vec y) { return vsel((x < y) | (x != x), x, y); }
INLINE vec vatleast(vec x, vec low) { return vsel(x < low, low, x); }
INLINE vec vatmost(vec x, vec high) { return vsel(x > high, high, x); }
#endif
INLINE vec vclamp(vec x, vec low, vec high) { return vatmost(vatleast(x, low), high); }

/* a * b + c, rounded once where the ISA can. */
INLINE vec vfma(vec a, vec b, vec c)
{
#if defined(__FMA__) && defined(MM)
    return (vec)MM(fmadd)(a, b, c);
#elif defined(__ARM_NEON) && PN_TYPE == 32
    return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#elif defined(__ARM_NEON)
    return (vec)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
    return a * b + c;
#endif
}

/* sqrt(x) + more, each rounded: by the instruction, which shares the divider with divisions. */
INLINE vec vroot_plus(vec x, vec more)
{
#if defined(MM)
    return (vec)MM(sqrt)(x) + more;
#else
    for (int i = 0; i < LANES; i++) x[i] = PN_TYPE == 32 ? sqrtf(x[i]) : sqrt(x[i]);
    return x + more;
#endif
}

/* The same bits. With AVX-512, in float32, mostly without the instruction, for loops that want the divider for a quotient. From
   an estimate of 1 / sqrt(x), a step of Goldschmidt's and one with the exact remainder (Markstein, IBM Journal of Research and
   Development 34, 1990) come to the nearest number; a factor keeps the remainder from underflow. What is large, negative or NaN,
   and -0, takes the instruction. */
INLINE vec vsqrt_plus(vec x, vec more)
{
#if defined(__AVX512F__) && PN_WIDTH == 64 && PN_TYPE == 32
    const vec large = vset(0x1p63f);
    if (__builtin_expect(_mm512_cmpge_epu32_mask((__m512i)x, (__m512i)large), 0)) return vroot_plus(x, more);
    const vec a = x * 0x1p64f, y = (vec)MM(rsqrt14)(MM(max)(a, vset(0x1p-90f)));    /* 0 * y is 0 for a y that is finite */
    vec s = a * y, h = y / 2;
    const vec short_of = vfma(-h, s, vset(0.5f));
    s = vfma(s, short_of, s), h = vfma(h, short_of, h);
    return vfma(vfma(vfma(-s, s, a), h, s), vset(0x1p-32f), more);          /* times a power of 2: rounded once all the same */
#else
    return vroot_plus(x, more);
#endif
}
INLINE vec vsqrt(vec x) { return vsqrt_plus(x, -vset(0)); }                 /* -0 changes no number */

/* To the nearest integer, halves to even, for |x| < 2^(MANTISSA - 1): adding 1.5 * 2^MANTISSA leaves no room
   for a fraction. Never reassociated: no file is compiled with -ffast-math. */
#define ROUNDER vset((T)1.5 * (T)((TI)1 << MANTISSA))
INLINE vec vround(vec x)
{
#if defined(__AVX512F__) && PN_WIDTH == 64
    return (vec)MM(roundscale)(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    return (x + ROUNDER) - ROUNDER;
#endif
}

/* The integer nearest to x * factor, and the same in the last bits of *n: what vpow2 and vscale take. */
INLINE vec vnearest(vec x, vec factor, vint *n)
{
    vec sum = vfma(x, factor, ROUNDER);
    *n = vbits(sum);
    return sum - ROUNDER;
}

/* 2^n for -BIAS <= n <= BIAS, 0 for n = -BIAS. */
INLINE vec vpow2(vint n) { return (vec)((n << MANTISSA) + vbits(vset(1))); }

/* (1 + x) * 2^n for an n of twice that range: rounded once, also to a denormal, as 1 + x is near 1 and the first
   of the two factors never makes one. n is as vnearest left it. */
INLINE vec vscale(vec x, vint n)
{
#if defined(__AVX512F__) && PN_WIDTH == 64
    return (vec)MM(scalef)(1 + x, (vec)n - ROUNDER);
#else
    vint half = n << (MANTISSA - 1) & viset((TI)((TU)-1 << MANTISSA)), one = vbits(vset(1));
    vec power = (vec)(half + one);
    return vfma(power, x, power) * (vec)((n << MANTISSA) - half + one);
#endif
}

/* x = m * 2^*k with m in [sqrt(1/2), sqrt(2)), for finite x > 0 that are not denormal. The bits of a float,
   read as an integer, count its powers of two in units of 2^MANTISSA. */
INLINE vec vsplit(vec x, vec *k)
{
    const T two_mantissa = (T)((TI)1 << MANTISSA);
    vint low = vbits(vset((T)0.70710678118654752440));
    vint u = vbits(x) + (vbits(vset(1)) - low);
    vint power = (vint)((vuint)u >> MANTISSA);
    *k = (vec)(power | vbits(vset(two_mantissa))) - (two_mantissa + BIAS);
    return (vec)((u & (((TI)1 << MANTISSA) - 1)) + low);
}

/* 0, 1, 2, ... */
INLINE vint vlane(void)
{
    vint lane;
    for (int l = 0; l < LANES; l++) lane[l] = l;
    return lane;
}

/* Lane l is x's lane l + by, counted round; `by` is a constant. */
INLINE vec vturn(vec x, int by)
{
#if defined(__clang__)
    vec y;
    for (int l = 0; l < LANES; l++) y[l] = x[(l + by) % LANES];
    return y;
#else
    return __builtin_shuffle(x, (vlane() + by) & (LANES - 1));
#endif
}

/* x and y in groups of 2 * half lanes: the lower, or upper, half of each; `half` and `upper` are constants. */
INLINE vec vhalves(vec x, vec y, int half, int upper)
{
#if defined(__clang__)
    vec z;
    for (int l = 0; l < LANES; l++) {
        const int from = l / half * 2 * half + l % half + upper * half;
        z[l] = from < LANES ? x[from] : y[from - LANES];
    }
    return z;
#else
    const vint inside = vlane() & (half - 1);
    return __builtin_shuffle(x, y, (vlane() - inside) * 2 + inside + upper * half);
#endif
}

/* What comes some way on, for a loop whose work on a vector is too long for the processor to look ahead by itself: with AVX-512. */
enum { AHEAD = 2048 / sizeof(T) };
INLINE void vprefetch(const T *p)
{
#if PN_WIDTH == 64
    __builtin_prefetch(p + AHEAD, 0, 3);
#else
    (void)p;
#endif
}

/* n first lanes, the others 0; lanes beyond n are neither read nor written. 0 <= n <= LANES. */
#if defined(__AVX512F__) && PN_WIDTH == 64
#if PN_TYPE == 32
#define VMASK(n) ((__mmask16)((1u << (n)) - 1))
#else
#define VMASK(n) ((__mmask8)((1u << (n)) - 1))
#endif
INLINE vec vload_part(const T *p, int64_t n) { return (vec)MM(maskz_loadu)(VMASK(n), p); }
INLINE void vstore_part(T *p, vec x, int64_t n) { MM(mask_storeu)(p, VMASK(n), x); }
#elif defined(__AVX2__) && PN_WIDTH == 32
#if PN_TYPE == 32
INLINE __m256i vlanes(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
#else
INLINE __m256i vlanes(int64_t n) { return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3)); }
#endif
INLINE vec vload_part(const T *p, int64_t n) { return (vec)MM(maskload)(p, vlanes(n)); }
#else
INLINE vec vload_part(const T *p, int64_t n)
{
    vec x = {0};
    for (int64_t i = 0; i < n && i < LANES; i++) x[i] = p[i];        /* GCC 12 fears for the lanes beyond */
    return x;
}
#endif
#if !(defined(__AVX512F__) && PN_WIDTH == 64)
/* By halves: AVX2's masked store takes 16 cycles on some processors. */
INLINE void vstore_part(T *p, vec x, int64_t n)
{
    if (n >= LANES) {
        vstore(p, x);
        return;
    }
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2) {
        if (n & half) memcpy(p, &x, half * sizeof(T)), p += half, x = vturn(x, half);
    }
}
#endif

/* One bit for each lane of a comparison's result, lane 0 the lowest. */
INLINE unsigned vmovemask(vint mask)
{
#if defined(__AVX512F__) && PN_WIDTH == 64 && PN_TYPE == 32
    return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX512F__) && PN_WIDTH == 64
    return _mm512_movepi64_mask((__m512i)mask);
#elif defined(MM)
    return (unsigned)MM(movemask)((vec)mask);
#else
    unsigned bits = 0;
    for (int i = 0; i < LANES; i++) bits |= (unsigned)(mask[i] & 1) << i;
    return bits;
#endif
}

INLINE int vall(vint mask) { return vmovemask(mask) == (unsigned)((1ull << LANES) - 1); }

/* Booleans are bytes: anything but 0 is true. 0 <= n <= LANES. */
INLINE vint vload_bool(const uint8_t *p, int64_t n)
{
    uint8_t lanes[LANES] = {0};
    if (n >= LANES) memcpy(lanes, p, LANES);
    else for (int64_t i = 0; i < n; i++) lanes[i] = p[i];
    vint mask;
    for (int i = 0; i < LANES; i++) mask[i] = lanes[i];
    return mask != 0;
}

/* n lanes, `stride` elements apart. A whole vector stays in registers. */
INLINE vec vgather(const T *p, int64_t stride, int64_t n)
{
    vec x = {0};
    if (stride == 1) return n == LANES ? vload(p) : vload_part(p, n);
    if (n == LANES)
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) x[i] = p[i * stride];
    else for (int64_t i = 0; i < n; i++) x[i] = p[i * stride];
    return x;
}
INLINE void vscatter(T *p, int64_t stride, vec x, int64_t n)
{
    if (stride == 1 && n == LANES) vstore(p, x);
    else if (stride == 1) vstore_part(p, x, n);
    else if (n == LANES)
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) p[i * stride] = x[i];
    else for (int64_t i = 0; i < n; i++) p[i * stride] = x[i];
}

/* An operand of a "..." kernel: the next vector, and how far on the one after it is. A single element (stride
   0) is spread over `lanes`, which must hold a vector, and the step is 0: loops have no cases. */
typedef struct {
    const T *p;
    int64_t  step;
} stream;

INLINE stream vstream(const pn_call *c, int slot, T *lanes)
{
    if (STRIDE(slot, 0) || !c->dim[0]) return (stream){ IN(T, slot), LANES };
    vstore(lanes, vset(*IN(T, slot)));
    return (stream){ lanes, 0 };
}

/* The first attrs of a call in its element type, those that it lacks 0; and each spread over a vector. Expressions of
   rows name them a, b, c and d. */
enum { SCALARS = 4 };
typedef struct { T of[SCALARS]; } scalars;
typedef struct { vec a, b, c, d; } params;
#define PARAMS const vec a = p.a, b = p.b, c = p.c, d = p.d; (void)a, (void)b, (void)c, (void)d

INLINE scalars read_scalars(const pn_call *c)
{
    scalars s;
    for (int i = 0; i < SCALARS; i++) s.of[i] = i < c->attrs ? (T)c->attr[i] : 0;
    return s;
}
INLINE params vparams(scalars s) { return (params){ vset(s.of[0]), vset(s.of[1]), vset(s.of[2]), vset(s.of[3]) }; }

/* The loop of a "..." kernel: out = f of the vectors of up to three operands and of the first attrs. */
typedef vec (*pn_each)(vec x, vec y, vec z, params p);

INLINE void veach(pn_each f, int inputs, stream x, stream y, stream z, T *out, int64_t n, scalars s)
{
    const params p = vparams(s);
    const vec no = {0};
    for (; n >= LANES; n -= LANES) {
        if (inputs > 0) vprefetch(x.p);
        if (inputs > 1) vprefetch(y.p);
        if (inputs > 2) vprefetch(z.p);
        vprefetch(out);
        vstore(out, f(inputs > 0 ? vload(x.p) : no, inputs > 1 ? vload(y.p) : no, inputs > 2 ? vload(z.p) : no, p));
        x.p += x.step, y.p += y.step, z.p += z.step, out += LANES;
    }
    if (n > 0)
        vstore_part(out, f(inputs > 0 ? vload_part(x.p, n) : no, inputs > 1 ? vload_part(y.p, n) : no,
                           inputs > 2 ? vload_part(z.p, n) : no, p), n);
}

INLINE int vmap(const pn_call *c, pn_each f, int inputs, int out)
{
    T lanes[3][LANES];
    stream x = { 0 }, y = { 0 }, z = { 0 };
    if (inputs > 0) x = vstream(c, 0, lanes[0]);
    if (inputs > 1) y = vstream(c, 1, lanes[1]);
    if (inputs > 2) z = vstream(c, 2, lanes[2]);
    veach(f, inputs, x, y, z, OUT(T, out), c->dim[0], read_scalars(c));
    return PN_OK;
}

#endif
