/* Merge methods on a block, from the stored numbers to the merged ones, a tile in the first-level cache at a time.
   Each function has a twin in numpy in trine/merge/methods, to the same bits (inner products: to rounding).
   Compiled without contraction, so that a product is rounded before it is added unless fmaf says otherwise.

   `sources`: `count` addresses of the models' numbers, and of the base's at the end where there is one; `kinds`: 0 fp32,
   1 bf16. */
#include "keyed.h"
#include "rank.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#define TILE 1024
#define MODELS 16

typedef float tile[TILE] __attribute__((aligned(64)));

/* What stays of a model's differences. */
typedef struct {
    int64_t kind; /* 0 all, 1 above a cut, 2 above `low` but not above `high`, 3 at random, 4 at random by `chances` */
    double low, high;
    int64_t low_last, high_last;
    uint64_t key, below; /* random: kept where the bits lie below */
    double factor;       /* random: of what is kept */
    int64_t scaled;      /* chances: divide what is kept by its chance */
} pruning;

/* What to do with every block of a tensor; see `apply` in mix.c. */
typedef struct {
    int64_t kind, count, based, consensus, variance;
    double divisor, scale;   /* combine, mix */
    double value;            /* squares, sce: the cut by variance, */
    int64_t last;            /* and the last place of those equal to it */
    double smallest;         /* sce: no divisor is smaller */
    int64_t columns;         /* mix: elements of a row */
    const float *weights;
    const pruning *how;      /* mix: one per model */
    double *sums;            /* products: [count][count]; squares: [count] */
    float *scratch;          /* mix, where a model is pruned by chances: see `rank` */
} task;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static void load(const void *source, int32_t kind, int64_t at, int64_t n, float *restrict out) {
    if (kind == 0) {
        memcpy(out, (const float *)source + at, n * sizeof(float));
        return;
    }
    const uint16_t *restrict raw = (const uint16_t *)source + at;
    uint32_t *restrict bits = (uint32_t *)out;
    for (int64_t i = 0; i < n; i++) bits[i] = (uint32_t)raw[i] << 16;
}

/* The models' numbers, less the base's where there is one, which is left in `base`. */
static void load_all(const void *const *sources, const int32_t *kinds, int64_t count, int based, int64_t at, int64_t n,
                     tile *out, float *restrict base) {
    if (based) load(sources[count], kinds[count], at, n, base);
    for (int64_t k = 0; k < count; k++) {
        float *restrict values = out[k];
        load(sources[k], kinds[k], at, n, values);
        if (based)
            for (int64_t i = 0; i < n; i++) values[i] -= base[i];
    }
}

/* out = ((sum_k w_k v_k) / divisor) scale + base: v the models, or with a base the differences from it. A step of the sum
   is a fused multiply-add. A divisor or a scale of 1 changes nothing. */
static void combine(const task *t, const void *const *sources, const int32_t *kinds, float *restrict out, int64_t n) {
    tile v[MODELS], base;
    float divisor = (float)t->divisor, scale = (float)t->scale;
    for (int64_t at = 0; at < n; at += TILE) {
        int64_t m = least(TILE, n - at);
        load_all(sources, kinds, t->count, t->based, at, m, v, base);
        float *restrict total = out + at;
        for (int64_t i = 0; i < m; i++) total[i] = v[0][i] * t->weights[0];
        for (int64_t k = 1; k < t->count; k++) {
            const float *restrict values = v[k], weight = t->weights[k];
            for (int64_t i = 0; i < m; i++) total[i] = fmaf(weight, values[i], total[i]);
        }
        if (divisor != 1)
            for (int64_t i = 0; i < m; i++) total[i] /= divisor;
        if (scale != 1)
            for (int64_t i = 0; i < m; i++) total[i] *= scale;
        if (t->based)
            for (int64_t i = 0; i < m; i++) total[i] += base[i];
    }
}

static double dot(const float *restrict a, const float *restrict b) {
    float sums[64] = {0};
    for (int t = 0; t < TILE; t += 64)
        for (int l = 0; l < 64; l++) sums[l] = fmaf(a[t + l], b[t + l], sums[l]);
    double total = 0;
    for (int l = 0; l < 64; l++) total += sums[l];
    return total;
}

/* sums[i][j] += <v_i, v_j> for j <= i. */
static void products(const task *t, const void *const *sources, const int32_t *kinds, int64_t n) {
    tile v[MODELS], base;
    int64_t count = t->count;
    for (int64_t at = 0; at < n; at += TILE) {
        int64_t m = least(TILE, n - at);
        load_all(sources, kinds, count, t->based, at, m, v, base);
        for (int64_t k = 0; m < TILE && k < count; k++) memset(v[k] + m, 0, (TILE - m) * sizeof(float));
        for (int64_t i = 0; i < count; i++)
            for (int64_t j = 0; j <= i; j++) t->sums[i * count + j] += dot(v[i], v[j]);
    }
}

