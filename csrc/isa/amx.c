/* cflags(x86_64): -mavx512f -mavx512dq -mavx512bw -mavx512vl -mfma -mprefer-vector-width=512 -mamx-tile -mamx-bf16 */
#define PN_ISA amx
#define PN_BASE avx512
#define PN_WIDTH 64
#define PN_RANK 3
#if defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
/* The system allows a process its tiles when it asks (arch_prctl, ARCH_REQ_XCOMP_PERM), since Linux 5.16. */
static int supported(void)
{
    unsigned int a, b, c, d, low, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & 1 << 24) || !(d & 1 << 22)) return 0;      /* AMX-TILE, AMX-BF16 */
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & 3 << 17) == 3 << 17 && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}
#else
static int supported(void) { return 0; }
#endif
#include "../kernels/kernels.h"
