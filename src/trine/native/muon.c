/* Muon's update on processors with bf16 products (AMX, AVX-512), matrix by matrix: momentum, Newton-Schulz, weight, each element once.

   Called by trine.optim.native from several threads at once, each of which takes the next matrix until none is left; a
   matrix is made by one thread, so results do not depend on how many there are. Rows and columns are multiples of 32.
   The iteration is that of trine.optim.newton_schulz: bf16 matrices, fp32 sums. X is kept as it lies in memory; of a
   wide X the Gram matrix is X X^T and the step P X, of a tall one X^T X and X P. */
#include "tiles.h"

#ifdef TILES
#include <math.h>

typedef struct {
    float *weight, *momentum;
    const float *gradient;
    int64_t rows, columns;
    float decay, scale; /* weight <- decay * weight - scale * update */
} Matrix;

typedef struct {
    const Matrix *matrices;
    const float *coefficients; /* a, b, c of each step */
    int64_t count, steps, nesterov;
    float beta;
    int64_t next;
} Muon;

typedef struct {
    bf16 *x, *left, *right, *other, *gram, *tiles, *turned;
} Space;

static inline float total(const float *x, int64_t n) { /* of squares; in double beyond a row */
    double sum = 0;
    for (int64_t i = 0; i < n; i += 512) {
        __m512 s = _mm512_setzero_ps();
        for (int64_t j = i; j < n && j < i + 512; j += 16) s += _mm512_loadu_ps(x + j) * _mm512_loadu_ps(x + j);
        sum += _mm512_reduce_add_ps(s);
    }
    return (float)sum;
}

/* momentum <- beta * momentum + gradient; x = the direction over its Frobenius norm. `wide` is room for the direction. */
static void direction(const Muon *o, const Matrix *m, bf16 *x, float *wide) {
    int64_t size = m->rows * m->columns;
    __m512 beta = _mm512_set1_ps(o->beta);
    for (int64_t i = 0; i < size; i += 16) {
        __m512 g = _mm512_loadu_ps(m->gradient + i), v = _mm512_loadu_ps(m->momentum + i) * beta + g;
        _mm512_storeu_ps(m->momentum + i, v);
        if (o->nesterov) _mm512_storeu_ps(wide + i, v * beta + g);
        else _mm512_storeu_ps(wide + i, v);
    }
    float norm = sqrtf(total(wide, size));
    __m512 divisor = _mm512_set1_ps(norm > 1e-30f ? norm : 1e-30f);
    for (int64_t i = 0; i < size; i += 16) store16(x + i, _mm512_loadu_ps(wide + i) / divisor);
}

/* out[16 rows, 16 columns] = alpha * c + beta * old */
static inline void emit(bf16 *out, const float *c, const bf16 *old, int64_t stride, float alpha, float beta) {
    for (int64_t i = 0; i < 16; i++) {
        __m512 v = _mm512_loadu_ps(c + 16 * i) * alpha;
        if (old) v += load16(old + i * stride) * beta;
        store16(out + i * stride, v);
    }
}

/* out [n, n] = alpha * left right + beta * old where the result is symmetric: half of it is computed. */
static void symmetric(bf16 *out, const bf16 *left, const bf16 *right, const bf16 *old, int64_t n, int64_t depth,
                      float alpha, float beta) {
    float c[4][256];
    for (int64_t i = 0; i < n; i += 32)
        for (int64_t j = i; j < n; j += 32) {
            const bf16 *r = right + j / 16 * depth * TILE;
            product(c, left + i / 16 * depth * TILE, r, r + depth * TILE, depth);
            for (int q = 0; q < 4; q++) {
                int64_t row = i + q / 2 * 16, column = j + q % 2 * 16, at = row * n + column, mirror = column * n + row;
                emit(out + at, c[q], old ? old + at : NULL, n, alpha, beta);
                if (i == j) continue;
                __m512i t[16];
                for (int k = 0; k < 16; k++) t[k] = _mm512_loadu_si512(c[q] + 16 * k);
                transpose(t);
                for (int k = 0; k < 16; k++) _mm512_storeu_si512(c[q] + 16 * k, t[k]);
                emit(out + mirror, c[q], old ? old + mirror : NULL, n, alpha, beta);
            }
        }
}

static void iterate(const Space *s, const Matrix *m, float a, float b, float c) {
    int64_t rows = m->rows, columns = m->columns, wide = rows <= columns, n = wide ? rows : columns;
    int64_t depth = (wide ? columns : rows) / 32, small = n / 32;
    Rows x = {s->x, columns, NULL, 1}, gram = {s->gram, n, NULL, 1};
    if (wide) {
        pack_left(s->left, &x, rows, columns);
        turn_tiles(s->right, s->left, n / 16 * depth);
        pack_right_rows(s->other, &x, rows, columns);
    } else {
        pack_left_transposed(s->left, &x, rows, columns);
        pack_right_rows(s->right, &x, rows, columns);
        pack_left(s->other, &x, rows, columns);
    }
    symmetric(s->gram, s->left, s->right, NULL, n, depth, 1.0f, 0.0f);
    pack_left(s->tiles, &gram, n, n);
    turn_tiles(s->turned, s->tiles, n / 16 * small);
    symmetric(s->left, s->tiles, s->turned, s->gram, n, small, c, b);
    Rows polynomial = {s->left, n, NULL, 1};
    pack_left(s->tiles, &polynomial, n, n);
    if (!wide) turn_tiles(s->turned, s->tiles, n / 16 * small);
    const bf16 *left = wide ? s->tiles : s->other, *right = wide ? s->other : s->turned;
    float p[4][256];
    for (int64_t i = 0; i < rows; i += 32)
        for (int64_t j = 0; j < columns; j += 32) {
            const bf16 *r = right + j / 16 * small * TILE;
            product(p, left + i / 16 * small * TILE, r, r + small * TILE, small);
            for (int q = 0; q < 4; q++) {
                bf16 *at = s->x + (i + q / 2 * 16) * columns + j + q % 2 * 16;
                emit(at, p[q], at, columns, 1.0f, a);
            }
        }
}

static void update(const Muon *o, const Matrix *m, const Space *s, float *wide) {
    direction(o, m, s->x, wide);
    for (int64_t k = 0; k < o->steps; k++)
        iterate(s, m, o->coefficients[3 * k], o->coefficients[3 * k + 1], o->coefficients[3 * k + 2]);
    __m512 decay = _mm512_set1_ps(m->decay), scale = _mm512_set1_ps(m->scale);
    for (int64_t i = 0; i < m->rows * m->columns; i += 16)
        _mm512_storeu_ps(m->weight + i, _mm512_loadu_ps(m->weight + i) * decay - load16(s->x + i) * scale);
}

/* `size` is the largest matrix's, `square` the largest square of a shorter side. 0, or 1 where there is no memory. */
int muon_update(Muon *o, int64_t size, int64_t square) {
    int64_t most = size > square ? size : square;
    bf16 *all = aligned_alloc(64, (4 * most + 3 * square) * sizeof(bf16));
    if (!all) return 1;
    Space s = {all, all + most, all + 2 * most, all + 3 * most};
    s.gram = all + 4 * most, s.tiles = s.gram + square, s.turned = s.tiles + square;
    TileShapes before = tiles_begin();
    for (int64_t i; (i = __atomic_fetch_add(&o->next, 1, __ATOMIC_RELAXED)) < o->count;)
        update(o, o->matrices + i, &s, (float *)s.left);
    tiles_end(&before);
    free(all);
    return 0;
}

#endif
