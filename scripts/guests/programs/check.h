/* What the programs of the hard guests share. */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Ends the program where `what` does not hold. */
#define CHECK(what)                                                            \
    do {                                                                       \
        if (!(what)) {                                                         \
            fprintf(stderr, "%s:%d: %s does not hold (errno: %s)\n", __FILE__, \
                    __LINE__, #what, strerror(errno));                         \
            exit(1);                                                           \
        }                                                                      \
    } while (0)

/* As CHECK(got == wanted), and says both. */
#define SAME(got, wanted)                                                      \
    do {                                                                       \
        unsigned long long got_ = (got), wanted_ = (wanted);                   \
        if (got_ != wanted_) {                                                 \
            fprintf(stderr, "%s:%d: %s is %#llx, not %#llx\n", __FILE__,       \
                    __LINE__, #got, got_, wanted_);                            \
            exit(1);                                                           \
        }                                                                      \
    } while (0)

/* FNV-1a, from `hash` on; 0xcbf29ce484222325 begins. */
static inline unsigned long long fnv(unsigned long long hash, const void *data,
                                     size_t length) {
    const unsigned char *byte = data;
    while (length--)
        hash = (hash ^ *byte++) * 0x100000001b3ULL;
    return hash;
}

#define FNV 0xcbf29ce484222325ULL

/* A fixed sequence of pseudo-random numbers (SplitMix64). */
static inline unsigned long long next_random(unsigned long long *state) {
    unsigned long long z = *state += 0x9e3779b97f4a7c15ULL;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

#endif
