/* Index operands, checked before anything is written. */
#ifndef PN_INDEX_H
#define PN_INDEX_H

#include "vec.h"

/* Whether n entries, `stride` apart, are in [0, extent). */
INLINE int indices_inside(const int64_t *index, int64_t stride, int64_t n, int64_t extent)
{
    const uint64_t last = (uint64_t)extent - 1;
    uint64_t sign = 0;                       /* of an entry or of last - entry */
    if (stride == 1) for (int64_t i = 0; i < n; i++) sign |= (uint64_t)index[i] | (last - (uint64_t)index[i]);
    else for (int64_t i = 0; i < n; i++) sign |= (uint64_t)index[i * stride] | (last - (uint64_t)index[i * stride]);
    return !(sign >> 63);
}

/* PN_OK if each of the n entries of the int64 slot is in [0, extent), or is *ignore where ignore is not NULL;
   otherwise the error that names the slot. */
static int indices_fit(const pn_call *c, int slot, int64_t n, int64_t extent, const int64_t *ignore)
{
    const int64_t *index = IN(int64_t, slot);
    const int64_t stride = STRIDE(slot, 0);
    if (indices_inside(index, stride, n, extent)) return PN_OK;
    for (int64_t i = 0; i < n; i++) {
        int64_t at = index[i * stride];
        if ((at < 0 || at >= extent) && !(ignore && at == *ignore)) return PN_INDEX | slot << 8;
    }
    return PN_OK;
}

#endif
