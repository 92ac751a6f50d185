/* Matrices for fp32 rows, for processors that have AVX2 and no bf16: how they lie, and where a row's totals go.
 *
 * Layout: 32 outputs at a time ("panels"), and of those, for every 32 inputs, 32 scales and 32 lows in fp16 (of 4 and
 * 8 bits), then for each 8 outputs as many vectors of 8 words as weights have bits.  Word w of an output's n words
 * has inputs w, w + n, w + 2 n, ..., the first in its lowest bits.
 */

#ifndef KDN_PANELS_H
#define KDN_PANELS_H

#include "floats.h"
#include "real.h"

#define WIDE 4     /* vectors of a panel */
#define GROUP 32   /* inputs that share a scale */
#define ROWS 96    /* rows of a block */
#define TOGETHER 6 /* rows whose sums are in registers together, half a panel's */
#define AHEAD 2048 /* bytes that are asked for ahead of their use */

#define INLINE static inline __attribute__((always_inline))

/* CALL(n) with the number of rows that are left, up to TOGETHER, as a constant: their sums stay in registers. */
#define FOR_ROWS(left, CALL)     \
    switch (left) {              \
    case 1: CALL(1); break;      \
    case 2: CALL(2); break;      \
    case 3: CALL(3); break;      \
    case 4: CALL(4); break;      \
    case 5: CALL(5); break;      \
    default: CALL(TOGETHER);     \
    }

/* The output that column `c` of panel `p` is. */
INLINE int64_t output_of(int64_t p, int64_t c, int64_t out, int64_t kind) {
    return kind == PLAIN ? p * SIDE + c : c / 16 * (out / 2) + p * 16 + c % 16;
}

INLINE void ask_for(const uint8_t *packed, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch((const char *)packed + AHEAD + i, _MM_HINT_T0);
}

INLINE __m256 silu(__m256 x) {
    const __m256 e = exp2_exact(_mm256_mul_ps(x, _mm256_set1_ps(-1.4426950408889634f)));
    return _mm256_div_ps(x, _mm256_add_ps(e, _mm256_set1_ps(1.0f)));
}

/* A row's totals of one panel, to where they belong. */
INLINE void put(const Linear *call, int64_t row, int64_t panel, const float totals[SIDE]) {
    const int64_t left = call->kind == PLAIN ? panel * SIDE : panel * 16;
    const int64_t right = call->kind == PLAIN ? left + 16 : call->out / 2 + left;
    float *y = call->y + row * call->y_stride;
    __m256 sums[WIDE];
    for (int v = 0; v < WIDE; v++) {
        const int64_t at = (v < 2 ? left : right) + v % 2 * WIDTH;
        sums[v] = _mm256_loadu_ps(totals + v * WIDTH);
        if (call->bias) sums[v] = _mm256_add_ps(sums[v], _mm256_loadu_ps(call->bias + at));
        if (call->onto)
            sums[v] = _mm256_add_ps(sums[v], _mm256_loadu_ps(call->onto + row * call->onto_stride + at));
        if (call->kind != GATED) _mm256_storeu_ps(y + at, sums[v]);
    }
    for (int v = 0; v < 2 && call->kind == GATED; v++)
        _mm256_storeu_ps(y + left + v * WIDTH, _mm256_mul_ps(silu(sums[v]), sums[2 + v]));
}

/* Multiplies rows [first, first + rows) by one panel. */
typedef void Product(const Linear *call, int64_t first, int64_t rows, int64_t panel);

/* All rows over all panels, which the threads take as they come. */
INLINE void multiply_all(const Linear *call, Product *product) {
    const int64_t panels = call->out / SIDE, blocks = (call->rows + ROWS - 1) / ROWS;
#pragma omp parallel for num_threads(call->threads) schedule(dynamic, 4) collapse(2)
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t p = 0; p < panels; p++) {
            const int64_t first = b * ROWS, left = call->rows - first;
            product(call, first, left < ROWS ? left : ROWS, p);
        }
}

#endif