static void add_up(tile *d, int64_t count, int64_t m, float *restrict total) {
    memcpy(total, d[0], m * sizeof(float));
    for (int64_t k = 1; k < count; k++)
        for (int64_t i = 0; i < m; i++) total[i] += d[k][i];
}

static void variances(tile *v, int64_t count, int64_t m, float *restrict out) {
    tile mean, total;
    add_up(v, count, m, mean);
    for (int64_t i = 0; i < m; i++) mean[i] /= (float)count;
    for (int64_t i = 0; i < m; i++) total[i] = 0;
    for (int64_t k = 0; k < count; k++)
        for (int64_t i = 0; i < m; i++) {
            float away = v[k][i] - mean[i];
            total[i] += away * away;
        }
    for (int64_t i = 0; i < m; i++) out[i] = total[i] / (float)count;
}

/* Scores of m <= TILE elements, which are not negative: the variance over the models, or |difference| of each. The k-th
   model's lie at out[k * apart]. NaN, which nothing can be compared with, counts as the largest. */
static void scores(const task *t, const void *const *sources, const int32_t *kinds, int64_t at, int64_t m,
                   float *restrict out, int64_t apart) {
    tile v[MODELS], base;
    load_all(sources, kinds, t->count, 1, at, m, v, base);
    if (t->variance) variances(v, t->count, m, base), memcpy(v[0], base, m * sizeof(float));
    for (int64_t k = 0; k < (t->variance ? 1 : t->count); k++)
        for (int64_t i = 0; i < m; i++) {
            float score = fabsf(v[k][i]);
            out[k * apart + i] = score != score ? INFINITY : score;
        }
}

/* keep[i] = 1 where a score lies above `value`, or equals it at a place up to `last`; else 0. */
static void cut(const float *restrict scores, float value, int64_t last, int64_t place, int64_t m,
                float *restrict keep) {
    int64_t equal = last < place ? 0 : least(m, last - place + 1);
    for (int64_t i = 0; i < equal; i++) keep[i] = scores[i] >= value;
    for (int64_t i = equal; i < m; i++) keep[i] = scores[i] > value;
}

/* 32 random bits for each element. */
static void random_bits(uint64_t key, uint64_t place, int64_t m, uint32_t *restrict out) {
    key += (place >> 32) * 0x9E3779B97F4A7C15u;
    uint32_t first = (uint32_t)key, second = (uint32_t)(key >> 32), from = (uint32_t)place;
    for (int64_t i = 0; i < m; i++) out[i] = keyed_bits(from + (uint32_t)i, first, second);
}

/* `chances`: of these elements, for kind 4. */
static void prune(const pruning *how, float *restrict d, const float *restrict chances, uint64_t place, int64_t m) {
    tile sizes, keep, above;
    uint32_t bits[TILE] __attribute__((aligned(64)));
    if (how->kind == 1 || how->kind == 2) {
        for (int64_t i = 0; i < m; i++) sizes[i] = fabsf(d[i]);
        cut(sizes, (float)how->low, how->low_last, place, m, keep);
        if (how->kind == 2) {
            cut(sizes, (float)how->high, how->high_last, place, m, above);
            for (int64_t i = 0; i < m; i++) keep[i] *= 1 - above[i];
        }
        for (int64_t i = 0; i < m; i++) d[i] *= keep[i];
    } else if (how->kind == 3) {
        float factor = (float)how->factor;
        uint32_t last = (uint32_t)(how->below - 1);
        random_bits(how->key, place, m, bits);
        if (how->below == 0) factor = 0;
        for (int64_t i = 0; i < m; i++) d[i] *= bits[i] <= last ? factor : 0.0f;
    } else if (how->kind == 4) {
        random_bits(how->key, place, m, bits);
        for (int64_t i = 0; i < m; i++) {
            float kept = how->scaled ? d[i] / chances[i] : d[i];
            d[i] = (float)bits[i] * 0x1p-32f < chances[i] ? kept : 0.0f;
        }
    }
}

/* Of weighted differences d: sums of those, and of their weights, that have the sign `elected` (+ where it is 0). */
static void agree(tile *d, const float *weights, int64_t count, const float *restrict elected, int64_t m,
                  float *restrict above, float *restrict below) {
    for (int64_t i = 0; i < m; i++) above[i] = below[i] = 0;
    for (int64_t k = 0; k < count; k++) {
        const float *restrict one = d[k], weight = weights[k];
        for (int64_t i = 0; i < m; i++) {
            int up = elected[i] >= 0, same = (up & (one[i] > 0)) | (!up & (one[i] < 0));
            above[i] += same ? one[i] : 0.0f;
            below[i] += same ? weight : 0.0f;
        }
    }
}

