/* One token per row through AFMoE on the CPU: bf16 weights and cache, fp32 sums and residual stream.

   Called by trine.model.native_step from several threads at once, which meet between phases. Decoding is bound by reading the
   active weights, so each is read once per step, by the thread that owns its output, for all rows. What costs little
   (norms, routing) every thread does for itself. A number is made in one order whatever the rows and threads: a text does
   not depend on what is computed beside it. Widths are multiples of 32. */
#include "vectors.h"

#include <sched.h>

typedef struct {
    const bf16 *norm_in, *q, *k, *v, *gate, *o, *q_norm, *k_norm, *norm_attended;
    const bf16 *norm_mlp, *mlp_gate, *mlp_up, *mlp_down, *norm_out; /* the dense or the shared feed-forward */
    const bf16 *router, *experts_in, *experts_out;                  /* NULL in a dense block */
    const float *bias;
    bf16 *keys, *values;                      /* [rows, kv_heads, slots, head_dim] */
    int64_t slots, window, rotary, mlp_width; /* window 0: a global layer */
} Layer;

typedef struct {
    int64_t layers, width, heads, kv_heads, head_dim, vocabulary, experts, top_k, expert_width;
    double eps, route_scale, embedding_scale;
    const bf16 *embedding, *norm, *head;
    const float *frequencies; /* [head_dim / 2] */
    const Layer *layer;
} Model;

typedef struct {
    const Model *model;
    int64_t rows, threads;
    const int64_t *tokens, *positions;
    float *logits; /* [rows, vocabulary] */
    char *space;   /* decode_space bytes */
    int64_t arrived;
} Step;

/* What a thread works with. */
typedef struct {
    Step *step;
    const Model *m;
    int64_t rows, thread, meetings, active;
    float *qkvg, *attended, *y, *middle, *acts;                            /* shared */
    float *x, *h, *packed, *angles, *scores, *found, *other, *weights;     /* its own */
    const float **from;                                                    /* rows to pack */
    int64_t *chosen, *order, *first, *which; /* by pair: expert, pairs by expert; by active expert: first pair, number */
    bf16 *last;                              /* the last rows of a matrix, filled up to 16 */
} Thread;

static inline int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
static inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* out [rows, 16] = packed rows times `have` rows of a matrix, or 16 if there are more; zeros beyond. */
static void products(Thread *t, float *out, const bf16 *w, int64_t stride, int64_t have, int64_t n, int64_t rows) {
    if (have < 16) {
        memset(t->last, 0, 32 * n);
        for (int64_t i = 0; i < have; i++) memcpy(t->last + i * n, w + i * stride, 2 * n);
        w = t->last, stride = n;
    }
    sixteen(out, w, stride, t->packed, n, rows);
}

static void pack_rows(Thread *t, const float *x, int64_t n) {
    for (int64_t r = 0; r < t->rows; r++) t->from[r] = x + r * n;
    pack(t->packed, t->from, t->rows, n);
}

/* The part of n units that is the thread's. */
static void share(const Thread *t, int64_t n, int64_t *begin, int64_t *end) {
    *begin = n * t->thread / t->step->threads, *end = n * (t->thread + 1) / t->step->threads;
}

/* Wait until all threads are here. */
static void meet(Thread *t) {
    int64_t all = ++t->meetings * t->step->threads;
    __atomic_fetch_add(&t->step->arrived, 1, __ATOMIC_ACQ_REL);
    for (int64_t turns = 0; __atomic_load_n(&t->step->arrived, __ATOMIC_ACQUIRE) < all; turns++)
        if (turns > 20000) sched_yield();
}

static void rms_norm(float *out, const float *x, const bf16 *gain, int64_t n, float eps) {
    vec s = {0};
    for (int64_t i = 0; i < n; i += 16) s += read16(x + i) * read16(x + i);
    float scale = 1.0f / sqrtf(total16(s) / n + eps);
    for (int64_t i = 0; i < n; i += 16) write16(out + i, read16(x + i) * scale * widen16(gain + i));
}

