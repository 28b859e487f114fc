/* bf16 matrix products by AMX, or by AVX-512 where there is no AMX: packing into tiles, and the product of packed tiles.

   A tile is 1 KiB. Of a left matrix it holds 16 rows by 32 columns, row after row; of a right matrix 32 rows by 16
   columns, rows in pairs: entry (k, n) at row k / 2, place 2 n + k % 2. Packed matrices are tiles in the order [block of
   16 rows or columns of the result][block of 32 along the sum], so a product walks both in a straight line. */
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;

#if defined(__AMX_BF16__) || defined(__AVX512BF16__)
#define TILES

enum { TILE = 512 }; /* elements */

static inline int64_t blocks(int64_t n, int64_t size) { return (n + size - 1) / size; }
static inline __m512i load(const bf16 *p) { return _mm512_loadu_si512(p); }
static inline void store(bf16 *p, __m512i v) { _mm512_storeu_si512(p, v); }
static inline __m256i narrow(__m512 v) { return (__m256i)_mm512_cvtneps_pbh(v); }
static inline void store16(bf16 *p, __m512 v) { _mm256_storeu_si256((__m256i *)p, narrow(v)); }
static inline __m512 load16(const bf16 *p) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
static inline __m512i load_narrow(const float *p) { /* 32 floats */
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(p + 16), _mm512_loadu_ps(p));
}

/* e^x, relative error below 2e-7 where the result is a normal number. */
static inline __m512 exponential(__m512 x) {
    x = _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-104.0f)), _mm512_set1_ps(88.7f));
    __m512 n = _mm512_roundscale_ps(x * 1.44269504f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = x - n * 0.693359375f + n * 2.12194440e-4f, p = r * (1.0f / 720) + (1.0f / 120);
    p = p * r + (1.0f / 24), p = p * r + (1.0f / 6), p = p * r + 0.5f, p = p * r + 1.0f, p = p * r + 1.0f;
    return _mm512_scalef_ps(p, n);
}

/* The transpose of 16 rows of 16 32-bit words. */
static inline void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
        r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
        r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
        r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
    }
}

/* Left tiles to the right tiles of the transpose, and back. */
static void turn_tiles(bf16 *out, const bf16 *in, int64_t tiles) {
    for (int64_t t = 0; t < tiles; t++) {
        __m512i r[16];
        for (int i = 0; i < 16; i++) r[i] = load(in + t * TILE + 32 * i);
        transpose(r);
        for (int i = 0; i < 16; i++) store(out + t * TILE + 32 * i, r[i]);
    }
}

static __thread bf16 *scratch;
static __thread int64_t scratch_size;

/* Room for `size` elements, a thread's own, kept. */
static inline bf16 *room(int64_t size) {
    if (size > scratch_size) {
        free(scratch);
        scratch = aligned_alloc(64, blocks(size * 2, 64) * 64);
        scratch_size = scratch ? size : 0;
    }
    return scratch;
}

/* Rows to pack: row i begins at base + stride * (index ? index[i] / share : i). */
typedef struct {
    const bf16 *base;
    int64_t stride;
    const int64_t *index;
    int64_t share;
} Rows;
static inline const bf16 *row_of(const Rows *x, int64_t i) {
    return x->base + x->stride * (x->index ? x->index[i] / x->share : i);
}

/* Left matrix: `rows` rows of `columns` (a multiple of 32), padded with zeros to a multiple of 32 rows. */
static void pack_left(bf16 *out, const Rows *x, int64_t rows, int64_t columns) {
    int64_t across = columns / 32;
    for (int64_t i = 0; i < blocks(rows, 32) * 32; i++) {
        bf16 *to = out + i / 16 * across * TILE + i % 16 * 32;
        const bf16 *from = i < rows ? row_of(x, i) : NULL;
        for (int64_t k = 0; k < across; k++)
            store(to + k * TILE, from ? load(from + 32 * k) : _mm512_setzero_si512());
    }
}

/* Right matrix given as its transpose in fp32: `columns` rows (a multiple of 16) of `depth` (a multiple of 32). */
static void pack_right_transposed(bf16 *out, const float *x, int64_t columns, int64_t depth) {
    for (int64_t n = 0; n < columns; n += 16)
        for (int64_t k = 0; k < depth; k += 32, out += TILE) {
            __m512i r[16];
            for (int i = 0; i < 16; i++) r[i] = load_narrow(x + (n + i) * depth + k);
            transpose(r);
            for (int i = 0; i < 16; i++) store(out + 32 * i, r[i]);
        }
}

static inline void pair(__m512i a, __m512i b, __m512i *low, __m512i *high) {
    const __m512i first = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6,
                                           37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    *low = _mm512_permutex2var_epi16(a, first, b);
    *high = _mm512_permutex2var_epi16(a, _mm512_add_epi16(first, _mm512_set1_epi16(16)), b);
}

