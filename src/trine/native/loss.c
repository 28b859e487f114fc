/* Cross-entropy of hidden states under a head, with both gradients, on processors with bf16 products (AMX, AVX-512); logits never leave a thread.

   Called by trine.train.native from several threads at once, chunk after chunk of tokens: `loss_tokens` makes the loss and
   the gradient of the logits of 32 tokens at a time and multiplies it with the head; `loss_weights` then adds the chunk to
   the head's gradient, 32 rows at a time. Each number is made by one thread in a fixed order. bf16 states and logits'
   gradients, fp32 or bf16 head, fp32 logits, softmax and sums. Width and vocabulary are multiples of 32. */
#include "tiles.h"

#ifdef TILES
#include <math.h>

typedef struct {
    int64_t width, vocabulary, chunk, narrow; /* narrow: the head is bf16 */
    const bf16 *hidden;                /* [positions, width] */
    const void *weight;                /* [vocabulary, width] */
    const int64_t *rows, *targets;     /* positions that count; target of each position */
    bf16 *across, *along;              /* the head's transpose and the head as right matrices */
    bf16 *slopes;                      /* dL/dlogits of a chunk: [vocabulary / 32, chunk, 32] */
    float *cross_entropy, *log_norm;   /* [counted positions] */
    bf16 *grad_hidden;                 /* [positions, width], or NULL: the loss alone */
    float *grad_weight;                /* [vocabulary, width], or NULL: the head is frozen */
    float share, z_loss;               /* weight of a token in the loss; of logsumexp^2 beside it */
    int64_t begin, end;                /* of the chunk among the rows that count */
    int64_t next;
} Loss;

static int64_t take(Loss *l) { return 32 * __atomic_fetch_add(&l->next, 1, __ATOMIC_RELAXED); }

int loss_pack(Loss *l) {
    for (int64_t v; (v = take(l)) < l->vocabulary;) {
        const char *weight = (const char *)l->weight + v * l->width * (l->narrow ? 2 : 4);
        pack_weights_transposed(l->across + v * l->width, weight, l->narrow, 32, l->width);
        if (l->grad_hidden)
            pack_weights(l->along + v / 32 * TILE, weight, l->narrow, 32, l->width, l->vocabulary / 32 * TILE);
    }
    return 0;
}

/* Softmax of a token's logits in place; its loss. Returns the factor that makes e^(logit - top) dL/dlogit. */
static float softmax(const Loss *l, float *logits, float top, float chosen, int64_t place) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t v = 0; v < l->vocabulary; v += 16) {
        __m512 p = exponential(_mm512_loadu_ps(logits + v) - top);
        _mm512_storeu_ps(logits + v, p);
        sum += p;
    }
    float total = _mm512_reduce_add_ps(sum), log_norm = top + logf(total);
    l->cross_entropy[place] = log_norm - chosen, l->log_norm[place] = log_norm;
    return (1 + 2 * l->z_loss * log_norm) * l->share / total;
}

static void slopes_of(const Loss *l, const float *p, float factor, int64_t target, bf16 *to) {
    for (int64_t v = 0; v < l->vocabulary; v += 16) {
        __m512 slope = _mm512_setzero_ps();
        if (p) slope = _mm512_loadu_ps(p + v) * factor;
        if (p && target >= v && target < v + 16)
            slope -= _mm512_maskz_mov_ps(1u << (target - v), _mm512_set1_ps(l->share));
        store16(to + v / 32 * l->chunk * 32 + v % 32, slope);
    }
}

/* grad_hidden of 32 tokens = slopes x head; tiles of the slopes lie a chunk apart. */
static void to_hidden(const Loss *l, const bf16 *slopes, int64_t begin, int64_t count) {
    float c[4][256];
    int64_t deep = l->vocabulary / 32;
    for (int64_t n = 0; n < l->width; n += 32) {
        const bf16 *right = l->along + n / 16 * deep * TILE;
        Result to = {{c[0], c[1], c[2], c[3]}, 16};
        multiply(to, slopes, slopes + TILE, l->chunk * 32, right, right + deep * TILE, deep, 0);
        for (int64_t i = 0; i < count; i++)
            for (int half = 0; half < 2; half++)
                store16(l->grad_hidden + l->rows[begin + i] * l->width + n + 16 * half,
                        _mm512_loadu_ps(part(c, i, half)));
    }
}

/* 0, or 1 where there is no memory. */
int loss_tokens(Loss *l) {
    int64_t deep = l->width / 32, v = l->vocabulary;
    bf16 *left = room(32 * l->width + 64 * v);
    if (!left) return 1;
    float *logits = (float *)(left + 32 * l->width), c[4][256];
    TileShapes before = tiles_begin();
    for (int64_t at; (at = take(l)) < l->end - l->begin;) {
        int64_t begin = l->begin + at, count = l->end - begin < 32 ? l->end - begin : 32;
        Rows x = {l->hidden, l->width, l->rows + begin, 1};
        __m512 top[32];
        for (int i = 0; i < 32; i++) top[i] = _mm512_set1_ps(-INFINITY);
        pack_left(left, &x, count, l->width);
        for (int64_t j = 0; j < v; j += 32) {
            const bf16 *right = l->across + j * l->width;
            product(c, left, right, right + deep * TILE, deep);
            for (int64_t i = 0; i < count; i++)
                for (int half = 0; half < 2; half++) {
                    __m512 s = _mm512_loadu_ps(part(c, i, half));
                    top[i] = _mm512_max_ps(top[i], s);
                    _mm512_storeu_ps(logits + i * v + j + 16 * half, s);
                }
        }
        for (int64_t i = 0; i < 32; i++) {
            int64_t target = i < count ? l->targets[l->rows[begin + i]] : 0;
            float *own = logits + i * v, factor = 0;
            if (i < count) factor = softmax(l, own, _mm512_reduce_max_ps(top[i]), own[target], begin + i);
            if (l->grad_hidden) slopes_of(l, i < count ? own : NULL, factor, target, l->slopes + (at + i) * 32);
        }
        if (l->grad_hidden) to_hidden(l, l->slopes + at * 32, begin, count);
    }
    tiles_end(&before);
    return 0;
}

/* 0, or 1 where there is no memory. */
int loss_weights(Loss *l) {
    int64_t count = l->end - l->begin, depth = blocks(count, 32);
    bf16 *right = room(depth * 32 * (l->width + 32)), *left = right + depth * 32 * l->width;
    if (!right) return 1;
    Rows x = {l->hidden, l->width, l->rows + l->begin, 1};
    pack_right_rows(right, &x, count, l->width);
    TileShapes before = tiles_begin();
    for (int64_t v; (v = take(l)) < l->vocabulary;) {
        Rows slopes = {l->slopes + v * l->chunk, 32, NULL, 1};
        pack_left_transposed(left, &slopes, count, 32);
        product_into(l->grad_weight + v * l->width, left, right, 32, l->width, depth, l->begin > 0);
    }
    tiles_end(&before);
    return 0;
}

#endif
