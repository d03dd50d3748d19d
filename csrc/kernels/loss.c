/* Losses of pairs: each row of losses.def becomes the kernels NAME and NAME_grad. */
#define LOSS(name, attrs, value, dx)                                                                 \
    INLINE vec each_##name(vec x, vec t, vec z, params p) { PARAMS; return value; }                  \
    INLINE vec each_##name##_grad(vec dl, vec x, vec t, params p) { PARAMS; return dx; }             \
    DEFINE(name) { return vmap(c, each_##name, 2, 2); }                                              \
    DEFINE(name##_grad) { return vmap(c, each_##name##_grad, 3, 3); }
#include "../losses.def"
#undef LOSS