/* Right matrix in fp32: `depth` rows (a multiple of 32) of `columns` (a multiple of 32); blocks of columns lie `along`
   elements apart, which is more than `depth` rows take where they are a part of the matrix. */
static void pack_right(bf16 *out, const float *x, int64_t depth, int64_t columns, int64_t along) {
    for (int64_t k = 0; k < depth; k += 2)
        for (int64_t n = 0; n < columns; n += 32) {
            bf16 *to = out + n / 16 * along + k / 32 * TILE + k % 32 * 16;
            __m512i low, high;
            pair(load_narrow(x + k * columns + n), load_narrow(x + (k + 1) * columns + n), &low, &high);
            store(to, low), store(to + along, high);
        }
}

/* Right matrix of `depth` bf16 rows, padded with zeros to a multiple of 32, of `columns` (a multiple of 32); `along` as in
   `pack_right`. */
static void pack_right_apart(bf16 *out, const Rows *x, int64_t depth, int64_t columns, int64_t along) {
    const __m512i zero = _mm512_setzero_si512();
    for (int64_t k = 0; k < blocks(depth, 32) * 32; k += 2) {
        const bf16 *a = k < depth ? row_of(x, k) : NULL, *b = k + 1 < depth ? row_of(x, k + 1) : NULL;
        for (int64_t n = 0; n < columns; n += 32) {
            bf16 *to = out + n / 16 * along + k / 32 * TILE + k % 32 * 16;
            __m512i low, high;
            pair(a ? load(a + n) : zero, b ? load(b + n) : zero, &low, &high);
            store(to, low), store(to + along, high);
        }
    }
}

static void pack_right_rows(bf16 *out, const Rows *x, int64_t depth, int64_t columns) {
    pack_right_apart(out, x, depth, columns, blocks(depth, 32) * TILE);
}

/* `pack_right_transposed` and `pack_right` of weights that are fp32 or, where `narrow`, bf16; both sides multiples of 32. */
static inline void pack_weights_transposed(bf16 *out, const void *x, int64_t narrow, int64_t columns, int64_t depth) {
    Rows rows = {x, depth, NULL, 1};
    if (!narrow) {
        pack_right_transposed(out, x, columns, depth);
        return;
    }
    pack_left(out, &rows, columns, depth);
    turn_tiles(out, out, columns / 16 * (depth / 32));
}
static inline void pack_weights(bf16 *out, const void *x, int64_t narrow, int64_t depth, int64_t columns, int64_t along) {
    Rows rows = {x, columns, NULL, 1};
    if (narrow)
        pack_right_apart(out, &rows, depth, columns, along);
    else
        pack_right(out, x, depth, columns, along);
}

/* Left matrix given as its transpose, `depth` bf16 rows of `columns`, padded along the depth. */
static void pack_left_transposed(bf16 *out, const Rows *x, int64_t depth, int64_t columns) {
    pack_right_rows(out, x, depth, columns);
    turn_tiles(out, out, columns / 16 * blocks(depth, 32));
}

/* Where `multiply` puts 16 by 16 numbers: left 0 by right 0, left 0 by right 1, left 1 by right 0, left 1 by right 1. */
typedef struct {
    float *at[4];
    int64_t stride; /* from row to row, elements */
} Result;

#ifdef __AMX_BF16__
#include "amx.h"
#else
#include "avx512.h"
#endif

/* Row i of 32, of the first or second 16 columns, in what `product` made. */
static inline float *part(float c[4][256], int64_t i, int half) { return c[i / 16 * 2 + half] + i % 16 * 16; }

/* 32 rows by 16 columns of two right matrices: out[0] and out[1] rows 0 to 15, out[2] and out[3] rows 16 to 31. */
static inline void product(float out[4][256], const bf16 *left, const bf16 *right0, const bf16 *right1, int64_t depth) {
    multiply((Result){{out[0], out[1], out[2], out[3]}, 16}, left, left + depth * TILE, TILE, right0, right1, depth, 0);
}

/* out [rows, columns] fp32 = (add ? out : 0) + left x right, both packed; rows and columns multiples of 32. */
static void product_into(float *out, const bf16 *left, const bf16 *right, int64_t rows, int64_t columns, int64_t depth,
                         int add) {
    for (int64_t i = 0; i < rows; i += 32)
        for (int64_t j = 0; j < columns; j += 32) {
            float *to = out + i * columns + j, *below = to + 16 * columns;
            const bf16 *l = left + i / 16 * depth * TILE, *r = right + j / 16 * depth * TILE;
            multiply((Result){{to, to + 16, below, below + 16}, columns}, l, l + depth * TILE, TILE, r, r + depth * TILE,
                     depth, add);
        }
}

#else
int available(void) { return 0; }
#endif