/* Residual stream and rotary angles of the step's tokens. */
static void embed(Thread *t) {
    const Model *m = t->m;
    int64_t half = m->head_dim / 2;
    for (int64_t r = 0; r < t->rows; r++) {
        const bf16 *token = m->embedding + t->step->tokens[r] * m->width;
        for (int64_t i = 0; i < m->width; i += 16)
            write16(t->x + r * m->width + i, widen16(token + i) * (float)m->embedding_scale);
        for (int64_t i = 0; i < half; i++) {
            float angle = t->step->positions[r] * m->frequencies[i];
            t->angles[2 * r * half + i] = cosf(angle), t->angles[(2 * r + 1) * half + i] = sinf(angle);
        }
    }
}

/* h = norm(x), packed. */
static void normalise(Thread *t, const bf16 *gain) {
    int64_t D = t->m->width;
    for (int64_t r = 0; r < t->rows; r++) rms_norm(t->h + r * D, t->x + r * D, gain, D, t->m->eps);
    pack_rows(t, t->h, D);
}

/* x += norm(y); without gain x += y. */
static void add(Thread *t, const bf16 *gain) {
    int64_t D = t->m->width;
    for (int64_t r = 0; r < t->rows; r++) {
        const float *y = t->y + r * D;
        if (gain) rms_norm(t->h + r * D, y, gain, D, t->m->eps), y = t->h + r * D;
        for (int64_t i = 0; i < D; i += 16) write16(t->x + r * D + i, read16(t->x + r * D + i) + read16(y + i));
    }
}

/* Queries, keys, values and gates of all rows. */
static void project(Thread *t, const Layer *l) {
    const Model *m = t->m;
    int64_t D = m->width, all = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim, wide = 2 * (all + kv), begin, end;
    share(t, (l->gate ? wide : wide - all) / 16, &begin, &end);
    for (int64_t j = 16 * begin; j < 16 * end; j += 16) {
        const bf16 *w = j < all ? l->q + j * D
                        : j < all + kv ? l->k + (j - all) * D
                        : j < all + 2 * kv ? l->v + (j - all - kv) * D : l->gate + (j - all - 2 * kv) * D;
        products(t, t->found, w, D, 16, D, t->rows);
        for (int64_t r = 0; r < t->rows; r++) memcpy(t->qkvg + r * wide + j, t->found + 16 * r, 64);
    }
}

static void turn(float *x, const float *angles, int64_t half) {
    for (int64_t i = 0; i < half; i += 16) {
        vec a = read16(x + i), b = read16(x + half + i), c = read16(angles + i), s = read16(angles + half + i);
        write16(x + i, a * c - b * s), write16(x + half + i, b * c + a * s);
    }
}

/* out[g] = sum over slots of scores[g] times 16 P values, for G heads. */
static ALWAYS_INLINE void weigh(float *out, const bf16 *values, const float *scores, int64_t stride, int64_t held, int64_t dim,
                                const int G, const int P) {
    vec sum[G][P];
    memset(sum, 0, sizeof sum);
    for (int64_t s = 0; s < held; s++, values += dim)
        for (int k = 0; k < P; k++) {
            vec v = widen16(values + 16 * k);
            for (int g = 0; g < G; g++) sum[g][k] += scores[g * stride + s] * v;
        }
    for (int g = 0; g < G; g++) memcpy(out + g * dim, sum[g], 64 * P);
}

static ALWAYS_INLINE void weigh_heads(float *out, const bf16 *values, const float *scores, int64_t stride, int64_t held,
                                      int64_t dim, const int G) {
    int64_t i = 0;
    for (; i + 64 <= dim; i += 64) weigh(out + i, values + i, scores, stride, held, dim, G, 4);
    for (; i < dim; i += 32) weigh(out + i, values + i, scores, stride, held, dim, G, 2);
}

/* Softmax of `held` scores without its division: e^(score - highest), zeros up to the stride; their sum. */
static float exponentials(float *scores, int64_t held, int64_t stride) {
    vec highest = (vec){0} - INFINITY, sum = {0};
    for (int64_t s = held; s < stride; s++) scores[s] = -INFINITY;
    for (int64_t s = 0; s < stride; s += 16) highest = larger16(read16(scores + s), highest);
    float most = highest[0];
    for (int i = 1; i < 16; i++) most = highest[i] > most ? highest[i] : most;
    for (int64_t s = 0; s < stride; s += 16) {
        vec e = exp16(read16(scores + s) - most);
        write16(scores + s, e);
        sum += e;
    }
    return total16(sum);
}

