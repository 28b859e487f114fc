/* Root-mean-square norm of bf16 rows, in fp32 in between. Called by trine.model.norm from several threads at once, each of
   which takes the next rows until none is left. The width is a multiple of 16. */
#include "vectors.h"

typedef struct {
    int64_t rows, width, narrow; /* narrow: the gain is bf16 */
    const bf16 *x;               /* [rows, width] */
    const void *gain;            /* [width] */
    bf16 *out;
    double eps;
    int64_t next;
} Norm;

enum { TAKEN = 64 };

static inline vec gain16(const Norm *n, int64_t i) {
    return n->narrow ? widen16((const bf16 *)n->gain + i) : read16((const float *)n->gain + i);
}

static void one_row(const Norm *n, const bf16 *x, bf16 *out) {
    vec sum = {0};
    for (int64_t i = 0; i < n->width; i += 16) sum += widen16(x + i) * widen16(x + i);
    float scale = 1.0f / sqrtf(total16(sum) / n->width + (float)n->eps);
    for (int64_t i = 0; i < n->width; i += 16) narrow16(out + i, widen16(x + i) * scale * gain16(n, i));
}

int norm_rows(Norm *n) {
    for (;;) {
        int64_t begin = __atomic_fetch_add(&n->next, TAKEN, __ATOMIC_RELAXED);
        if (begin >= n->rows) return 0;
        for (int64_t r = begin; r < n->rows && r < begin + TAKEN; r++) one_row(n, n->x + r * n->width, n->out + r * n->width);
    }
}
