/* Blocks of numbers on their way: read from files, rounded, checked by CRC-32, searched. */
#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

/* A tensor in a file. */
typedef struct {
    int64_t file, offset; /* descriptor; bytes before element 0 */
    int64_t kind;         /* 0 fp32, 1 bf16 */
    int64_t checked;      /* whether NaN and infinity are refused */
    void *buffer;         /* for a block */
} feed;

/* Whether any of n bf16, or fp32, numbers is NaN or infinite. */
static int not_finite16(const uint16_t *raw, int64_t n) {
    uint16_t bad = 0;
    for (int64_t i = 0; i < n; i++) bad |= (uint16_t)-((raw[i] & 0x7F80u) == 0x7F80u);
    return bad != 0;
}

static int not_finite32(const uint32_t *raw, int64_t n) {
    uint32_t bad = 0;
    for (int64_t i = 0; i < n; i++) bad |= (uint32_t)-((raw[i] & 0x7F800000u) == 0x7F800000u);
    return bad != 0;
}

/* Elements [start, start + n) into the buffer; whether they are there and may be used. */
static int fetch(const feed *from, int64_t start, int64_t n) {
    int64_t width = from->kind ? 2 : 4, left = n * width, at = from->offset + start * width;
    for (char *to = from->buffer; left;) {
        ssize_t got = pread((int)from->file, to, (size_t)left, at);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return 0;
        to += got, at += got, left -= got;
    }
    if (!from->checked) return 1;
    return !(from->kind ? not_finite16(from->buffer, n) : not_finite32(from->buffer, n));
}

/* fp32 to bf16, to nearest, ties to even; NaN becomes 0x7FC0. */
static void narrow(const uint32_t *values, uint16_t *out, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = values[i];
        uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
        out[i] = (uint16_t)((bits & 0x7FFFFFFFu) > 0x7F800000u ? 0x7FC0u : rounded);
    }
}

/* What a bracket sees in a block of scores: counts[0] above high, counts[1] at high, counts[2] at low, counts[3] that are
   not 0; the numbers strictly between are kept in order. Returns how many. `values` has room for n + 16. */
static int64_t scan(const float *scores, int64_t n, float low, float high, int64_t *counts, float *values) {
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

#if defined(__PCLMUL__) && defined(__SSE4_1__)

static inline __m128i fold(__m128i value, __m128i by, __m128i next) {
    __m128i low = _mm_clmulepi64_si128(value, by, 0x00), high = _mm_clmulepi64_si128(value, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

/* A state of CRC-32 (the reflected polynomial 0xEDB88320, as zlib's, before its final inversion) after n more bytes, n a
   multiple of 16 and at least 64, as 16 bytes that have the same CRC. Gopal et al., "Fast CRC computation using
   PCLMULQDQ" (Intel 2009): the constants are powers of x modulo the polynomial, 4 and 1 times 128 bits ahead. */
static void crc32_folded(uint32_t crc, const uint8_t *data, int64_t n, uint8_t *out) {
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

/* The CRC-32 of n more bytes after bytes whose CRC-32 is `before`, as zlib's. */
static uint32_t crc32_after(uint32_t before, const uint8_t *data, int64_t n) {
    uint8_t folded[16];
    uint32_t state = ~before;
    int64_t bulk = n < 64 ? 0 : n / 16 * 16;
    if (bulk) crc32_folded(state, data, bulk, folded), state = 0;
    for (int64_t i = bulk ? -16 : 0; i < n - bulk; i++) {
        state ^= i < 0 ? folded[16 + i] : data[bulk + i];
        for (int bit = 0; bit < 8; bit++) state = state >> 1 ^ (0xEDB88320u & -(state & 1));
    }
    return ~state;
}

#define HAS_CRC32 1
#else
static uint32_t crc32_after(uint32_t before, const uint8_t *data, int64_t n) { return before; }
#define HAS_CRC32 0
#endif
