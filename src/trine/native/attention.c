/* Causal softmax attention with window and documents, and its gradients, on processors with bf16 products (AMX, AVX-512).

   Called by trine.model.native from several threads at once; each takes the next (sequence, key head) until none is
   left, so results do not depend on how many there are. A query sees the keys up to its own, fewer than `window` back
   (0: all), with its own document id. Nothing of size T x T is made: the forward pass holds the scores of 32 queries, the
   backward pass those of 128 (Dao et al., FlashAttention, section 3.1). bf16 in and out, fp32 sums and softmax. */
#include "tiles.h"

#ifdef TILES
#include <math.h>

typedef struct {
    bf16 *at; /* [rows, length, heads, dim], each head's numbers side by side */
    int64_t row, position, head;
} Tensor;

typedef struct {
    int64_t rows, length, heads, groups, dim, window;
    const int32_t *ids; /* [rows, length], or NULL: one document */
    Tensor query, key, value, out, grad, grad_query, grad_key, grad_value;
    float *log_norm; /* [rows, heads, length] */
    int64_t next;
} Attention;

enum { QUERIES = 128 };

static Rows rows_of(const Tensor *x, int64_t row, int64_t head, int64_t position) {
    return (Rows){x->at + row * x->row + head * x->head + position * x->position, x->position, NULL, 1};
}

static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* The first block of 32 keys that any of the queries begin ... end - 1 may see. */
static int64_t first_block(const Attention *a, const int32_t *ids, int64_t begin, int64_t end) {
    int64_t low = a->window && begin >= a->window ? begin - a->window + 1 : 0;
    if (!ids) return low / 32;
    for (int64_t first = low; low < begin; low++)
        for (int64_t i = begin; (low == first || ids[low] != ids[low - 1]) && i < end; i++)
            if (ids[i] == ids[low]) return low / 32;
    return begin / 32;
}

/* Which of the 16 keys from `key` on the query sees. */
static inline __mmask16 seen(const Attention *a, const int32_t *ids, int64_t query, int64_t key) {
    int64_t high = query - key + 1, low = a->window ? high - a->window : 0;
    if (query >= a->length || high <= 0 || low >= 16) return 0;
    __mmask16 mask = high < 16 ? (1u << high) - 1 : 0xffff;
    if (low > 0) mask &= 0xffffu << low;
    if (ids) mask &= _mm512_mask_cmpeq_epi32_mask(mask, _mm512_maskz_loadu_epi32(mask, ids + key), _mm512_set1_epi32(ids[query]));
    return mask;
}

/* Whether each of 32 queries sees each of 32 keys. */
static int all_seen(const Attention *a, const int32_t *ids, int64_t query, int64_t key) {
    if (query + 32 > a->length || key + 31 > query || (a->window && query + 31 - key >= a->window)) return 0;
    if (!ids) return 1;
    const __m512i id = _mm512_set1_epi32(ids[query]);
    __mmask16 same = 0xffff;
    for (int i = 0; i < 32; i += 16) {
        same &= _mm512_cmpeq_epi32_mask(id, _mm512_loadu_si512(ids + query + i));
        same &= _mm512_cmpeq_epi32_mask(id, _mm512_loadu_si512(ids + key + i));
    }
    return same == 0xffff;
}

/* 32 queries of one head: scores, softmax into left tiles, times the values. */
static void forward_block(const Attention *a, const int32_t *ids, int64_t row, int64_t head, int64_t begin, const bf16 *keys,
                          const bf16 *values, bf16 *query, bf16 *chances, float *scores) {
    int64_t end = smaller(begin + 32, a->length), deep = a->dim / 32, all = blocks(a->length, 32);
    int64_t low = first_block(a, ids, begin, end), wide = blocks(end, 32) - low;
    float c[4][256], sums[32], scale = 1.0f / sqrtf(a->dim);
    const __m512 hidden = _mm512_set1_ps(-INFINITY);
    __m512 top[32];
    for (int i = 0; i < 32; i++) top[i] = hidden;
    Rows q = rows_of(&a->query, row, head, begin);
    pack_left(query, &q, end - begin, a->dim);
    for (int64_t k = 0; k < wide; k++) {
        const bf16 *right = keys + (low + k) * 2 * deep * TILE;
        product(c, query, right, right + deep * TILE, deep);
        int every = all_seen(a, ids, begin, (low + k) * 32);
        for (int64_t i = 0; i < 32; i++)
            for (int half = 0; half < 2; half++) {
                __mmask16 mask = every ? 0xffff : seen(a, ids, begin + i, (low + k) * 32 + 16 * half);
                __m512 s = _mm512_mask_mov_ps(hidden, mask, _mm512_loadu_ps(part(c, i, half)) * scale);
                _mm512_storeu_ps(scores + (i * wide + k) * 32 + 16 * half, s);
                top[i] = _mm512_max_ps(top[i], s);
            }
    }
    for (int64_t i = 0; i < 32; i++) {
        float highest = begin + i < end ? _mm512_reduce_max_ps(top[i]) : 0;
        __m512 sum = _mm512_setzero_ps();
        for (int64_t k = 0; k < 2 * wide; k++) {
            __m512 p = exponential(_mm512_loadu_ps(scores + i * wide * 32 + 16 * k) - highest);
            sum += p;
            store16(chances + (i / 16 * wide + k / 2) * TILE + i % 16 * 32 + k % 2 * 16, p);
        }
        sums[i] = _mm512_reduce_add_ps(sum);
        if (begin + i < end) a->log_norm[(row * a->heads + head) * a->length + begin + i] = highest + logf(sums[i]);
        sums[i] = 1.0f / sums[i];
    }
    Rows out = rows_of(&a->out, row, head, begin);
    for (int64_t n = 0; n < a->dim; n += 32) {
        const bf16 *right = values + (n / 16 * all + low) * TILE;
        product(c, chances, right, right + all * TILE, wide);
        for (int64_t i = 0; begin + i < end; i++)
            for (int half = 0; half < 2; half++)
                store16((bf16 *)row_of(&out, i) + n + 16 * half, _mm512_loadu_ps(part(c, i, half)) * sums[i]);
    }
}

