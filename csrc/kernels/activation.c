/* Activations: each row of activations.def becomes
     value_NAME  the value of a vector,
     row_NAME    the value of n contiguous elements, in place: the end of a dense layer,
     and the kernels NAME, NAME_grad and NAME_curve. */
typedef vec (*pn_value)(vec x, vec a, vec b);
typedef void (*pn_row_value)(T *y, int64_t n, T a, T b);

#define ACTIVATION(name, saved, params, value, dx, curve)                                            \
    INLINE vec value_##name(vec x, vec a, vec b) { return value; }                                   \
    INLINE vec slope_##name(vec dy, vec saved, vec a, vec b) { return dx; }                          \
    INLINE vec curve_##name(vec saved, vec a, vec b) { return curve; }                               \
    INLINE vec each_##name(vec x, vec y, vec z, vec a, vec b) { return value_##name(x, a, b); }      \
    INLINE vec each_##name##_grad(vec x, vec y, vec z, vec a, vec b)                                 \
    {                                                                                                \
        return slope_##name(x, y, a, b);                                                             \
    }                                                                                                \
    INLINE vec each_##name##_curve(vec x, vec y, vec z, vec a, vec b)                                \
    {                                                                                                \
        return x * y * curve_##name(z, a, b);                                                        \
    }                                                                                                \
    static void row_##name(T *y, int64_t n, T a, T b)                                                \
    {                                                                                                \
        stream x = { y, LANES };                                                                     \
        veach(each_##name, 1, x, x, x, y, n, a, b);                                                  \
    }                                                                                                \
    DEFINE(name) { return vmap(c, each_##name, 1, 1); }                                              \
    DEFINE(name##_grad) { return vmap(c, each_##name##_grad, 2, 2); }                                \
    DEFINE(name##_curve) { return vmap(c, each_##name##_curve, 3, 3); }
#include "../activations.def"
#undef ACTIVATION
