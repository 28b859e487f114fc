/* What merging does to every number, on blocks that lie in the cache: widen, sum, select, agree, round, draw.
   Each has a twin in numpy in trine/merge, to the same bits. */
#include "blocks.h"
#include "keyed.h"

/* bf16 to fp32; whether any is NaN or infinite. */
int widen_bf16(const uint16_t *raw, uint32_t *out, int64_t n) {
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = (uint32_t)raw[i] << 16;
        bad |= (bits & 0x7F800000u) == 0x7F800000u;
        out[i] = bits;
    }
    return bad != 0;
}

/* arrays[0] = sum_i weights[i] arrays[i], each step a fused multiply-add. */
void weighted_sum(float *const *arrays, const float *weights, int64_t count, int64_t n) {
    float *total = arrays[0];
    for (int64_t start = 0; start < n; start += 2048) {
        int64_t stop = start + 2048 < n ? start + 2048 : n;
        for (int64_t i = start; i < stop; i++) total[i] *= weights[0];
        for (int64_t k = 1; k < count; k++) {
            const float *values = arrays[k], weight = weights[k];
            for (int64_t i = start; i < stop; i++) total[i] = fmaf(weight, values[i], total[i]);
        }
    }
}

/* Sign election of TIES over weighted differences: sums of those, and of their weights, that have the elected sign
   (+ where the sum is 0). A sum of weights that is 0 becomes 1. */
void agree(float *const *deltas, const float *weights, int64_t count, float *above, float *below, int64_t n) {
    for (int64_t start = 0; start < n; start += 2048) {
        int64_t stop = start + 2048 < n ? start + 2048 : n;
        float elected[2048];
        memcpy(elected, deltas[0] + start, (stop - start) * sizeof(float));
        for (int64_t k = 1; k < count; k++)
            for (int64_t i = start; i < stop; i++) elected[i - start] += deltas[k][i];
        for (int64_t i = start; i < stop; i++) above[i] = below[i] = 0;
        for (int64_t k = 0; k < count; k++) {
            const float *delta = deltas[k], weight = weights[k];
            for (int64_t i = start; i < stop; i++) {
                float d = delta[i], e = elected[i - start];
                int same = e >= 0 ? d > 0 : d < 0;
                above[i] = same ? above[i] + d : above[i];
                below[i] = same ? below[i] + weight : below[i];
            }
        }
        for (int64_t i = start; i < stop; i++) below[i] = below[i] == 0 ? 1 : below[i];
    }
}

/* 32 random bits of the elements place, place + 1, ..., none of which crosses a multiple of 2^32. */
void draw(uint32_t place, uint32_t first, uint32_t second, uint32_t *out, int64_t n) {
    for (int64_t i = 0; i < n; i++) out[i] = keyed_bits(place + (uint32_t)i, first, second);
}

void narrow_bf16(const uint32_t *values, uint16_t *out, int64_t n) { narrow(values, out, n); }

int64_t scan_block(const float *scores, int64_t n, float low, float high, int64_t *counts, float *values) {
    return scan(scores, n, low, high, counts, values);
}

int has_crc32(void) { return HAS_CRC32; }

uint32_t crc32(uint32_t before, const uint8_t *data, int64_t n) { return crc32_after(before, data, n); }
