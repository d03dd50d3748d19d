/* SPDX-License-Identifier: BSD-3-Clause
   The tables: which ISAs this build has, and what kernels.def says. setup.py passes the ISAs that the compiler
   could make, as -DPN_ISAS="X(avx512) X(avx2) X(baseline)". */
#include "../pyneuro.h"

#define X(isa) extern const pn_isa pn_##isa##_f32, pn_##isa##_f64;
PN_ISAS
#undef X

#define X(isa) static const pn_table table_##isa = {#isa, {&pn_##isa##_f32, &pn_##isa##_f64}};
PN_ISAS
#undef X

const pn_table *const pn_tables[] = {
#define X(isa) &table_##isa,
    PN_ISAS
#undef X
    NULL
};

#define HOST(name, signature)

const char *const pn_kernel_name[PN_KERNEL_COUNT] = {
#define KERNEL(name, signature) [PN_##name] = #name,
#include "../kernels.def"
#undef KERNEL
};

const char *const pn_kernel_signature[PN_KERNEL_COUNT] = {
#define KERNEL(name, signature) [PN_##name] = signature,
#include "../kernels.def"
#undef KERNEL
};

pn_kernel pn_kernel_of(const pn_table *table, int type, int kernel)
{
    const pn_isa *isa = type <= PN_F64 ? table->of_type[type] : NULL;
    while (isa && !isa->kernel[kernel]) isa = isa->base;
    return isa ? isa->kernel[kernel] : NULL;
}

/* With what it is based on. */
static int supported(const pn_isa *isa) { return !isa || (isa->supported() && supported(isa->base)); }

int pn_supported(const pn_table *table)
{
#if defined(__x86_64__) || defined(__i386__)
    /* __builtin_cpu_supports also asks XCR0, that is, whether the operating system saves the wide registers. */
    __builtin_cpu_init();
#endif
    return supported(table->of_type[PN_F32]) && supported(table->of_type[PN_F64]);
}
