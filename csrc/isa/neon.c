/* cflags(aarch64): */
#define PN_ISA neon
#define PN_WIDTH 16
#define PN_RANK 1
static int supported(void) { return 1; }
#include "../kernels/kernels.h"
