/* cflags: -O2 */
#define PN_ISA baseline
#define PN_WIDTH 16
#define PN_RANK 0
static int supported(void) { return 1; }
#include "../kernels/kernels.h"