/* The query heads of one key-value head of one row: norms, rotation, cache, softmax, gate. */
static void attend_one(Thread *t, const Layer *l, int64_t row, int64_t head) {
    const Model *m = t->m;
    int64_t dim = m->head_dim, group = m->heads / m->kv_heads, all = m->heads * dim, kv = m->kv_heads * dim;
    int64_t position = t->step->positions[row], slot = l->window ? position % l->window : position;
    int64_t held = l->window && position >= l->window ? l->window : position + 1, stride = up(held, 16);
    float *own = t->qkvg + row * 2 * (all + kv), *queries = own + head * group * dim, *key = own + all + head * dim;
    const float *value = key + kv, *gate = queries + all + 2 * kv, *angles = t->angles + row * dim;
    bf16 *keys = l->keys + (row * m->kv_heads + head) * l->slots * dim;
    bf16 *values = l->values + (row * m->kv_heads + head) * l->slots * dim;
    float *out = t->attended + row * all + head * group * dim;
    rms_norm(key, key, l->k_norm, dim, m->eps);
    if (l->rotary) turn(key, angles, dim / 2);
    for (int64_t i = 0; i < dim; i++) keys[slot * dim + i] = to_bf16(key[i]), values[slot * dim + i] = to_bf16(value[i]);
    for (int64_t g = 0; g < group; g++) {
        float *query = queries + g * dim;
        rms_norm(query, query, l->q_norm, dim, m->eps);
        if (l->rotary) turn(query, angles, dim / 2);
        t->from[g] = query;
    }
    pack(t->packed, t->from, group, dim);
    vec scale = (vec){0} + 1.0f / sqrtf(dim);
    for (int64_t s = 0; s < held; s += 16) {
        for (int64_t i = 0; i < 16 * dim && s + 16 <= held; i += 32) __builtin_prefetch(values + s * dim + i);
        products(t, t->found, keys + s * dim, dim, held - s, dim, group);
        for (int64_t g = 0; g < group; g++) write16(t->scores + g * stride + s, read16(t->found + 16 * g) * scale);
    }
    for (int64_t g = 0; g < group; g++) t->other[g] = 1.0f / exponentials(t->scores + g * stride, held, stride);
    int64_t g = 0;
    for (; g + 4 <= group; g += 4) weigh_heads(out + g * dim, values, t->scores + g * stride, stride, held, dim, 4);
    for (; g + 2 <= group; g += 2) weigh_heads(out + g * dim, values, t->scores + g * stride, stride, held, dim, 2);
    for (; g < group; g++) weigh_heads(out + g * dim, values, t->scores + g * stride, stride, held, dim, 1);
    for (g = 0; g < group; g++)
        for (int64_t i = g * dim; i < (g + 1) * dim; i += 16)
            write16(out + i, read16(out + i) * t->other[g] * (l->gate ? sigmoid16(read16(gate + i)) : (vec){0} + 1.0f));
}

static void attend(Thread *t, const Layer *l) {
    int64_t heads = t->m->kv_heads;
    for (int64_t i = t->thread; i < t->rows * heads; i += t->step->threads) attend_one(t, l, i / heads, i % heads);
}

/* y = attended times W_o. */
static void mix(Thread *t, const Layer *l) {
    int64_t D = t->m->width, all = t->m->heads * t->m->head_dim, begin, end;
    pack_rows(t, t->attended, all);
    share(t, D / 16, &begin, &end);
    for (int64_t j = 16 * begin; j < 16 * end; j += 16) {
        products(t, t->found, l->o + j * all, all, 16, all, t->rows);
        for (int64_t r = 0; r < t->rows; r++) memcpy(t->y + r * D + j, t->found + 16 * r, 64);
    }
}

