/* The simulated cards, chosen by environment variables, which are read at each call:
 *
 *   NULL_GPU_CARD          h100 (default) or a100
 *   NULL_GPU_MEMORY_GIB    memory of each card (default 79.1)
 *   NULL_GPU_DEVICES       cards of this machine (default 1)
 *   CUDA_VISIBLE_DEVICES   numbers of the cards that this process may use, as in CUDA */
#ifndef NULL_GPU_CARD_H
#define NULL_GPU_CARD_H

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define CUDA_VERSION_REPORTED 13020
#define MAX_DEVICES 64
#define CONTEXT_BYTES ((size_t)600 << 20) /* memory that a process needs on a card before it allocates anything */

typedef struct {
    const char *name;
    int major, minor; /* compute capability */
    int multiprocessors;
    int shared_per_multiprocessor, shared_per_block; /* bytes of shared memory; the latter with opt-in */
    int l2_bytes;
} Card;

/* What is the same on all cards. */
enum {
    WARP_SIZE = 32,
    THREADS_PER_BLOCK = 1024,
    THREADS_PER_MULTIPROCESSOR = 2048,
    BLOCKS_PER_MULTIPROCESSOR = 32,
    REGISTERS = 65536, /* of a multiprocessor */
    SHARED_PER_BLOCK = 49152,
    MAX_GRID_X = 2147483647,
    MAX_GRID_YZ = 65535,
    MAX_BLOCK_Z = 64,
    MEMORY_BUS_BITS = 5120,
    CLOCK_KHZ = 1410000,
    MEMORY_CLOCK_KHZ = 1215000
};

static inline const Card *card(void) {
    static const Card a100 = {"NVIDIA A100-SXM4-40GB", 8, 0, 108, 167936, 166912, 40 << 20};
    static const Card h100 = {"NVIDIA H100 80GB HBM3", 9, 0, 132, 233472, 232448, 50 << 20};
    const char *name = getenv("NULL_GPU_CARD");
    return name && !strcmp(name, "a100") ? &a100 : &h100;
}

static inline size_t card_memory(void) {
    const char *gib = getenv("NULL_GPU_MEMORY_GIB");
    return (size_t)((gib ? atof(gib) : 79.1) * (1 << 30));
}

/* Fills in the numbers of the cards that this process may use; returns how many there are. */
static inline int visible_cards(int numbers[MAX_DEVICES]) {
    const char *text = getenv("NULL_GPU_DEVICES"), *visible = getenv("CUDA_VISIBLE_DEVICES");
    int installed = text ? atoi(text) : 1, count = 0;
    if (!visible) {
        for (; count < installed && count < MAX_DEVICES; count++) numbers[count] = count;
        return count;
    }
    while (*visible && count < MAX_DEVICES) {
        char *end;
        long number = strtol(visible, &end, 10);
        if (end == visible || number < 0 || number >= installed) break; /* CUDA ignores what follows too */
        numbers[count++] = (int)number;
        visible = *end == ',' ? end + 1 : end;
    }
    return count;
}

/* The number of a visible card among all cards of the machine. */
static inline int card_number(int device) {
    int numbers[MAX_DEVICES], count = visible_cards(numbers);
    return device < count ? numbers[device] : device;
}

#endif
