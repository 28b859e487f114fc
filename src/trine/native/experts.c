/* The routed experts' feed-forward and its gradients on processors with bf16 products (AMX, AVX-512), expert by expert.

   Called by trine.moe.native from several threads at once, each of which takes the next expert until none is left. Every
   number is made by one thread in a fixed order: results do not depend on how many there are. Widths are multiples of
   32; activations are bf16, weights fp32 (frozen ones may be bf16), gradients of weights and sums fp32. A row of the sorted order is a (token, choice)
   pair; results go to the pair's own place, and `sum_choices` adds each token's. */
#include "tiles.h"

#ifdef TILES

typedef struct {
    const void *at; /* fp32, or bf16 where narrow */
    float *grad;    /* NULL: the matrix is frozen */
    int64_t narrow;
} Matrix;

typedef struct {
    int64_t tokens, choices, experts, width, inner;
    const bf16 *x;              /* [tokens, width] */
    const Matrix *matrices;     /* [experts][gate, up, down]: [inner, width] twice, [width, inner] */
    const float *weights;       /* [tokens, choices] */
    const int64_t *order, *ends; /* pairs sorted by expert; where each expert's rows end */
    const int64_t *turns;       /* experts in the order in which they are taken */
    bf16 *hidden;               /* [pairs, 2 inner]: gate and up before the activation, in sorted order */
    bf16 *places;               /* [pairs, width]: results, or gradients of x, by pair */
    const bf16 *grad;           /* [tokens, width] */
    float *grad_weights;
    int64_t next;
} Experts;

enum { ROWS = 128, LONG = 512 };

static int64_t take(Experts *e, int64_t *begin, int64_t *end) {
    int64_t turn = __atomic_fetch_add(&e->next, 1, __ATOMIC_RELAXED);
    if (turn >= e->experts) return -1;
    int64_t one = e->turns[turn];
    *begin = one ? e->ends[one - 1] : 0, *end = e->ends[one];
    return one;
}

static inline __m512 sigmoid(__m512 x) {
    return _mm512_set1_ps(1.0f) / (_mm512_set1_ps(1.0f) + exponential(_mm512_setzero_ps() - x));
}

/* hidden = x W_in^T for 16 columns of gate and up; the weighted activation into the tiles of the next product. */
static void activate(const Experts *e, float c[4][256], int64_t row, int64_t rows, int64_t column, bf16 *activated) {
    for (int64_t i = 0; i < 32; i++) {
        __m512 gate = _mm512_loadu_ps(part(c, i, 0)), up = _mm512_loadu_ps(part(c, i, 1));
        __m512 out = _mm512_setzero_ps();
        if (i < rows) {
            bf16 *kept = e->hidden + (row + i) * 2 * e->inner + column;
            store16(kept, gate), store16(kept + e->inner, up);
            out = gate * sigmoid(gate) * up * e->weights[e->order[row + i]];
        }
        store16(activated + i / 16 * (e->inner / 32) * TILE + column / 32 * TILE + i % 16 * 32 + column % 32, out);
    }
}

static void to_places(const Experts *e, float c[4][256], int64_t row, int64_t rows, int64_t column) {
    for (int64_t i = 0; i < rows; i++) {
        bf16 *to = e->places + e->order[row + i] * e->width + column;
        for (int half = 0; half < 2; half++) store16(to + 16 * half, _mm512_loadu_ps(part(c, i, half)));
    }
}

