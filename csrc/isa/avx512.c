/* cflags(x86_64): -mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mprefer-vector-width=512 */
#define PN_ISA avx512
#define PN_WIDTH 64
#define PN_RANK 2
static int supported(void) { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"); }
#include "../kernels/kernels.h"
