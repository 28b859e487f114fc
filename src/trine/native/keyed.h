/* The random bits of trine/merge/methods/keyed.py. */
#include <stdint.h>

/* 32 bits of the element at `place`, for the two halves of a key. */
static inline uint32_t keyed_bits(uint32_t place, uint32_t first, uint32_t second) {
    uint32_t bits = place ^ first;
    bits ^= bits >> 16, bits *= 0x7FEB352Du, bits ^= bits >> 15, bits *= 0x846CA68Bu, bits ^= bits >> 16;
    bits ^= second;
    bits ^= bits >> 16, bits *= 0x7FEB352Du, bits ^= bits >> 15, bits *= 0x846CA68Bu, bits ^= bits >> 16;
    return bits;
}
