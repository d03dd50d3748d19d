/* SPDX-License-Identifier: BSD-3-Clause
   Runs calls, one after the other, each on as many threads as it is worth. What a kernel of letters sees is what the
   caller filled in; a kernel of "..." only knows one contiguous loop, and this file makes any rank and any strides into
   such loops. */
#include <string.h>
#include "../pyneuro.h"

#if defined(__x86_64__) || defined(__SSE__)
#include <xmmintrin.h>
#endif

/* Elements of a strided operand that are made contiguous at a time: at 8 bytes, 4 KiB for each operand. */
enum { BLOCK = 512 };

/* Parts of a loop for each thread: one that comes late, or is slow, then leaves the others little to wait for. A product is
   one for each: what it packs of the operand that is not cut, every part packs again. */
enum { PARTS_EACH = 4 };

/* Without flush-to-zero an optimizer whose moments decay below 1e-38 gets three times slower. The caller's mode, and
   the exceptions it has seen, are put back: ours are nobody's business. */
#if defined(__x86_64__) || defined(__SSE__)
typedef unsigned int fp_mode;
static fp_mode flush(void)
{
    fp_mode old = _mm_getcsr();
    _mm_setcsr(old | 0x8040);                      /* FTZ, DAZ */
    return old;
}
static void restore(fp_mode old) { _mm_setcsr(old); }
#elif defined(__aarch64__)
typedef uint64_t fp_mode;
static fp_mode flush(void)
{
    fp_mode old;
    __asm__ volatile("mrs %0, fpcr" : "=r"(old));
    __asm__ volatile("msr fpcr, %0" : : "r"(old | (1u << 24)) : "memory");       /* FZ */
    return old;
}
static void restore(fp_mode old) { __asm__ volatile("msr fpcr, %0" : : "r"(old) : "memory"); }
#else
typedef int fp_mode;
static fp_mode flush(void) { return 0; }
static void restore(fp_mode old) { (void)old; }
#endif

size_t pn_call_bytes(const pn_call *c) { return offsetof(pn_call, buf) + c->buffers * sizeof(pn_buf); }

/* An operand that a kernel of "..." can take as it is: contiguous, or one element (an operand without "..." has
   stride 0 as well). The binding refuses a written operand with stride 0. */
static int direct(int64_t stride) { return stride == 1 || stride == 0; }

static void move(void *to, int64_t to_step, const void *from, int64_t from_step, int64_t n, int size)
{
#define MOVE(bytes, integer)                                                              \
    case bytes: {                                                                         \
        typedef integer __attribute__((may_alias)) element;                               \
        element *restrict y = to;                                                         \
        const element *restrict x = from;                                                 \
        for (int64_t i = 0; i < n; i++) y[i * to_step] = x[i * from_step];                \
        break;                                                                            \
    }
    switch (size) {
        MOVE(1, uint8_t)
        MOVE(2, uint16_t)
        MOVE(4, uint32_t)
        MOVE(8, uint64_t)
    }
#undef MOVE
}

/* One loop with strides: strided operands are gathered, a block at a time, and written ones scattered. Memory that is
   two operands, in place, is gathered twice, before any of these elements is written. */
static int run_strided(const pn_call *row)
{
    _Alignas(64) char block[PN_MAX_BUF][BLOCK * sizeof(double)];
    pn_call c;
    memcpy(&c, row, pn_call_bytes(row));
    for (int i = 0; i < c.buffers; i++) {
        if (!direct(row->buf[i].stride[0])) {
            c.buf[i].data = block[i];
            c.buf[i].stride[0] = 1;
        }
    }
    for (int64_t start = 0; start < row->dim[0]; start += BLOCK) {
        c.dim[0] = row->dim[0] - start < BLOCK ? row->dim[0] - start : BLOCK;
        for (int i = 0; i < c.buffers; i++) {
            int64_t stride = row->buf[i].stride[0];
            char *at = (char *)row->buf[i].data + start * stride * c.size[i];
            if (direct(stride)) c.buf[i].data = at;
            else if (c.written[i] != 1) move(block[i], 1, at, stride, c.dim[0], c.size[i]);
        }
        int status = c.run(&c);
        if (status) return status;
        for (int i = 0; i < c.buffers; i++) {
            int64_t stride = row->buf[i].stride[0];
            char *at = (char *)row->buf[i].data + start * stride * c.size[i];
            if (c.written[i] && !direct(stride)) move(at, stride, block[i], 1, c.dim[0], c.size[i]);
        }
    }
    return PN_OK;
}