static void forward_one(const Experts *e, int64_t one, int64_t begin, int64_t end, bf16 *space) {
    int64_t deep = e->width / 32 * TILE, thin = e->inner / 32 * TILE, size = e->width * e->inner;
    bf16 *in = space, *out = in + 2 * size, *left = out + size, *activated = left + ROWS * e->width;
    const Matrix *gate = e->matrices + 3 * one, *up = gate + 1, *down = gate + 2;
    float c[4][256];
    pack_weights_transposed(in, gate->at, gate->narrow, e->inner, e->width);
    pack_weights_transposed(in + size, up->at, up->narrow, e->inner, e->width);
    pack_weights_transposed(out, down->at, down->narrow, e->width, e->inner);
    for (int64_t row = begin; row < end; row += ROWS) {
        int64_t rows = end - row < ROWS ? end - row : ROWS;
        Rows x = {e->x, e->width, e->order + row, e->choices};
        pack_left(left, &x, rows, e->width);
        for (int64_t i = 0; i < rows; i += 32) {
            bf16 *half = activated + i / 16 * thin;
            for (int64_t j = 0; j < e->inner; j += 16) {
                product(c, left + i / 16 * deep, in + j / 16 * deep, in + (e->inner + j) / 16 * deep, e->width / 32);
                activate(e, c, row + i, rows - i, j, half);
            }
            for (int64_t j = 0; j < e->width; j += 32) {
                product(c, half, out + j / 16 * thin, out + (j / 16 + 1) * thin, e->inner / 32);
                to_places(e, c, row + i, rows - i < 32 ? rows - i : 32, j);
            }
        }
    }
}

/* Of 32 columns of dL/d(weighted activation): gradients of gate, up and gate weight, and the weighted activation. */
static void activate_backward(const Experts *e, float c[4][256], int64_t row, int64_t rows, int64_t column, bf16 *grads,
                              bf16 *weighted, __m512 *grad_weight) {
    for (int64_t i = 0; i < 32; i++)
        for (int half = 0; half < 2; half++) {
            int64_t at = column + 16 * half;
            __m512 d_gate = _mm512_setzero_ps(), d_up = d_gate, active = d_gate;
            if (i < rows) {
                const bf16 *kept = e->hidden + (row + i) * 2 * e->inner + at;
                __m512 gate = load16(kept), up = load16(kept + e->inner), s = sigmoid(gate), silu = gate * s;
                __m512 grad = _mm512_loadu_ps(part(c, i, half));
                float weight = e->weights[e->order[row + i]];
                active = silu * up;
                grad_weight[i] += grad * active;
                grad *= weight, active *= weight;
                d_gate = grad * up * (s + silu - silu * s), d_up = grad * silu;
            }
            store16(grads + i * 2 * e->inner + at, d_gate), store16(grads + i * 2 * e->inner + e->inner + at, d_up);
            store16(weighted + i * e->inner + at, active);
        }
}

