/* Activations: each row of activations.def becomes
     value_NAME  the value of a vector,
     row_NAME    the value of n contiguous elements, in place: the end of a dense layer,
     and the kernels NAME, NAME_grad and NAME_curve. */
typedef void (*pn_row_value)(T *y, int64_t n, scalars attrs);

#include "curves.h"

#define UNFUSED(name, saved, attrs, value, dx, curve)                                                \
    INLINE vec value_##name(vec x, params p) { PARAMS; return value; }                               \
    INLINE vec slope_##name(vec dy, vec saved, params p) { PARAMS; return dx; }                      \
    INLINE vec curve_##name(vec saved, params p) { PARAMS; return curve; }                           \
    INLINE vec each_##name(vec x, vec y, vec z, params p) { return value_##name(x, p); }             \
    INLINE vec each_##name##_grad(vec x, vec y, vec z, params p) { return slope_##name(x, y, p); }   \
    INLINE vec each_##name##_curve(vec x, vec y, vec z, params p)                                    \
    {                                                                                                \
        return x * y * curve_##name(z, p);                                                           \
    }                                                                                                \
    DEFINE(name) { return vmap(c, each_##name, 1, 1); }                                              \
    DEFINE(name##_grad) { return vmap(c, each_##name##_grad, 2, 2); }                                \
    DEFINE(name##_curve) { return vmap(c, each_##name##_curve, 3, 3); }
#define ACTIVATION(name, saved, attrs, value, dx, curve)                                             \
    UNFUSED(name, saved, attrs, value, dx, curve)                                                    \
    static void row_##name(T *y, int64_t n, scalars s)                                               \
    {                                                                                                \
        stream x = { y, LANES };                                                                     \
        veach(each_##name, 1, x, x, x, y, n, s);                                                     \
    }
#include "../activations.def"
#undef ACTIVATION
#undef UNFUSED