static int64_t take(Attention *a, int64_t *row, int64_t *group) {
    int64_t one = __atomic_fetch_add(&a->next, 1, __ATOMIC_RELAXED);
    *row = one / a->groups, *group = one % a->groups;
    return one < a->rows * a->groups;
}

/* The transpose of keys or values as a right matrix. */
static void pack_transposed(bf16 *out, const Tensor *x, const Attention *a, int64_t row, int64_t group) {
    Rows rows = rows_of(x, row, group, 0);
    pack_left(out, &rows, a->length, a->dim);
    turn_tiles(out, out, blocks(a->length, 32) * a->dim / 16);
}

/* 0, or 1 where there is no memory. */
int attention_forward(Attention *a) {
    int64_t padded = blocks(a->length, 32) * 32, share = a->heads / a->groups, size = padded * a->dim;
    bf16 *keys = room(2 * size + 32 * a->dim + 96 * padded), *values = keys + size, *query = values + size;
    if (!keys) return 1;
    bf16 *chances = query + 32 * a->dim;
    TileShapes before = tiles_begin();
    for (int64_t row, group; take(a, &row, &group);) {
        const int32_t *ids = a->ids ? a->ids + row * a->length : NULL;
        Rows value = rows_of(&a->value, row, group, 0);
        pack_transposed(keys, &a->key, a, row, group);
        pack_right_rows(values, &value, a->length, a->dim);
        for (int64_t head = group * share; head < (group + 1) * share; head++)
            for (int64_t begin = 0; begin < a->length; begin += 32)
                forward_block(a, ids, row, head, begin, keys, values, query, chances, (float *)(chances + 32 * padded));
    }
    tiles_end(&before);
    return 0;
}

typedef struct {
    bf16 *keys, *values, *back;        /* K^T and V^T as right matrices, K as a right matrix */
    float *grad_key, *grad_value;      /* sums over the queries */
    bf16 *query, *grad;                /* the block's Q and dO as left matrices, */
    bf16 *query_right, *grad_right;    /* and as right matrices */
    bf16 *chances, *turned, *slopes;   /* P and dS of 32 keys, a transpose, dS of all keys in left tiles */
} Space;

/* P and dS of 32 queries and 32 keys from Q K^T and dO V^T. */
static void slopes_of(const Attention *a, const int32_t *ids, float s[4][256], float d[4][256], int64_t begin, int64_t key,
                      const float *log_norm, const float *delta, bf16 *chances, bf16 *slopes, int64_t wide) {
    float scale = 1.0f / sqrtf(a->dim);
    int every = all_seen(a, ids, begin, key);
    for (int64_t i = 0; i < 32; i++)
        for (int half = 0; half < 2; half++) {
            __mmask16 mask = every ? 0xffff : seen(a, ids, begin + i, key + 16 * half);
            __m512 p = _mm512_setzero_ps(), slope = p;
            if (mask) {
                p = _mm512_maskz_mov_ps(mask, exponential(_mm512_loadu_ps(part(s, i, half)) * scale - log_norm[i]));
                slope = p * (_mm512_loadu_ps(part(d, i, half)) - delta[i]) * scale;
            }
            store16(chances + i * 32 + 16 * half, p);
            store16(slopes + i / 16 * wide * TILE + i % 16 * 32 + 16 * half, slope);
        }
}

static float dot(const bf16 *x, const bf16 *y, int64_t n) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += 16) sum += load16(x + i) * load16(y + i);
    return _mm512_reduce_add_ps(sum);
}

/* grads [32 keys, dim] += (tiles of 32 keys by the block's queries)^T times their rows. */
static void add_to_keys(float *grads, const Space *s, const bf16 *tiles, const bf16 *right, int64_t depth, int64_t dim) {
    Rows rows = {tiles, 32, NULL, 1};
    pack_left_transposed(s->turned, &rows, depth * 32, 32);
    product_into(grads, s->turned, right, 32, dim, depth, 1);
}

