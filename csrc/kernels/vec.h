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
enum { LANES = PN_WIDTH / sizeof(T) };

#define INLINE static inline __attribute__((always_inline, unused))
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
INLINE vec vsel(vint mask, vec yes, vec no) { return (vec)((mask & (vint)yes) | (~mask & (vint)no)); }
INLINE vec vabs(vec x) { return (vec)(vbits(x) & ~viset((TI)1 << (8 * sizeof(T) - 1))); }
INLINE vec vcopysign(vec magnitude, vec sign)
{
    vint top = viset((TI)1 << (8 * sizeof(T) - 1));
    return (vec)((vbits(magnitude) & ~top) | (vbits(sign) & top));
}
/* -1, 0 or 1; the sign of a zero is kept, NaN is NaN. */
INLINE vec vsign(vec x) { return vsel(x > 0, vset(1), vsel(x < 0, vset(-1), x)); }
/* NaN in either operand comes out. */
INLINE vec vmax(vec x, vec y) { return vsel((x > y) | (x != x), x, y); }
INLINE vec vmin(vec x, vec y) { return vsel((x < y) | (x != x), x, y); }

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

INLINE vec vsqrt(vec x)
{
#if defined(MM)
    return (vec)MM(sqrt)(x);
#else
    for (int i = 0; i < LANES; i++) x[i] = PN_TYPE == 32 ? sqrtf(x[i]) : sqrt(x[i]);
    return x;
#endif
}

/* To the nearest integer, halves to even, for |x| < 2^(MANTISSA - 1): adding 1.5 * 2^MANTISSA leaves no room for a
   fraction. Never reassociated: no file is compiled with -ffast-math. */
INLINE vec vround(vec x)
{
    vec magic = vset((T)1.5 * (T)((TI)1 << MANTISSA));
    return (x + magic) - magic;
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
INLINE void vstore_part(T *p, vec x, int64_t n) { MM(maskstore)(p, vlanes(n), x); }
#else
INLINE vec vload_part(const T *p, int64_t n)
{
    vec x = {0};
    for (int64_t i = 0; i < n; i++) x[i] = p[i];
    return x;
}
INLINE void vstore_part(T *p, vec x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) p[i] = x[i];
}
#endif

/* n lanes, `stride` elements apart. */
INLINE vec vgather(const T *p, int64_t stride, int64_t n)
{
    vec x = {0};
    for (int64_t i = 0; i < n; i++) x[i] = p[i * stride];
    return x;
}
INLINE void vscatter(T *p, int64_t stride, vec x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) p[i * stride] = x[i];
}

#endif
