/* SPDX-License-Identifier: BSD-3-Clause
   Memory for arrays. Blocks that are given back are kept, by size, for the next array of that size: a fresh page costs
   more than filling it, and a training step asks for the same sizes again and again. Used by the binding alone, which
   holds Python's lock meanwhile. */
#include <stdlib.h>
#include "../pyneuro.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(MADV_HUGEPAGE) && !defined(__SANITIZE_ADDRESS__)            /* which looks only at what malloc gave */
#define OWN_PAGES 1
#else
#define OWN_PAGES 0
#endif

/* Sizes are 1 to 4 lines, then four to each power of two: at most a quarter of a block is waste, and not touched. */
enum { LINE = 64, PAGE = 4096, HUGE_PAGE = 2 << 20, FINE = 4, CLASSES = FINE * 55 };   /* the last: SIZE_MAX / 4 */

/* Blocks of LARGE bytes and more begin at different places in a page. Where all begin at the same one, element i of each
   operand meets the others in one set of the cache, and a load is held up by a store to the same place of another page. */
enum { LARGE = 16 << 10, SHIFT = 5 * LINE, SHIFTS = PAGE / SHIFT, MARGIN = 64 << 10 /* >= PAGE, the system's too */ };

typedef struct block {
    struct block *next;
} block;

static block *kept[CLASSES];
static int    shift;
static int    hand;                    /* the class to free from: each has its turn, or what nobody asks for would stay */
static size_t kept_bytes, most_bytes = (size_t)128 << 20;

/* The class that a size belongs to, and the bytes of its blocks. */
static int class_of(size_t bytes)
{
    size_t lines = bytes / LINE + (bytes % LINE != 0);
    if (lines <= FINE) return lines ? (int)lines - 1 : 0;
    int power = 0;                                     /* FINE << power < lines <= 2 FINE << power */
    while ((size_t)(2 * FINE) << power < lines) power++;
    return FINE * power + (int)((lines - 1) >> power);
}

static size_t size_of(int class)
{
    if (class < FINE) return (size_t)(class + 1) * LINE;
    return (size_t)(FINE + class % FINE + 1) << (class / FINE - 1) << 6;
}

/* Blocks of HUGE_PAGE bytes and more are the system's own: malloc would put those of up to 32 MB side by side, and what is
   freed between others stays with the process. */
static void *reserve(size_t size)
{
#if OWN_PAGES
    if (size >= HUGE_PAGE) {
        char *p = mmap(NULL, size + MARGIN + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED) return NULL;
        size_t before = -(uintptr_t)p % HUGE_PAGE;
        if (before) munmap(p, before);
        munmap(p + before + size + MARGIN, HUGE_PAGE - before);
        madvise(p + before, size / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);        /* where there are none, small ones do */
        return p + before;
    }
#endif
    void *b;
    if (size < LARGE) return aligned_alloc(LINE, size);
    return posix_memalign(&b, PAGE, size + PAGE) ? NULL : b;
}

static void release(block *b, size_t size)
{
#if OWN_PAGES
    if (size >= HUGE_PAGE) {
        munmap(b, size + MARGIN);
        return;
    }
#endif
    free(b);
}

static block *unkeep(int class)
{
    block *b = kept[class];
    kept[class] = b->next;
    kept_bytes -= size_of(class);
    return b;
}

void *pn_take(size_t bytes)
{
    if (bytes > SIZE_MAX / 4) return NULL;
    int class = class_of(bytes);
    size_t size = size_of(class);
    void *b = kept[class] ? unkeep(class) : reserve(size);
    if (!b || size < LARGE) return b;
    shift = (shift + 1) % SHIFTS;
    return (char *)b + shift * SHIFT;
}

void pn_give(void *data, size_t bytes)
{
    int class = class_of(bytes);
    size_t size = size_of(class);
    block *b = size < LARGE ? data : (block *)((uintptr_t)data / PAGE * PAGE);
    if (size > most_bytes) {
        release(b, size);
        return;
    }
    while (kept_bytes + size > most_bytes) {
        if (kept[hand]) release(unkeep(hand), size_of(hand));
        else hand = (hand + 1) % CLASSES;
    }
    b->next = kept[class];
    kept[class] = b;
    kept_bytes += size;
}

void pn_keep_at_most(size_t bytes)
{
    most_bytes = bytes;
    for (int class = 0; class < CLASSES; class++)
        while (kept[class]) release(unkeep(class), size_of(class));
}
