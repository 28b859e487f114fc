/* The product of packed tiles by AVX-512's bf16 dot products, 8 rows by 32 columns at a time; a part of tiles.h. */

typedef int TileShapes;
static inline TileShapes tiles_begin(void) { return 0; }
static inline void tiles_end(const TileShapes *before) { (void)before; }

int available(void) { return 1; }

enum { STRIP = 8 };

static inline __attribute__((always_inline)) __m512bh two(const bf16 *p) { /* of a row, to every place */
    int32_t pair;
    memcpy(&pair, p, 4);
    return (__m512bh)_mm512_set1_epi32(pair);
}

/* to0, to1 [8 rows] = (add ? they : 0) + rows of left tiles x (right 0, right 1). */
static inline void strip(float *to0, float *to1, int64_t stride, const bf16 *left, int64_t apart, const bf16 *right0,
                         const bf16 *right1, int64_t depth, int add) {
    __m512 c0[STRIP], c1[STRIP];
#pragma GCC unroll 8
    for (int i = 0; i < STRIP; i++) {
        c0[i] = add ? _mm512_loadu_ps(to0 + i * stride) : _mm512_setzero_ps();
        c1[i] = add ? _mm512_loadu_ps(to1 + i * stride) : _mm512_setzero_ps();
    }
    for (int64_t k = 0; k < depth; k++, left += apart, right0 += TILE, right1 += TILE)
        for (int p = 0; p < 16; p++) {
            __m512bh r0 = (__m512bh)load(right0 + 32 * p), r1 = (__m512bh)load(right1 + 32 * p);
#pragma GCC unroll 8
            for (int i = 0; i < STRIP; i++) {
                __m512bh l = two(left + 32 * i + 2 * p);
                c0[i] = _mm512_dpbf16_ps(c0[i], l, r0);
                c1[i] = _mm512_dpbf16_ps(c1[i], l, r1);
            }
        }
#pragma GCC unroll 8
    for (int i = 0; i < STRIP; i++) {
        _mm512_storeu_ps(to0 + i * stride, c0[i]);
        _mm512_storeu_ps(to1 + i * stride, c1[i]);
    }
}

/* to = (add ? to : 0) + (left 0; left 1) x (right 0, right 1) over `depth` tiles; those of the left ones lie `apart`. */
static inline void multiply(Result to, const bf16 *left0, const bf16 *left1, int64_t apart, const bf16 *right0,
                            const bf16 *right1, int64_t depth, int add) {
    for (int half = 0; half < 2; half++)
        for (int64_t i = 0; i < 16; i += STRIP)
            strip(to.at[2 * half] + i * to.stride, to.at[2 * half + 1] + i * to.stride, to.stride,
                  (half ? left1 : left0) + 32 * i, apart, right0, right1, depth, add);
}