/* A call of any rank: the outer axes turn like an odometer, the last one is the kernel's loop. */
static int run_map(const pn_call *c)
{
    int strided = 0, last = c->rank - 1;
    for (int axis = 0; axis <= last; axis++) if (c->dim[axis] == 0) return PN_OK;
    for (int i = 0; last >= 0 && i < c->buffers; i++) strided |= !direct(c->buf[i].stride[last]);
    if (last == 0) return strided ? run_strided(c) : c->run(c);

    pn_call row;
    memcpy(&row, c, pn_call_bytes(c));
    row.rank = 1;
    row.dim[0] = last < 0 ? 1 : c->dim[last];
    for (int i = 0; i < c->buffers; i++) row.buf[i].stride[0] = last < 0 ? c->written[i] != 0 : c->buf[i].stride[last];

    int64_t turn[PN_MAX_RANK] = {0};
    for (;;) {
        int status = strided ? run_strided(&row) : row.run(&row);
        if (status) return status;
        int axis = last - 1;
        for (; axis >= 0; axis--) {
            int64_t steps = ++turn[axis] < c->dim[axis] ? 1 : 1 - c->dim[axis];
            for (int i = 0; i < c->buffers; i++)
                row.buf[i].data = (char *)row.buf[i].data + steps * c->buf[i].stride[axis] * c->size[i];
            if (steps == 1) break;
            turn[axis] = 0;
        }
        if (axis < 0) return PN_OK;
    }
}

static int run_whole(const pn_call *c)
{
    if (!c->run) return PN_NO_KERNEL;
    return c->map ? run_map(c) : c->run(c);
}

static const pn_call *after(const pn_call *c) { return (const pn_call *)((const char *)c + pn_call_bytes(c)); }

/* Calls in parts. */
typedef struct {
    const pn_call *first;
    int            span, parts, flush_denormals;
} divided;

/* Where a part begins: at whole vectors and cache lines, as far as the parts are longer than that. */
static int64_t cut_at(int64_t extent, int parts, int number)
{
    int64_t each = extent / parts, multiple = each >= 64 ? 64 : each >= 16 ? 16 : 1;
    return number == parts ? extent : (each * number + extent % parts * number / parts) / multiple * multiple;
}

/* Rows that follow each other without a gap are one loop. */
static void merge_rows(pn_call *c)
{
    if (!c->map || c->rank != 2) return;
    for (int i = 0; i < c->buffers; i++)
        if (c->buf[i].stride[0] != c->buf[i].stride[1] * c->dim[1]) return;
    for (int i = 0; i < c->buffers; i++) c->buf[i].stride[0] = c->buf[i].stride[1];
    c->dim[0] *= c->dim[1];
    c->rank = 1;
}

static int run_part(void *what, int number)
{
    const divided *d = what;
    const pn_call *whole = d->first;
    fp_mode mode = 0;
    int status = PN_OK;
    if (d->flush_denormals) mode = flush();
    for (int k = 0; k < d->span && status == PN_OK; k++, whole = after(whole)) {
        pn_call c;
        memcpy(&c, whole, pn_call_bytes(whole));
        c.whole = whole;
        int64_t start = cut_at(c.dim[c.cut], d->parts, number), end = cut_at(c.dim[c.cut], d->parts, number + 1);
        c.dim[c.cut] = end - start;
        for (int i = 0; i < c.buffers; i++)
            if (c.along[i] >= 0) c.buf[i].data = (char *)c.buf[i].data + start * c.buf[i].stride[c.along[i]] * c.size[i];
        merge_rows(&c);
        status = run_whole(&c);
        if (whole->then) whole = whole->then, k++;
    }
    if (d->flush_denormals) restore(mode);
    return status;
}

/* Runs c, or as many calls after it as its span says where that is cut; how many it were. */
static int run_calls(const pn_call *c, int64_t *count, int flush_denormals)
{
    const int threads = c->parts > 1 ? pn_reserve() : 1, most = c->map ? PARTS_EACH * threads : threads;
    const int64_t alone = 1 + (c->then != NULL);
    *count = threads > 1 && c->span > alone && c->span <= *count ? c->span : alone;
    if (threads == 1) return run_whole(c);
    divided d = {c, (int)*count, c->parts < most ? c->parts : most, flush_denormals};
    return pn_parallel(run_part, &d, d.parts);
}

int pn_run(const pn_call *calls, int64_t count, int flush_denormals, int64_t *failed)
{
    fp_mode mode = 0;
    int status = PN_OK;
    if (flush_denormals) mode = flush();
    const pn_call *c = calls;
    for (int64_t i = 0, ran; i < count; i += ran) {
        ran = count - i;
        status = run_calls(c, &ran, flush_denormals);
        if (status) {
            *failed = i;
            break;
        }
        for (int64_t k = 0; k < ran; k++) c = after(c);
    }
    if (flush_denormals) restore(mode);
    return status;
}
