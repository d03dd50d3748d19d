/* What follows a product, part by part (pn_call.then). */
#ifndef PN_FOLLOW_H
#define PN_FOLLOW_H

/* The end of a product that another call follows. */
typedef struct {
    const pn_call *then;
    int64_t first, ci;          /* where c begins in what `then` works on, in elements; and its rows in c */
} gemm_follower;

/* Of a product written to `slot`. */
static gemm_follower gemm_follower_of(const pn_call *c, int slot)
{
    if (!c->then) return (gemm_follower){0};
    return (gemm_follower){c->then, OUT(T, slot) - (T *)c->then->buf[c->then_slot].data, STRIDE(slot, 0)};
}

static void gemm_follow(const void *what, int64_t i, int64_t m, int64_t j, int64_t n)
{
    const gemm_follower *f = what;
    if (n == f->ci && m * n == f->then->dim[0]) {
        f->then->run(f->then);
        return;
    }
    pn_call part;
    memcpy(&part, f->then, pn_call_bytes(f->then));
    if (n == f->ci) n *= m, m = 1;
    part.dim[0] = n;
    for (int64_t r = i; r < i + m; r++) {
        int64_t at = f->first + r * f->ci + j;
        for (int b = 0; b < part.buffers; b++)
            if (part.buf[b].stride[0]) part.buf[b].data = (char *)f->then->buf[b].data + at * part.size[b];
        part.run(&part);
    }
}

#endif
