/* What merging does to every number, on blocks that lie in the cache: widen, sum, select, agree, round, draw.
   Each has a twin in numpy in trine/merge, to the same bits. */
#include "keyed.h"

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

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

/* fp32 to bf16, to nearest, ties to even; NaN becomes 0x7FC0. */
void narrow_bf16(const uint32_t *values, uint16_t *out, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = values[i];
        uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
        out[i] = (uint16_t)((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
    }
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

/* What a bracket sees in a block of scores: counts[0] above high, counts[1] at high, counts[2] at low, counts[3] that are
   not 0; the numbers strictly between are kept in order. Returns how many. `values` has room for n + 16. */
int64_t scan(const float *scores, int64_t n, float low, float high, int64_t *counts, float *values) {
    int64_t above = 0, at_high = 0, at_low = 0, kept = 0, not_zero = 0, i = 0;
#ifdef __AVX512F__
    const __m512 l = _mm512_set1_ps(low), h = _mm512_set1_ps(high), zero = _mm512_setzero_ps();
    for (; i + 16 <= n; i += 16) {
        __m512 s = _mm512_loadu_ps(scores + i);
        __mmask16 under = _mm512_cmp_ps_mask(s, h, _CMP_LT_OQ), over = _mm512_cmp_ps_mask(s, h, _CMP_GT_OQ);
        __mmask16 inside = _mm512_mask_cmp_ps_mask(under, s, l, _CMP_GT_OQ);
        above += _mm_popcnt_u32(over);
        at_high += _mm_popcnt_u32((uint16_t)~(under | over));
        at_low += _mm_popcnt_u32(_mm512_cmp_ps_mask(s, l, _CMP_EQ_OQ));
        not_zero += _mm_popcnt_u32(_mm512_cmp_ps_mask(s, zero, _CMP_NEQ_OQ));
        _mm512_storeu_ps(values + kept, _mm512_maskz_compress_ps(inside, s));
        kept += _mm_popcnt_u32(inside);
    }
#endif
    for (; i < n; i++) {
        float s = scores[i];
        above += s > high, at_high += s == high, at_low += s == low, not_zero += s != 0;
        values[kept] = s;
        kept += (s > low) & (s < high);
    }
    counts[0] = above, counts[1] = at_high, counts[2] = at_low, counts[3] = not_zero;
    return kept;
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

#if defined(__PCLMUL__) && defined(__SSE4_1__)

static inline __m128i fold(__m128i value, __m128i by, __m128i next) {
    __m128i low = _mm_clmulepi64_si128(value, by, 0x00), high = _mm_clmulepi64_si128(value, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

/* A state of CRC-32 (the reflected polynomial 0xEDB88320, as zlib's, before its final inversion) after n more bytes, n a
   multiple of 16 and at least 64, as 16 bytes that have the same CRC. Gopal et al., "Fast CRC computation using
   PCLMULQDQ" (Intel 2009): the constants are powers of x modulo the polynomial, 4 and 1 times 128 bits ahead. */
void crc32_folded(uint32_t crc, const uint8_t *data, int64_t n, uint8_t *out) {
    const __m128i four = _mm_set_epi64x(0x1c6e41596, 0x154442bd4), one = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);
    const __m128i *words = (const __m128i *)data;
    __m128i a[4];
    for (int i = 0; i < 4; i++) a[i] = _mm_loadu_si128(words + i);
    a[0] = _mm_xor_si128(a[0], _mm_cvtsi32_si128((int)crc));
    int64_t i = 4, count = n / 16;
    for (; i + 4 <= count; i += 4)
        for (int k = 0; k < 4; k++) a[k] = fold(a[k], four, _mm_loadu_si128(words + i + k));
    for (int k = 1; k < 4; k++) a[k] = fold(a[k - 1], one, a[k]);
    for (; i < count; i++) a[3] = fold(a[3], one, _mm_loadu_si128(words + i));
    _mm_storeu_si128((__m128i *)out, a[3]);
}

int has_crc32(void) { return 1; }
#else
int has_crc32(void) { return 0; }
#endif
