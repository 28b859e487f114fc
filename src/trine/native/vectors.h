/* 16 fp32 numbers at a time on any processor, and products of a few vectors with 16 rows of a bf16 matrix at a time.

   Vectors are packed once, `pack`, for many `sixteen`; by AMX tiles of bf16, or in fp32 on processors without. A number
   is made in one order, whatever the vectors beside it. Sums are multiples of 32 long; room for packed vectors is 16 to a
   group, fp32. */
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AMX_BF16__
#include "tiles.h"
#endif

#define ALWAYS_INLINE inline __attribute__((always_inline))

typedef uint16_t bf16;
typedef float vec __attribute__((vector_size(64)));
typedef uint16_t half_vec __attribute__((vector_size(32)));
typedef uint32_t word_vec __attribute__((vector_size(64)));
typedef int32_t int_vec __attribute__((vector_size(64)));
typedef float vec8 __attribute__((vector_size(32)));
typedef float vec4 __attribute__((vector_size(16)));

static inline vec read16(const float *p) { vec v; memcpy(&v, p, 64); return v; }
static inline void write16(float *p, vec v) { memcpy(p, &v, 64); }
static inline vec widen16(const bf16 *p) {
    half_vec h;
    memcpy(&h, p, 32);
    return (vec)(__builtin_convertvector(h, word_vec) << 16);
}
static inline bf16 to_bf16(float f) { /* to nearest, ties to even */
    uint32_t w;
    memcpy(&w, &f, 4);
    return (bf16)((w + 0x7fff + ((w >> 16) & 1)) >> 16);
}
static inline void narrow16(bf16 *p, vec v) { /* as to_bf16 */
    word_vec w = (word_vec)v;
    half_vec h = __builtin_convertvector((w + 0x7fff + ((w >> 16) & 1)) >> 16, half_vec);
    memcpy(p, &h, 32);
}
static inline float total16(vec v) {
    vec8 a[2];
    vec4 b[2];
    memcpy(a, &v, 64);
    a[0] += a[1];
    memcpy(b, a, 32);
    b[0] += b[1];
    return (b[0][0] + b[0][1]) + (b[0][2] + b[0][3]);
}
static inline vec larger16(vec a, vec b) { return (vec)(((int_vec)a & (a > b)) | ((int_vec)b & ~(a > b))); }
/* e^x for |x| <= 87, beyond as there; relative error below 3e-7: 2^n times a Taylor polynomial around 0. */
static inline vec exp16(vec x) {
    x = -larger16(-larger16(x, (vec){0} - 87.0f), (vec){0} - 87.0f);
    vec n = x * 1.44269504f + 12582912.0f - 12582912.0f; /* 1.5 * 2^23 rounds to an integer */
    vec r = x - n * 0.693359375f + n * 2.12194440e-4f, p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120, p = p * r + 1.0f / 24, p = p * r + 1.0f / 6, p = p * r + 0.5f;
    p = (p * r + 1.0f) * r + 1.0f;
    return (vec)((word_vec)p + ((word_vec)__builtin_convertvector(n, int_vec) << 23));
}
static inline vec sigmoid16(vec x) { return 1.0f / (1.0f + exp16(-x)); }

#ifdef __AMX_BF16__

/* Rows of n numbers as right tiles of bf16, 16 rows to a group. */
static void pack(float *packed, const float *const *from, int64_t rows, int64_t n) {
    bf16 *to = (bf16 *)packed;
    for (int64_t r = 0; r < rows; r += 16)
        for (int64_t k = 0; k < n; k += 32, to += TILE) {
            __m512i word[16];
            for (int i = 0; i < 16; i++) word[i] = r + i < rows ? load_narrow(from[r + i] + k) : _mm512_setzero_si512();
            transpose(word);
            for (int i = 0; i < 16; i++) store(to + 32 * i, word[i]);
        }
}

/* out [rows, 16] = packed rows times 16 rows of a matrix; the sum's even and odd blocks of 32 apart. */
static void sixteen(float *out, const bf16 *w, int64_t stride, const float *packed, int64_t n, int64_t rows) {
    for (int64_t r = 0; r < rows; r += 16) {
        const bf16 *right = (const bf16 *)packed + r * n, *ahead = w + 16 * stride;
        float sums[2][256];
        _tile_zero(0); _tile_zero(1);
        for (int64_t k = 0; k < n; k += 64) {
            for (int i = 0; i < 32 && r == 0; i++) __builtin_prefetch(ahead + 16 * k + 32 * i);
            _tile_loadd(4, w + k, 2 * stride);
            _tile_loadd(6, right + 16 * k, 64);
            _tile_dpbf16ps(0, 4, 6);
            if (k + 32 == n) break;
            _tile_loadd(5, w + k + 32, 2 * stride);
            _tile_loadd(7, right + 16 * k + TILE, 64);
            _tile_dpbf16ps(1, 5, 7);
        }
        _tile_stored(0, sums[0], 64); _tile_stored(1, sums[1], 64);
        __m512i turned[16];
        for (int i = 0; i < 16; i++) turned[i] = (__m512i)(_mm512_loadu_ps(sums[0] + 16 * i) + _mm512_loadu_ps(sums[1] + 16 * i));
        transpose(turned);
        for (int i = 0; i < 16 && r + i < rows; i++) _mm512_storeu_si512(out + 16 * (r + i), turned[i]);
    }
}

#else

/* Rows of n numbers, one after the other. */
static void pack(float *packed, const float *const *from, int64_t rows, int64_t n) {
    for (int64_t r = 0; r < rows; r++) memcpy(packed + r * n, from[r], sizeof(float) * n);
}

/* out[16 r] = w . x[r] for R rows, by the same two partial sums whatever R. */
static ALWAYS_INLINE void dot(float *out, const bf16 *w, const float *x, int64_t n, const int R) {
    vec s[4][2] = {0};
    for (int64_t i = 0; i < n; i += 32)
        for (int k = 0; k < 2; k++) {
            vec a = widen16(w + i + 16 * k);
            for (int r = 0; r < R; r++) s[r][k] += a * read16(x + r * n + i + 16 * k);
        }
    for (int r = 0; r < R; r++) out[16 * r] = total16(s[r][0] + s[r][1]);
}

/* out [rows, 16] = packed rows times 16 rows of a matrix. */
static void sixteen(float *out, const bf16 *w, int64_t stride, const float *packed, int64_t n, int64_t rows) {
    for (int64_t i = 0; i < 16; i++, w += stride) {
        int64_t r = 0;
        for (; r + 4 <= rows; r += 4) dot(out + 16 * r + i, w, packed + r * n, n, 4);
        for (; r < rows; r++) dot(out + 16 * r + i, w, packed + r * n, n, 1);
    }
}

int available(void) { return 1; }

#endif