/* The experts of one row and their weights: sigmoid scores, the bias in the selection alone. */
static void choose(const Thread *t, const Layer *l, const float *score, int64_t *chosen, float *weights) {
    float sum = 0;
    for (int64_t k = 0; k < t->m->top_k; k++) {
        int64_t best = -1;
        for (int64_t e = 0; e < t->m->experts; e++) {
            int taken = 0;
            for (int64_t j = 0; j < k; j++) taken |= chosen[j] == e;
            if (!taken && (best < 0 || score[e] + l->bias[e] > score[best] + l->bias[best])) best = e;
        }
        chosen[k] = best;
        sum += score[best];
    }
    for (int64_t k = 0; k < t->m->top_k; k++) weights[k] = score[chosen[k]] / (sum + 1e-20f) * (float)t->m->route_scale;
}

/* Experts of the packed rows, and the (row, choice) pairs by expert. */
static void route(Thread *t, const Layer *l) {
    int64_t D = t->m->width, E = t->m->experts, K = t->m->top_k, room = up(E, 16), place = 0;
    for (int64_t e = 0; e < E; e += 16) {
        products(t, t->found, l->router + e * D, D, E - e, D, t->rows);
        for (int64_t r = 0; r < t->rows; r++) write16(t->scores + r * room + e, sigmoid16(read16(t->found + 16 * r)));
    }
    for (int64_t r = 0; r < t->rows; r++) choose(t, l, t->scores + r * room, t->chosen + r * K, t->weights + r * K);
    t->active = 0;
    for (int64_t e = 0; e < E; e++) {
        int64_t before = place;
        for (int64_t p = 0; p < t->rows * K; p++)
            if (t->chosen[p] == e) t->order[place++] = p;
        if (place > before) t->which[t->active] = e, t->first[t->active++] = before;
    }
    t->first[t->active] = place;
}

/* Weighted activations of the dense or shared feed-forward, and of each active expert for the rows that chose it. */
static void feed_in(Thread *t, const Layer *l) {
    int64_t D = t->m->width, I = t->m->expert_width, K = t->m->top_k, shared = l->mlp_width / 16, loaded = -1, begin, end;
    share(t, shared + t->active * I / 16, &begin, &end);
    for (int64_t unit = begin; unit < end; unit++) {
        int64_t a = unit < shared ? -1 : 16 * (unit - shared) / I, j = 16 * (a < 0 ? unit : unit - shared) - (a < 0 ? 0 : a * I);
        int64_t pair = a < 0 ? 0 : t->first[a], rows = a < 0 ? t->rows : t->first[a + 1] - pair;
        if (a != loaded) {
            for (int64_t p = 0; p < rows; p++) t->from[p] = t->h + t->order[pair + p] / K * D;
            pack(t->packed, t->from, rows, D), loaded = a;
        }
        const bf16 *w = a < 0 ? l->mlp_gate + j * D : l->experts_in + (2 * t->which[a] * I + j) * D;
        products(t, t->found, w, D, 16, D, rows);
        products(t, t->other, a < 0 ? l->mlp_up + j * D : w + I * D, D, 16, D, rows);
        for (int64_t p = 0; p < rows; p++) {
            vec gate = read16(t->found + 16 * p), out = gate * sigmoid16(gate) * read16(t->other + 16 * p);
            if (a < 0) write16(t->middle + p * l->mlp_width + j, out);
            else write16(t->acts + (pair + p) * I + j, out * t->weights[t->order[pair + p]]);
        }
    }
}

/* y = activations times the down matrices, the experts' added in their order. */
static void feed_out(Thread *t, const Layer *l) {
    int64_t D = t->m->width, I = t->m->expert_width, K = t->m->top_k, begin, end;
    share(t, D / 16, &begin, &end);
    pack_rows(t, t->middle, l->mlp_width);
    for (int64_t j = 16 * begin; j < 16 * end; j += 16) {
        products(t, t->found, l->mlp_down + j * l->mlp_width, l->mlp_width, 16, l->mlp_width, t->rows);
        for (int64_t r = 0; r < t->rows; r++) memcpy(t->y + r * D + j, t->found + 16 * r, 64);
    }
    for (int64_t a = 0; l->router && a < t->active; a++) {
        int64_t pair = t->first[a], rows = t->first[a + 1] - pair;
        for (int64_t p = 0; p < rows; p++) t->from[p] = t->acts + (pair + p) * I;
        pack(t->packed, t->from, rows, I);
        for (int64_t j = 16 * begin; j < 16 * end; j += 16) {
            products(t, t->found, l->experts_out + (t->which[a] * D + j) * I, I, 16, I, rows);
            for (int64_t p = 0; p < rows; p++) {
                float *y = t->y + t->order[pair + p] / K * D + j;
                write16(y, read16(y) + read16(t->found + 16 * p));
            }
        }
    }
}

