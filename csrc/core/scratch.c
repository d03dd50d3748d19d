/* SPDX-License-Identifier: BSD-3-Clause
   Scratch memory: one block for each thread, which only grows and goes when the thread does. */
#include <pthread.h>
#include <stdlib.h>
#include "../pyneuro.h"

enum { PAGE = 4096 };

static _Thread_local void  *block;
static _Thread_local size_t room;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t  key;
static int            has_key;

/* Runs in the thread that exits; a later destructor there may still ask for scratch. */
static void release(void *p)
{
    free(p);
    block = NULL;
    room = 0;
}

static void make_key(void) { has_key = pthread_key_create(&key, release) == 0; }

void *pn_scratch(size_t bytes)
{
    if (bytes <= room && block) return block;
    if (bytes > SIZE_MAX - PAGE) return NULL;
    bytes = (bytes + PAGE) / PAGE * PAGE;

    pthread_once(&once, make_key);
    free(block);                     /* nothing in it is worth keeping, and two blocks may not fit */
    block = aligned_alloc(64, bytes);
    room = block ? bytes : 0;
    /* Where this fails the block is not given back at thread exit; it is as good to work in as any. */
    if (has_key) pthread_setspecific(key, block);
    return block;
}
