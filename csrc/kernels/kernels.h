/* The whole kernel library. Each file in isa/ includes this once for each element type, with its own
   PN_ISA (a name), PN_WIDTH (bytes of a vector), PN_RANK and supported(). One with a PN_BASE has that ISA's kernels, and a few
   of its own. */
#include "../pyneuro.h"
#include "vec.h"

#define PN_STRING_(x) #x
#define PN_STRING(x) PN_STRING_(x)
#if PN_TYPE == 32
#define PN_TABLE(isa) PN_PASTE(pn_, isa, _f32)
#else
#define PN_TABLE(isa) PN_PASTE(pn_, isa, _f64)
#endif

#ifdef PN_BASE
#include "dense_amx.c"
#else
#include "vmath.h"
#include "random.h"
#include "index.h"

#include "activation.c"
#include "elementwise.c"
#include "loss.c"
#include "reduce.c"
#include "rows.c"
#include "softmax.c"
#include "norm.c"
#include "gemm.c"
#include "dense.c"
#include "dropout.c"
#include "optim.c"
#endif

const pn_isa PN_TABLE(PN_ISA) = {
    .name = PN_STRING(PN_ISA),
    .type = PN_ELEMENT,
    .rank = PN_RANK,
    .supported = supported,
#ifdef PN_BASE
    .base = &PN_TABLE(PN_BASE),
    .kernel = { PN_OWN },
#else
    .kernel = {
#define KERNEL(name, signature) [PN_##name] = k_##name,
#define HOST(name, signature)
#include "../kernels.def"
#undef KERNEL
#undef HOST
    },
#endif
};
