/* Where the sums of a product go, whatever the weights are kept as. */

#ifndef KDN_LINEAR_H
#define KDN_LINEAR_H

#include "common.h"
#include "real.h"

#define ROWS 512 /* rows that share a walk over the matrix: they fit the second-level cache */

static inline __m512 silu(__m512 x) {
    const __m512 e = exp2_fast(_mm512_mul_ps(x, _mm512_set1_ps(-1.4426950408889634f)));
    return _mm512_div_ps(x, _mm512_add_ps(e, _mm512_set1_ps(1.0f)));
}

/* The sums of up to 16 rows, 2 x 16 columns of a panel, to where they belong. */
static inline void put(const Linear *call, int64_t row, int64_t rows, int64_t panel, float lefts[16][16],
                       float rights[16][16]) {
    const int64_t left = call->kind == PLAIN ? panel * SIDE : panel * 16;
    const int64_t right = call->kind == PLAIN ? left + 16 : call->out / 2 + left;
    __m512 bias[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    if (call->bias) bias[0] = _mm512_loadu_ps(call->bias + left), bias[1] = _mm512_loadu_ps(call->bias + right);
    __m512 scale[2] = {_mm512_set1_ps(1.0f), _mm512_set1_ps(1.0f)};
    if (call->scale) scale[0] = _mm512_loadu_ps(call->scale + left), scale[1] = _mm512_loadu_ps(call->scale + right);
    for (int64_t r = 0; r < rows; r++) {
        __m512 a = _mm512_fmadd_ps(_mm512_load_ps(lefts[r]), scale[0], bias[0]);
        __m512 b = _mm512_fmadd_ps(_mm512_load_ps(rights[r]), scale[1], bias[1]);
        bf16 *y = call->y + (row + r) * call->y_stride;
        if (call->kind == GATED) {
            narrow(y + left, _mm512_mul_ps(silu(a), b));
            continue;
        }
        if (call->wide) {
            _mm512_storeu_ps(call->wide + (row + r) * call->out + left, a);
            _mm512_storeu_ps(call->wide + (row + r) * call->out + right, b);
            continue;
        }
        if (call->onto) {
            const bf16 *onto = call->onto + (row + r) * call->onto_stride;
            a = _mm512_add_ps(a, widen(onto + left));
            b = _mm512_add_ps(b, widen(onto + right));
        }
        narrow(y + left, a);
        narrow(y + right, b);
    }
}

/* Rows [first, stop) over panels [from, to). */
typedef void Walk(const Linear *call, int64_t first, int64_t stop, int64_t from, int64_t to);

/* The threads of a parallel region take blocks of rows over parts of the panels, as they come: some parts for
 * every thread, and at least `parts` where panels are walked over more than once. */
static inline void share_walks(const Linear *call, int64_t parts, Walk *walk) {
    const int64_t panels = call->out / SIDE, blocks = (call->rows + ROWS - 1) / ROWS;
    const int64_t wanted = (call->rows > SIDE ? 8 : 1) * call->threads;
    if (call->rows <= SIDE || parts < wanted) parts = wanted;
    if (parts > panels) parts = panels;
#pragma omp for schedule(dynamic, 1) collapse(2)
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t part = 0; part < parts; part++) {
            const int64_t stop = (b + 1) * ROWS < call->rows ? (b + 1) * ROWS : call->rows;
            walk(call, b * ROWS, stop, part * panels / parts, (part + 1) * panels / parts);
        }
}

#endif