static void backward_block(const Attention *a, const int32_t *ids, int64_t row, int64_t head, int64_t begin, const Space *s) {
    int64_t end = smaller(begin + QUERIES, a->length), count = end - begin, deep = a->dim / 32, depth = blocks(count, 32);
    int64_t low = first_block(a, ids, begin, end), wide = blocks(end, 32) - low, all = blocks(a->length, 32);
    const float *log_norm = a->log_norm + (row * a->heads + head) * a->length + begin;
    float delta[QUERIES] = {0}, norm[QUERIES] = {0}, c[4][256], d[4][256];
    Rows query = rows_of(&a->query, row, head, begin), grad = rows_of(&a->grad, row, head, begin);
    Rows out = rows_of(&a->out, row, head, begin), to = rows_of(&a->grad_query, row, head, begin);
    pack_left(s->query, &query, count, a->dim), pack_left(s->grad, &grad, count, a->dim);
    pack_right_rows(s->query_right, &query, count, a->dim), pack_right_rows(s->grad_right, &grad, count, a->dim);
    for (int64_t i = 0; i < count; i++) delta[i] = dot(row_of(&grad, i), row_of(&out, i), a->dim), norm[i] = log_norm[i];
    for (int64_t k = 0; k < wide; k++) {
        int64_t key = (low + k) * 32;
        const bf16 *keys = s->keys + key / 16 * deep * TILE, *values = s->values + key / 16 * deep * TILE;
        for (int64_t i = 0; i < depth; i++) {
            product(c, s->query + i * 2 * deep * TILE, keys, keys + deep * TILE, deep);
            product(d, s->grad + i * 2 * deep * TILE, values, values + deep * TILE, deep);
            slopes_of(a, ids, c, d, begin + 32 * i, key, norm + 32 * i, delta + 32 * i, s->chances + i * 2 * TILE,
                      s->slopes + (i * 2 * wide + k) * TILE, wide);
        }
        add_to_keys(s->grad_value + key * a->dim, s, s->chances, s->grad_right, depth, a->dim);
        for (int64_t i = 0; i < 2 * depth; i++)
            memcpy(s->chances + i * TILE, s->slopes + (i * wide + k) * TILE, TILE * sizeof(bf16));
        add_to_keys(s->grad_key + key * a->dim, s, s->chances, s->query_right, depth, a->dim);
    }
    for (int64_t i = 0; i < count; i += 32)
        for (int64_t n = 0; n < a->dim; n += 32) {
            const bf16 *right = s->back + (n / 16 * all + low) * TILE;
            product(c, s->slopes + i / 16 * wide * TILE, right, right + all * TILE, wide);
            for (int64_t r = 0; r < 32 && i + r < count; r++)
                for (int half = 0; half < 2; half++)
                    store16((bf16 *)row_of(&to, i + r) + n + 16 * half, _mm512_loadu_ps(part(c, r, half)));
        }
}

static void write_out(const Tensor *x, const Attention *a, int64_t row, int64_t group, const float *sums) {
    Rows rows = rows_of(x, row, group, 0);
    for (int64_t t = 0; t < a->length; t++)
        for (int64_t i = 0; i < a->dim; i += 16)
            store16((bf16 *)row_of(&rows, t) + i, _mm512_loadu_ps(sums + t * a->dim + i));
}

/* 0, or 1 where there is no memory. */
int attention_backward(Attention *a) {
    int64_t padded = blocks(a->length, 32) * 32, share = a->heads / a->groups, size = padded * a->dim, block = QUERIES * a->dim;
    bf16 *all = room(7 * size + 4 * block + 2 * 32 * QUERIES + QUERIES * padded);
    if (!all) return 1;
    Space s = {all, all + size, all + 2 * size, (float *)(all + 3 * size), (float *)(all + 5 * size), all + 7 * size};
    s.grad = s.query + block, s.query_right = s.grad + block, s.grad_right = s.query_right + block;
    s.chances = s.grad_right + block, s.turned = s.chances + 32 * QUERIES, s.slopes = s.turned + 32 * QUERIES;
    TileShapes before = tiles_begin();
    for (int64_t row, group; take(a, &row, &group);) {
        const int32_t *ids = a->ids ? a->ids + row * a->length : NULL;
        Rows key = rows_of(&a->key, row, group, 0);
        pack_transposed(s.keys, &a->key, a, row, group), pack_transposed(s.values, &a->value, a, row, group);
        pack_right_rows(s.back, &key, a->length, a->dim);
        memset(s.grad_key, 0, 8 * size);
        for (int64_t head = group * share; head < (group + 1) * share; head++)
            for (int64_t begin = 0; begin < a->length; begin += QUERIES) backward_block(a, ids, row, head, begin, &s);
        write_out(&a->grad_key, a, row, group, s.grad_key), write_out(&a->grad_value, a, row, group, s.grad_value);
    }
    tiles_end(&before);
    return 0;
}

#endif
