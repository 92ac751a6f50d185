/* What attention is told: sequences, groups of them that share a prefix, and one call. */

#ifndef KDN_ATTENTION_H
#define KDN_ATTENTION_H

#include "real.h"

#define BLOCK 64  /* columns a step; K and V of one step fit the first-level cache */
#define STEP 64   /* columns, and dims, come in multiples of this */
#define LANES 16  /* queries side by side */
#define FEW 8     /* queries up to which columns stand side by side in their place */
#define TILES 4   /* groups of LANES queries that read the columns together */
#define MAX_DIM 256
#define WRITTEN 32 /* rows written at a time: a cache line of one dim of V */
#define LOG2E 1.4426950408889634f
#define FAR (-1e30f)    /* below every score */
#define HIDDEN (-1e36f) /* below FAR: weight 0 whatever the maximum, and no infinities to subtract */

typedef struct {
    int64_t start, num_rows;
    const int64_t *positions;
    real *suffix_k, *suffix_v;
    const real *prefix_k, *prefix_v;
    int64_t num_prefix, suffix_columns, prefix_columns;
    int64_t suffix_step, prefix_step; /* values from one layer to the next; 0 where layers share the memory */
    int64_t num_scaled;               /* columns that are scaled at this layer */
    const int64_t *scaled_at;         /* which they are, ascending */
    const float *bias_of;             /* [num_scaled][heads], added to scores, in units of raw ones */
    const float *gain_of;             /* [num_scaled][heads], multiplies weights that are not summed; or null */
} Sequence;

/* Neighbouring sequences that are computed together: one with all its rows, or several of one row each that
 * share a prefix, so that the prefix is read once for all of them. */
typedef struct {
    const Sequence *sequences;
    int64_t num_sequences;
} PrefixGroup;

typedef struct {
    const PrefixGroup *prefix_group;
    int64_t kv_head, first; /* first of up to TILES * LANES queries; query = row * group + member */
    int64_t most;           /* of fp32: of up to so many */
} Task;

typedef struct {
    int64_t layer, heads, kv_heads, dim, window; /* window 0: none */
    const real *q, *k, *v;
    int64_t q_stride, k_stride, v_stride;
    const float *cos, *sin;
    real *out;
    int64_t use_amx, threads;
} Call;

static inline int64_t num_rows(const PrefixGroup *prefix_group) {
    return prefix_group->num_sequences > 1 ? prefix_group->num_sequences : prefix_group->sequences->num_rows;
}

static inline const Sequence *sequence_of(const PrefixGroup *prefix_group, int64_t row) {
    return prefix_group->num_sequences > 1 ? prefix_group->sequences + row : prefix_group->sequences;
}

int64_t kdn_num_tasks(const PrefixGroup *prefix_groups, int64_t num_prefix_groups, const Call *call);
void kdn_attend(const PrefixGroup *prefix_groups, int64_t num_prefix_groups, const Call *call, Task *tasks);
void kdn_place(const Sequence *sequences, int64_t num_sequences, const Call *call);

#endif