/* SCE after its cut by variance: with `sums`, adds up each model's squared differences that stay; else merges. */
static void sce(const task *t, const void *const *sources, const int32_t *kinds, float *restrict out, int64_t start,
                int64_t n) {
    tile d[MODELS], base, variance, keep, above, below, elected;
    int64_t count = t->count;
    for (int64_t at = 0; at < n; at += TILE) {
        int64_t m = least(TILE, n - at);
        load_all(sources, kinds, count, 1, at, m, d, base);
        if (t->value >= 0) {
            variances(d, count, m, variance);
            cut(variance, (float)t->value, t->last, start + at, m, keep);
            for (int64_t k = 0; k < count; k++)
                for (int64_t i = 0; i < m; i++) d[k][i] *= keep[i];
        }
        if (t->sums) {
            for (int64_t k = 0; k < count; k++) {
                memset(d[k] + m, 0, (TILE - m) * sizeof(float));
                t->sums[k] += dot(d[k], d[k]);
            }
            continue;
        }
        add_up(d, count, m, elected);
        for (int64_t i = 0; i < m; i++) above[i] = below[i] = 0;
        for (int64_t k = 0; k < count; k++) {
            const float weight = t->weights[k];
            for (int64_t i = 0; i < m; i++) {
                float same = elected[i] >= 0 ? d[k][i] > 0 : d[k][i] < 0;
                above[i] += d[k][i] * weight * same;
                below[i] += weight * same;
            }
        }
        const float smallest = (float)t->smallest;
        for (int64_t i = 0; i < m; i++) {
            float divisor = below[i] > smallest ? below[i] : smallest;
            out[at + i] = base[i] + above[i] / divisor;
        }
    }
}

/* The chances of the models that are pruned by them, for n elements of whole rows. `scratch` of the task: n per such model,
   n more for sizes, 4 * columns for the sort. */
static void rank(const task *t, const void *const *sources, const int32_t *kinds, int64_t n, const float **found) {
    float *to = t->scratch, *sizes = to;
    for (int64_t k = 0; k < t->count; k++) sizes += t->how[k].kind == 4 ? n : 0;
    for (int64_t k = 0; k < t->count; k++) {
        if (t->how[k].kind != 4) continue;
        tile one, base;
        for (int64_t at = 0; at < n; at += TILE) {
            int64_t m = least(TILE, n - at);
            load(sources[k], kinds[k], at, m, one), load(sources[t->count], kinds[t->count], at, m, base);
            for (int64_t i = 0; i < m; i++) sizes[at + i] = fabsf(one[i] - base[i]);
        }
        chances(sizes, n / t->columns, t->columns, (float)t->how[k].low, (float)t->how[k].high, (uint64_t *)(sizes + n), to);
        found[k] = to, to += n;
    }
}

/* b + scale sum(w d s) / divisor: d pruned; with `consensus` s whether w d has the sign of the sum of all, and the
   divisor is sum(w s) (1 where that is 0) when it is given as 0. `start`: place of the first element in the tensor. */
static void mix(const task *t, const void *const *sources, const int32_t *kinds, float *restrict out, int64_t start,
                int64_t n) {
    tile d[MODELS], base, above, below, elected;
    const float *ranked[MODELS] = {0};
    float divisor = (float)t->divisor, scale = (float)t->scale;
    if (t->scratch) rank(t, sources, kinds, n, ranked);
    for (int64_t at = 0, m; at < n; at += m) {
        uint64_t place = (uint64_t)(start + at);
        m = least(least(TILE, n - at), (int64_t)(((place >> 32) + 1) << 32) - (int64_t)place);
        load_all(sources, kinds, t->count, 1, at, m, d, base);
        for (int64_t k = 0; k < t->count; k++) {
            float *restrict one = d[k], weight = t->weights[k];
            prune(t->how + k, one, ranked[k] ? ranked[k] + at : 0, place, m);
            for (int64_t i = 0; i < m; i++) one[i] *= weight;
        }
        add_up(d, t->count, m, elected);
        float *restrict total = elected;
        if (t->consensus) {
            agree(d, t->weights, t->count, elected, m, above, below);
            total = above;
            for (int64_t i = 0; i < m; i++) below[i] = below[i] == 0 ? 1 : below[i];
            if (divisor == 0)
                for (int64_t i = 0; i < m; i++) total[i] /= below[i];
        }
        if (divisor != 0 && divisor != 1)
            for (int64_t i = 0; i < m; i++) total[i] /= divisor;
        if (scale != 1)
            for (int64_t i = 0; i < m; i++) total[i] *= scale;
        for (int64_t i = 0; i < m; i++) out[at + i] = total[i] + base[i];
    }
}
