/* Merge methods over tensors in files: blocks read, merged by mix.h, rounded, checked and written, without Python. */
#include "mix.h"

#include "blocks.h"

enum { COMBINE, PRODUCTS, MIX, SCE };

/* A range of scores and what is found of them; see trine/merge/methods/select.py. */
typedef struct {
    int64_t stream;
    double low, high;
    int64_t *counts;  /* [blocks][5]: above high, at high, at low, not 0, strictly inside */
    float *values;    /* those inside, in order, as many as fit */
    int64_t capacity; /* 16 + TILE more than fit */
    int64_t kept;     /* how many were inside */
} bracket;

/* Where merged numbers go. */
typedef struct {
    int64_t file, offset, kind; /* as in feed */
    int64_t crc;                /* of the bytes written so far */
    int64_t failed;             /* errno */
    void *buffer;               /* for a block, where kind is 1 */
} sink;

int not_finite_bf16(const uint16_t *raw, int64_t n) { return not_finite16(raw, n); }

int has_crc32(void) { return HAS_CRC32; }

/* One block, which begins at element `start` of the tensor: merged into `out`, or added to `sums`. */
void apply(const task *t, const void *const *sources, const int32_t *kinds, float *out, int64_t start, int64_t n) {
    switch (t->kind) {
    case COMBINE: combine(t, sources, kinds, out, n); break;
    case PRODUCTS: products(t, sources, kinds, n); break;
    case MIX: mix(t, sources, kinds, out, start, n); break;
    case SCE: sce(t, sources, kinds, out, start, n); break;
    }
}

/* Scores of n elements, model after model. */
void score(const task *t, const void *const *sources, const int32_t *kinds, float *out, int64_t n) {
    for (int64_t at = 0; at < n; at += TILE) scores(t, sources, kinds, at, least(TILE, n - at), out + at, n);
}

static int fetch_all(const task *t, const feed *feeds, int64_t start, int64_t n) {
    for (int64_t k = 0; k < t->count + t->based; k++)
        if (!fetch(feeds + k, start, n)) return 0;
    return 1;
}

static void point(const task *t, const feed *feeds, const void **sources, int32_t *kinds) {
    for (int64_t k = 0; k < t->count + t->based; k++) sources[k] = feeds[k].buffer, kinds[k] = (int32_t)feeds[k].kind;
}

static int put(sink *to, const float *values, int64_t start, int64_t n) {
    int64_t width = to->kind ? 2 : 4, left = n * width, at = to->offset + start * width;
    const char *from = (const char *)values;
    if (to->kind) narrow((const uint32_t *)values, to->buffer, n), from = to->buffer;
    to->crc = crc32_after((uint32_t)to->crc, (const uint8_t *)from, left);
    while (left) {
        ssize_t done = pwrite((int)to->file, from, (size_t)left, at);
        if (done < 0 && errno == EINTR) continue;
        if (done < 0) return to->failed = errno, 0;
        from += done, at += done, left -= done;
    }
    return 1;
}

/* `apply` to elements [start, stop), `block` at a time, and the merged ones into `to` where there is one. Returns -1, or the
   first element of the block that could not be read, whose numbers are not finite, or that could not be written. */
int64_t stream(const task *t, const feed *feeds, float *out, int64_t start, int64_t stop, int64_t block, sink *to) {
    const void *sources[MODELS + 1];
    int32_t kinds[MODELS + 1];
    point(t, feeds, sources, kinds);
    for (int64_t at = start, n; at < stop; at += n) {
        n = least(block, stop - at);
        if (!fetch_all(t, feeds, at, n)) return at;
        apply(t, sources, kinds, out, at, n);
        if (to && !put(to, out, at, n)) return at;
    }
    return -1;
}

static void see(bracket *b, const float *found, int64_t m, int64_t *counts) {
    float spare[TILE + 16];
    int64_t seen[4], fits = b->kept + TILE + 16 <= b->capacity;
    int64_t inside = scan(found, m, (float)b->low, (float)b->high, seen, fits ? b->values + b->kept : spare);
    for (int i = 0; i < 4; i++) counts[i] += seen[i];
    counts[4] += inside, b->kept += inside;
}

/* What brackets see in the scores of a tensor of `size` elements. Returns as `stream`. */
int64_t survey(const task *t, const feed *feeds, int64_t size, int64_t block, bracket *brackets, int64_t count) {
    const void *sources[MODELS + 1];
    int32_t kinds[MODELS + 1];
    tile found[MODELS];
    point(t, feeds, sources, kinds);
    for (int64_t start = 0, n, i = 0; start < size; start += n, i++) {
        n = least(block, size - start);
        if (!fetch_all(t, feeds, start, n)) return start;
        for (int64_t b = 0; b < count; b++) memset(brackets[b].counts + 5 * i, 0, 5 * sizeof(int64_t));
        for (int64_t at = 0; at < n; at += TILE) {
            int64_t m = least(TILE, n - at);
            scores(t, sources, kinds, at, m, found[0], TILE);
            for (int64_t b = 0; b < count; b++)
                see(brackets + b, found[brackets[b].stream], m, brackets[b].counts + 5 * i);
        }
    }
    return -1;
}

/* The scores of `pieces` pieces of n elements that begin at `starts`: out[piece][stream][n]. Returns as `stream`. */
int64_t sample(const task *t, const feed *feeds, const int64_t *starts, int64_t pieces, int64_t n, float *out) {
    const void *sources[MODELS + 1];
    int32_t kinds[MODELS + 1];
    point(t, feeds, sources, kinds);
    for (int64_t i = 0; i < pieces; i++, out += n * (t->variance ? 1 : t->count)) {
        if (!fetch_all(t, feeds, starts[i], n)) return starts[i];
        score(t, sources, kinds, out, n);
    }
    return -1;
}
