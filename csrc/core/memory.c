/* SPDX-License-Identifier: BSD-3-Clause
   Memory for arrays. Blocks that are given back are kept, by size, for the next array of that size: a fresh page costs
   more than filling it, and a training step asks for the same sizes again and again. Used by the binding alone, which
   holds Python's lock meanwhile. */
#include <stdlib.h>
#include "../pyneuro.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

/* Sizes are 1 to 4 lines, then four to each power of two: at most a quarter of a block is waste, and not touched. */
enum { LINE = 64, PAGE = 4096, HUGE_PAGE = 2 << 20, FINE = 4, CLASSES = 4 * 48 };

/* Blocks of LARGE bytes and more begin at different places in a page. Where all begin at the same one, element i of each
   operand meets the others in one set of the cache, and a load is held up by a store to the same place of another page. */
enum { LARGE = 16 << 10, SHIFT = 5 * LINE, SHIFTS = PAGE / SHIFT };

typedef struct block {
    struct block *next;
} block;

static block *kept[CLASSES];
static int    shift;
static size_t kept_bytes, most_bytes = (size_t)128 << 20;

/* The class of a size, and its own size in *rounded. */
static int class_of(size_t bytes, size_t *rounded)
{
    size_t lines = bytes / LINE + (bytes % LINE != 0);
    if (lines <= FINE) {
        lines += lines == 0;
        *rounded = lines * LINE;
        return (int)lines - 1;
    }
    int power = 0;                                     /* FINE << power < lines <= 2 FINE << power */
    while ((size_t)(2 * FINE) << power < lines) power++;
    size_t quarters = (lines - 1) >> power;            /* FINE to 2 FINE - 1 */
    *rounded = (quarters + 1) << power << 6;
    return FINE * (power + 1) + (int)(quarters - FINE);
}

void *pn_take(size_t bytes)
{
    size_t size;
    if (bytes > SIZE_MAX / 4) return NULL;
    int class = class_of(bytes, &size);
    block *b = kept[class];
    if (b) {
        kept[class] = b->next;
        kept_bytes -= size;
    } else if (size < LARGE) {
        b = aligned_alloc(LINE, size);
    } else {
        size_t whole = size / HUGE_PAGE * HUGE_PAGE;
        b = aligned_alloc(whole ? HUGE_PAGE : PAGE, (size + 2 * PAGE - 1) / PAGE * PAGE);
#if defined(MADV_HUGEPAGE)
        if (b && whole) madvise(b, whole, MADV_HUGEPAGE);          /* where there are no huge pages, small ones do */
#endif
    }
    if (!b || size < LARGE) return b;
    shift = (shift + 1) % SHIFTS;
    return (char *)b + shift * SHIFT;
}

void pn_give(void *data, size_t bytes)
{
    size_t size;
    int class = class_of(bytes, &size);
    block *b = size < LARGE ? data : (block *)((uintptr_t)data / PAGE * PAGE);
    if (kept_bytes + size > most_bytes) {
        free(b);
        return;
    }
    b->next = kept[class];
    kept[class] = b;
    kept_bytes += size;
}

void pn_keep_at_most(size_t bytes)
{
    most_bytes = bytes;
    for (int class = 0; class < CLASSES; class++)
        while (kept[class]) {
            block *b = kept[class];
            kept[class] = b->next;
            free(b);
        }
    kept_bytes = 0;
}
