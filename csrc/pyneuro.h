/* SPDX-License-Identifier: BSD-3-Clause
   The kernel ABI: what core/ knows of kernels/, and kernels/ of core/. */
#ifndef PYNEURO_H
#define PYNEURO_H

#include <stddef.h>
#include <stdint.h>

enum { PN_MAX_BUF = 16, PN_MAX_RANK = 8, PN_MAX_ATTR = 8, PN_MAX_THREADS = 1024 };

/* Element types. float16 and bfloat16 are reserved for storage. */
enum pn_type { PN_F32, PN_F64, PN_BF16, PN_F16, PN_I64, PN_BOOL, PN_U64, PN_U8, PN_TYPES };

/* What a slot marked /t may hold: its type here and in C, and what makes a number of it. */
#define EACH_CASTABLE(X) \
    X(PN_F32, float, ) X(PN_F64, double, ) X(PN_I64, int64_t, ) X(PN_BOOL, uint8_t, != 0) X(PN_U8, uint8_t, )

enum pn_kernel_id {
#define KERNEL(name, signature) PN_##name,
#define HOST(name, signature)
#include "kernels.def"
#undef KERNEL
#undef HOST
    PN_KERNEL_COUNT
};

/* A kernel returns PN_OK or the first of these that it meets, before it has written anything. */
enum pn_status {
    PN_OK,
    PN_INDEX,        /* an index is outside its axis: the low byte is PN_INDEX, the next one is the slot */
    PN_NO_MEMORY,    /* scratch could not be had */
    PN_NO_KERNEL     /* the table has no such kernel for this element type */
};

/* One operand: strides count elements, one for each axis of the slot. */
typedef struct {
    void   *data;
    int64_t stride[PN_MAX_RANK];
} pn_buf;

/* One kernel invocation. Eager mode fills one and runs it; a plan is a run of them, each as long as its buffers.

   Signatures of letters: dim[] holds one extent for each letter in order of first appearance.
   Signatures of "...":   dim[0..rank) are the loop's axes, outermost first; a broadcast operand has stride 0;
                          an operand without "..." has stride 0 throughout. The kernel itself only ever sees
                          rank 1, and of every "..." operand stride 1 or (read only) 0: core/run.c sees to that.
                          A written operand has stride 0 only along an axis of extent 1.
   then: a call of "..." that is to be run on every part of what this one writes as soon as that is complete, or NULL; it
   is the next call. Its operands are contiguous, as many elements as are written, or one; then_slot holds what is written
   (first, where that is several), and what it writes itself is nothing that this call reads. It takes no scratch. Only
   matmul and dense_grad_w look at it.
   whole: the call that this one is a part of, or NULL.
   span: so many calls, this one, those that follow and their `then` included, are cut along axes of one extent, and each
   part of one needs nothing of the others but the same part: a thread takes a part through all of them. Less: this one.
   Where parts > 1, the call may be cut along dim[cut] into so many parts, each worth a thread's while; a part of
                          that axis gives the bits of the whole. along[slot] is the slot's axis that is cut, or -1. */
typedef struct pn_call {
    int   (*run)(const struct pn_call *);        /* the kernel; NULL: the table has none */
    uint8_t type;        /* element type of the call */
    uint8_t type2;       /* element type of the slots marked /t */
    uint8_t rank;        /* axes in dim[] */
    uint8_t buffers;     /* entries of buf[] in use */
    uint8_t map;         /* 1: a signature of "..." */
    uint8_t attrs;
    uint8_t cut;
    uint16_t parts;      /* 1: not to be cut */
    uint8_t then_slot;
    uint8_t span;
    int8_t  along[PN_MAX_BUF];
    const struct pn_call *then, *whole;
    int64_t dim[PN_MAX_RANK];
    double  attr[PN_MAX_ATTR];
    uint8_t size[PN_MAX_BUF];        /* bytes of one element of each slot */
    uint8_t written[PN_MAX_BUF];     /* 0: read only, 1: written only, 2: read and written */
    pn_buf  buf[PN_MAX_BUF];
} pn_call;

typedef int (*pn_kernel)(const pn_call *);

/* What one file of isa/ compiles to, for one element type. */
typedef struct pn_isa {
    const char *name;
    int         type;
    int         rank;                    /* the supported ISA of highest rank is the default */
    int       (*supported)(void);
    const struct pn_isa *base;           /* whose kernels it has where its own are NULL; or NULL */
    pn_kernel   kernel[PN_KERNEL_COUNT];
} pn_isa;

/* The kernels of one ISA, by element type. */
typedef struct {
    const char   *name;
    const pn_isa *of_type[2];            /* PN_F32, PN_F64 */
} pn_table;

/* core/dispatch.c */
extern const pn_table    *const pn_tables[];             /* NULL-terminated */
extern const char        *const pn_kernel_name[PN_KERNEL_COUNT];
extern const char        *const pn_kernel_signature[PN_KERNEL_COUNT];
int pn_supported(const pn_table *);                      /* by this CPU and operating system */
pn_kernel pn_kernel_of(const pn_table *, int type, int kernel);      /* NULL: there is none */

/* core/run.c: runs calls until one fails; *failed is then its position. Flushes denormals meanwhile if asked, and cuts
   calls into parts where there are threads for it. */
size_t pn_call_bytes(const pn_call *);
int    pn_run(const pn_call *, int64_t count, int flush_denormals, int64_t *failed);

/* core/threads.c: how many threads a call may use, this one included, and at most; by default as many as the process
   has cores, but no more than the quota, if it has one (0: none). */
int  pn_get_num_threads(void);
void pn_set_num_threads(int);
void pn_set_cpu_quota(int);

/* Reserves the workers for one job: how many threads there are for it, this one included. 1: there is nobody, and
   nothing is reserved. Otherwise pn_parallel must follow: it calls part(what, i) for each i below `parts`, each on
   some thread, hands the workers back, and returns PN_OK or what a part that failed has returned. */
int pn_reserve(void);
int pn_parallel(int (*part)(void *what, int number), void *what, int parts);

/* core/scratch.c: at least `bytes` of 64-byte aligned memory that belongs to this thread until its next call
   of pn_scratch; NULL if there is none. Kernels have no other way to memory. */
void *pn_scratch(size_t bytes);

/* core/memory.c, for the binding: memory of arrays, 64-byte aligned, NULL if there is none. What is given back is kept
   for the next taker up to a limit in bytes, 128 MiB at first; to set it frees what is kept. */
void *pn_take(size_t bytes);
void  pn_give(void *, size_t bytes);
void  pn_keep_at_most(size_t bytes);

#endif
