/* cflags(x86_64): -mavx2 -mfma */
#define PN_ISA avx2
#define PN_WIDTH 32
#define PN_RANK 1
static int supported(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#include "../kernels/kernels.h"
