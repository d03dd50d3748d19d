/* Index operands, checked before anything is written. */
#ifndef PN_INDEX_H
#define PN_INDEX_H

#include "vec.h"

/* PN_OK if each of the n entries of the int64 slot is in [0, extent), or is *ignore where ignore is not NULL;
   otherwise the error that names the slot. */
static int indices_fit(const pn_call *c, int slot, int64_t n, int64_t extent, const int64_t *ignore)
{
    const int64_t *index = IN(int64_t, slot);
    const int64_t stride = STRIDE(slot, 0);
    for (int64_t i = 0; i < n; i++) {
        int64_t at = index[i * stride];
        if ((at < 0 || at >= extent) && !(ignore && at == *ignore)) return PN_INDEX | slot << 8;
    }
    return PN_OK;
}

#endif
