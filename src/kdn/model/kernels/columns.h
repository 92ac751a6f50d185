/* Where a block of columns lies: in the prefix, in the suffix, or on the border of the two. */

#ifndef KDN_COLUMNS_H
#define KDN_COLUMNS_H

#include "attention.h"

/* Room to bring a block of columns together. */
typedef struct {
    real k[BLOCK][MAX_DIM];
    real v[MAX_DIM][BLOCK];
} Gathered;

typedef struct {
    const real *k, *v;
    int64_t k_stride, v_stride; /* in values */
} Columns;

/* Where columns [first, first + columns) lie: in the prefix, in the suffix, or brought together here. */
static Columns find_columns(Gathered *room, const Sequence *sequence, const Call *call, int64_t h,
                            int64_t first, int64_t columns) {
    const int64_t dim = call->dim;
    const int64_t prefix_at = call->layer * sequence->prefix_step + h * sequence->prefix_columns * dim;
    const int64_t suffix_at = call->layer * sequence->suffix_step + h * sequence->suffix_columns * dim;
    const real *prefix_k = sequence->prefix_k + prefix_at, *prefix_v = sequence->prefix_v + prefix_at;
    const real *suffix_k = sequence->suffix_k + suffix_at, *suffix_v = sequence->suffix_v + suffix_at;
    const int64_t own = first - sequence->num_prefix;
    if (first + columns <= sequence->num_prefix)
        return (Columns){prefix_k + first * dim, prefix_v + first, dim, sequence->prefix_columns};
    if (own >= 0 && own + columns <= sequence->suffix_columns)
        return (Columns){suffix_k + own * dim, suffix_v + own, dim, sequence->suffix_columns};
    for (int64_t c = 0; c < columns; c++) {
        const int64_t at = own + c;
        if (at >= sequence->suffix_columns) { /* after the buffer: weightless, but it must be a number */
            memset(room->k[c], 0, sizeof(real) * dim);
            for (int64_t d = 0; d < dim; d++) room->v[d][c] = 0;
            continue;
        }
        memcpy(room->k[c], at < 0 ? prefix_k + (first + c) * dim : suffix_k + at * dim, sizeof(real) * dim);
        for (int64_t d = 0; d < dim; d++)
            room->v[d][c] = at < 0 ? prefix_v[d * sequence->prefix_columns + first + c]
                                : suffix_v[d * sequence->suffix_columns + at];
    }
    return (Columns){room->k[0], room->v[0], MAX_DIM, BLOCK};
}

#endif
