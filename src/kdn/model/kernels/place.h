/* Writing K and V where they are kept, and rotating queries: `turn` and `transpose_rows` stand before the line that
 * includes this, for the numbers at hand. */

#ifndef KDN_PLACE_H
#define KDN_PLACE_H

#include <omp.h>

#include "attention.h"

/* K rows, shifted (by [kv heads, dim], if not null) and rotated, and V rows, transposed, to columns at[r] of
 * to_k [kv heads, columns, dim] and to_v [kv heads, dim, columns]. `k` and `v` are the first of `rows` rows,
 * `cos` and `sin` theirs. */
static void write_rows(const Call *call, const real *k, const real *v, int64_t k_stride, int64_t v_stride,
                       const real *shift, const float *cos, const float *sin, int64_t rows, const int64_t *at,
                       int64_t before, real *to_k, real *to_v, int64_t columns) {
    const int64_t dim = call->dim, first = at[0] - before;
    const int together = rows == WRITTEN && at[WRITTEN - 1] - at[0] == WRITTEN - 1;
    for (int64_t h = 0; h < call->kv_heads; h++) {
        for (int64_t r = 0; r < rows; r++)
            turn(k + r * k_stride + h * dim, shift ? shift + h * dim : 0, cos + r * dim, sin + r * dim, dim,
                 to_k + (h * columns + at[r] - before) * dim);
        real *to = to_v + h * dim * columns;
        if (together)
            transpose_rows(v + h * dim, v_stride, dim, to + first, columns);
        else
            for (int64_t d = 0; d < dim; d++)
                for (int64_t r = 0; r < rows; r++) to[d * columns + at[r] - before] = v[r * v_stride + h * dim + d];
    }
}

typedef struct {
    const real *k, *v;
    int64_t k_stride, v_stride, rows;
    const real *shift;
} Run;

typedef struct {
    const Run *runs;
    int64_t num_runs;
    const float *cos, *sin;
    const int64_t *at;
    real *to_k, *to_v;
    int64_t columns;
} Write;

/* Columns that come from elsewhere: runs of rows, one after the other, to columns at[..] of their place.
 * All places together are cut in blocks of WRITTEN, which the threads take in turn. */
void kdn_write(const Call *call, const Write *writes, int64_t num_writes) {
    const int64_t dim = call->dim;
#pragma omp parallel num_threads(call->threads)
    {
        const int64_t me = omp_get_thread_num(), threads = omp_get_num_threads();
        int64_t block = 0;
        for (const Write *w = writes; w < writes + num_writes; w++) {
            int64_t row = 0;
            for (const Run *run = w->runs; run < w->runs + w->num_runs; row += run->rows, run++)
                for (int64_t r = 0; r < run->rows; r += WRITTEN)
                    if (block++ % threads == me)
                        write_rows(call, run->k + r * run->k_stride, run->v + r * run->v_stride, run->k_stride,
                                   run->v_stride, run->shift, w->cos + (row + r) * dim, w->sin + (row + r) * dim,
                                   r + WRITTEN < run->rows ? WRITTEN : run->rows - r, w->at + row + r, 0, w->to_k,
                                   w->to_v, w->columns);
        }
    }
}

/* All rows of a batch: K and V to their sequences' suffixes, queries rotated to call->out [rows, heads, dim]. */
void kdn_place(const Sequence *sequences, int64_t num_sequences, const Call *call) {
    const int64_t dim = call->dim;
    for (int64_t i = 0; i < num_sequences; i++) {
        const Sequence *sequence = &sequences[i];
        const int64_t slot = call->layer * sequence->suffix_step;
#pragma omp parallel for num_threads(call->threads) if (sequence->num_rows > 16)
        for (int64_t r0 = 0; r0 < sequence->num_rows; r0 += WRITTEN) {
            const int64_t row = sequence->start + r0, left = sequence->num_rows - r0, rows = left > WRITTEN ? WRITTEN : left;
            const float *cos = call->cos + row * dim, *sin = call->sin + row * dim;
            write_rows(call, call->k + row * call->k_stride, call->v + row * call->v_stride, call->k_stride,
                       call->v_stride, 0, cos, sin, rows, sequence->positions + r0, sequence->num_prefix,
                       sequence->suffix_k + slot, sequence->suffix_v + slot, sequence->suffix_columns);
            for (int64_t r = 0; r < rows; r++)
                for (int64_t h = 0; h < call->heads; h++)
                    turn(call->q + (row + r) * call->q_stride + h * dim, 0, cos + r * dim, sin + r * dim, dim,
                         call->out + ((row + r) * call->heads + h) * dim);
        }
    }
}

#endif