static void backward_one(const Experts *e, int64_t one, int64_t begin, int64_t end, bf16 *space) {
    int64_t deep = e->width / 32 * TILE, thin = e->inner / 32 * TILE, size = e->width * e->inner;
    const Matrix *gate = e->matrices + 3 * one, *up = gate + 1, *down = gate + 2;
    bf16 *in = space, *out = in + 2 * size, *left = out + size, *grads = left + LONG * e->width;
    bf16 *weighted = grads + LONG * 2 * e->inner, *packed = weighted + LONG * e->inner;
    bf16 *other = packed + LONG * (e->width > 2 * e->inner ? e->width : 2 * e->inner);
    float c[4][256];
    if (begin == end) {
        for (const Matrix *m = gate; m <= down; m++)
            if (m->grad) memset(m->grad, 0, 4 * size);
    } else {
        pack_weights(in, gate->at, gate->narrow, e->inner, e->width, 2 * thin);
        pack_weights(in + thin, up->at, up->narrow, e->inner, e->width, 2 * thin);
        pack_weights(out, down->at, down->narrow, e->width, e->inner, deep);
    }
    for (int64_t row = begin; row < end; row += LONG) {
        int64_t rows = end - row < LONG ? end - row : LONG, depth = blocks(rows, 32);
        Rows x = {e->x, e->width, e->order + row, e->choices}, dy = {e->grad, e->width, e->order + row, e->choices};
        Rows d_hidden = {grads, 2 * e->inner, NULL, 1}, active = {weighted, e->inner, NULL, 1};
        pack_left(left, &dy, rows, e->width);
        for (int64_t i = 0; i < rows; i += 32) {
            __m512 grad_weight[32] = {0};
            for (int64_t j = 0; j < e->inner; j += 32) {
                product(c, left + i / 16 * deep, out + j / 16 * deep, out + (j / 16 + 1) * deep, e->width / 32);
                activate_backward(e, c, row + i, rows - i, j, grads + i * 2 * e->inner, weighted + i * e->inner, grad_weight);
            }
            for (int64_t r = 0; r < 32 && i + r < rows; r++)
                e->grad_weights[e->order[row + i + r]] = _mm512_reduce_add_ps(grad_weight[r]);
        }
        pack_left(packed, &d_hidden, rows, 2 * e->inner);
        for (int64_t i = 0; i < rows; i += 32)
            for (int64_t j = 0; j < e->width; j += 32) {
                product(c, packed + i / 16 * 2 * thin, in + j / 16 * 2 * thin, in + (j / 16 + 1) * 2 * thin, e->inner / 16);
                to_places(e, c, row + i, rows - i < 32 ? rows - i : 32, j);
            }
        if (down->grad) {
            pack_left_transposed(packed, &dy, rows, e->width);
            pack_right_rows(other, &active, rows, e->inner);
            product_into(down->grad, packed, other, e->width, e->inner, depth, row > begin);
        }
        if (gate->grad || up->grad) pack_right_rows(other, &x, rows, e->width);
        for (const Matrix *m = gate; m <= up; m++) {
            Rows slopes = {grads + (m - gate) * e->inner, 2 * e->inner, NULL, 1};
            if (!m->grad) continue;
            pack_left_transposed(packed, &slopes, rows, e->inner);
            product_into(m->grad, packed, other, e->inner, e->width, depth, row > begin);
        }
    }
}

/* 0, or 1 where there is no memory. */
static int each(Experts *e, int64_t size, void (*work)(const Experts *, int64_t, int64_t, int64_t, bf16 *)) {
    bf16 *space = room(size);
    if (!space) return 1;
    TileShapes before = tiles_begin();
    for (int64_t begin, end, one; (one = take(e, &begin, &end)) >= 0;) work(e, one, begin, end, space);
    tiles_end(&before);
    return 0;
}

int experts_forward(Experts *e) {
    return each(e, 3 * e->width * e->inner + ROWS * (e->width + e->inner), forward_one);
}

int experts_backward(Experts *e) {
    int64_t wide = e->width > 2 * e->inner ? e->width : 2 * e->inner;
    return each(e, 3 * e->width * e->inner + LONG * (e->width + 3 * e->inner + 2 * wide), backward_one);
}

/* out [tokens, width] = sum over each token's places, for tokens begin ... end - 1. */
int sum_choices(bf16 *out, const bf16 *places, int64_t begin, int64_t end, int64_t choices, int64_t width) {
    for (int64_t t = begin; t < end; t++)
        for (int64_t i = 0; i < width; i += 16) {
            __m512 sum = _mm512_setzero_ps();
            for (int64_t k = 0; k < choices; k++) sum += load16(places + (t * choices + k) * width + i);
            store16(out + t * width + i, sum);
        }
    return 0;
}

/* Pairs sorted by expert, stable, and where each expert's rows end. */
void sort_pairs(const int64_t *expert_of, int64_t pairs, int64_t experts, int64_t *order, int64_t *ends) {
    memset(ends, 0, experts * sizeof *ends);
    for (int64_t i = 0; i < pairs; i++) ends[expert_of[i]]++;
    for (int64_t e = 0, sum = 0; e < experts; e++) {
        int64_t count = ends[e];
        ends[e] = sum, sum += count;
    }
    for (int64_t i = 0; i < pairs; i++) order[ends[expert_of[i]]++] = i;
}

#endif