static void predict(Thread *t) {
    int64_t D = t->m->width, V = t->m->vocabulary, begin, end;
    share(t, up(V, 16) / 16, &begin, &end);
    for (int64_t j = 16 * begin; j < V && j < 16 * end; j += 16) {
        int64_t have = V - j < 16 ? V - j : 16;
        products(t, t->found, t->m->head + j * D, D, have, D, t->rows);
        for (int64_t r = 0; r < t->rows; r++) memcpy(t->step->logits + r * V + j, t->found + 16 * r, 4 * have);
    }
}

static void *cut(char **space, int64_t count, int64_t size) {
    void *begin = *space;
    *space += up(count * size, 64);
    return begin;
}

/* Cut the step's space for one thread; where the space of all threads ends. */
static char *lay_out(Thread *t, char *space) {
    const Model *m = t->m;
    int64_t rows = t->rows, pairs = rows * m->top_k, all = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    int64_t group = m->heads / m->kv_heads, wide = larger(all, larger(m->width, m->expert_width)), most = 0, slots = 0;
    for (int64_t i = 0; i < m->layers; i++) most = larger(most, m->layer[i].mlp_width), slots = larger(slots, m->layer[i].slots);
    int64_t lines = up(larger(rows, group), 16), vectors = larger(wide, most);
    t->qkvg = cut(&space, rows * 2 * (all + kv), 4), t->attended = cut(&space, rows * all, 4);
    t->y = cut(&space, rows * m->width, 4), t->middle = cut(&space, rows * most, 4);
    t->acts = cut(&space, pairs * m->expert_width, 4);
    for (int64_t i = 0; i <= t->thread; i++) {
        t->x = cut(&space, rows * m->width, 4), t->h = cut(&space, rows * m->width, 4);
        t->packed = cut(&space, lines * vectors, 4), t->angles = cut(&space, rows * m->head_dim, 4);
        t->scores = cut(&space, larger(group * up(slots, 16), rows * up(m->experts, 16)), 4);
        t->found = cut(&space, lines * 16, 4), t->other = cut(&space, lines * 16, 4);
        t->weights = cut(&space, pairs, 4), t->from = cut(&space, lines, sizeof *t->from);
        t->chosen = cut(&space, pairs, 8), t->order = cut(&space, pairs, 8);
        t->first = cut(&space, m->experts + 1, 8), t->which = cut(&space, m->experts, 8);
        t->last = cut(&space, 16 * vectors, 2);
    }
    return space;
}

static Thread of(Step *step, int64_t thread) {
    return (Thread){.step = step, .m = step->model, .rows = step->rows, .thread = thread};
}

/* Bytes that a step needs. */
int64_t decode_space(Step *step) {
    Thread t = of(step, step->threads - 1);
    return lay_out(&t, NULL) - (char *)NULL;
}

int decode_step(Step *step, int64_t thread) {
    Thread t = of(step, thread);
    lay_out(&t, step->space);
#ifdef __AMX_BF16__
    TileShapes before = tiles_begin();
#endif
    embed(&t);
    for (const Layer *l = t.m->layer; l < t.m->layer + t.m->layers; l++) {
        normalise(&t, l->norm_in);
        project(&t, l), meet(&t);
        attend(&t, l), meet(&t);
        mix(&t, l), meet(&t);
        add(&t, l->norm_attended);
        normalise(&t, l->norm_mlp);
        t.active = 0;
        if (l->router) route(&t, l);
        feed_in(&t, l), meet(&t);
        feed_out(&t, l), meet(&t);
        add(&t, l->norm_out);
    }
    normalise(&t, t.m->norm);
    predict(&t);
#ifdef __AMX_BF16__
    tiles_end(&before);
#endif
    return 0;
}
