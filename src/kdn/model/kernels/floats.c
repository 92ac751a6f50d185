/* Norms and attention of fp32 rows, for processors that have AVX2 and no bf16.
 *
 * Attention is made of one product: a block of K, and then of V, is turned, so that what the sums run over is its
 * outer side, and each query's values are multiplied with it one after the other.  No sum crosses a register, and its
 * order is the same for any number of queries.  Columns are read in blocks cut at absolute multiples of BLOCK and
 * queries never mix, so the bits of a row depend neither on the rows beside it nor on where the prefix ends and the
 * suffix begins.
 */

#include <omp.h>

#include "columns.h"
#include "floats.h"

#define QUERIES 192                      /* of a task, at most: a block of columns is turned once for all of them */
#define VALUES (QUERIES * MAX_DIM / 2) /* of a task: heads wider than half of MAX_DIM have fewer queries */
#define FEWEST 24                        /* of a task, at least, unless there are no more */
#define SHARES 3                         /* a thread's tasks, at least */
#define ROWS 3                           /* rows of a product whose sums are in registers together, with a panel's columns */
#define VECTORS 4
#define PANEL (VECTORS * WIDTH)

typedef struct {
    float q[VALUES], o[VALUES]; /* [queries][dim], and [queries][dim in whole panels] */
    float p[QUERIES][BLOCK];
    float turned[BLOCK * MAX_DIM]; /* K or V of a block: [panels][what sums run over][PANEL] */
    float top[QUERIES], sum[QUERIES];
    int64_t where[QUERIES], head[QUERIES], row[QUERIES]; /* a query's position, head, and row of the batch */
    const Sequence *of[QUERIES];
    Gathered gathered;
} Scratch;

/* y[rows, size] = x / sqrt(mean(x^2) + eps) * weight; `size` is a multiple of 16. */
void kdn_norm(const float *x, int64_t x_stride, const float *weight, float eps, int64_t rows, int64_t size, float *y,
              int64_t threads) {
#pragma omp parallel for num_threads(threads) if (rows > 32)
    for (int64_t r = 0; r < rows; r++) {
        const float *in = x + r * x_stride;
        float *out = y + r * size;
        __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
        for (int64_t i = 0; i < size; i += WIDTH) {
            const __m256 some = _mm256_loadu_ps(in + i);
            sums[i / WIDTH % 2] = _mm256_fmadd_ps(some, some, sums[i / WIDTH % 2]);
        }
        const float mean = add_lanes(_mm256_add_ps(sums[0], sums[1])) / (float)size;
        const __m256 scale = _mm256_set1_ps(1.0f / __builtin_sqrtf(mean + eps));
        for (int64_t i = 0; i < size; i += WIDTH) {
            const __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(in + i), scale);
            _mm256_storeu_ps(out + i, _mm256_mul_ps(scaled, _mm256_loadu_ps(weight + i)));
        }
    }
}

/* ---- products ----------------------------------------------------------------------------------- */

/* Eight rows of eight values to eight columns of them, PANEL apart. */
static inline void turn_square(const float *from, int64_t stride, float *to) {
    __m256 x[8], y[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) { /* halves: values 0-3 and 4-7 of rows i and i + 4 */
        const float *a = from + i * stride, *b = from + (i + 4) * stride;
        x[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(a)), _mm_loadu_ps(b), 1);
        x[i + 4] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(a + 4)), _mm_loadu_ps(b + 4), 1);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        y[i] = _mm256_unpacklo_ps(x[i], x[i + 1]);
        y[i + 1] = _mm256_unpackhi_ps(x[i], x[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            const __m256 low = _mm256_shuffle_ps(y[i + j], y[i + j + 2], 0x44);
            const __m256 high = _mm256_shuffle_ps(y[i + j], y[i + j + 2], 0xee);
            _mm256_storeu_ps(to + (i + 2 * j) * PANEL, low);
            _mm256_storeu_ps(to + (i + 2 * j + 1) * PANEL, high);
        }
}

/* `rows` rows of `size` values to panels [rows / PANEL][size][PANEL]. What is missing of the last panel stays as
 * it is: nobody reads what comes of it. */
static void turn_rows(const float *from, int64_t stride, int64_t rows, int64_t size, float *to) {
    for (int64_t r = 0; r < rows; r += WIDTH) {
        float *panel = to + r / PANEL * size * PANEL + r % PANEL;
        for (int64_t i = 0; i < size; i += WIDTH) turn_square(from + r * stride + i, stride, panel + i * PANEL);
    }
}

/* onto[i][..] += sum of a[i][k] panel[k][..] over `size`, one k after the other, for `n` rows of a. */
static inline __attribute__((always_inline)) void add_products(const float *a, int64_t a_stride, const float *panel,
                                                               int64_t size, float *onto, int64_t onto_stride,
                                                               const int n) {
    __m256 sums[ROWS][VECTORS];
#pragma GCC unroll 3
    for (int i = 0; i < n; i++)
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; j++) sums[i][j] = _mm256_loadu_ps(onto + i * onto_stride + j * WIDTH);
#pragma GCC unroll 2 /* 97 GFLOP/s where one step a turn has 77 */
    for (int64_t k = 0; k < size; k++, panel += PANEL) {
        __m256 value[ROWS];
#pragma GCC unroll 3
        for (int i = 0; i < n; i++) value[i] = _mm256_broadcast_ss(a + i * a_stride + k);
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; j++) {
            const __m256 some = _mm256_loadu_ps(panel + j * WIDTH);
#pragma GCC unroll 3
            for (int i = 0; i < n; i++) sums[i][j] = _mm256_fmadd_ps(value[i], some, sums[i][j]);
        }
    }
#pragma GCC unroll 3
    for (int i = 0; i < n; i++)
#pragma GCC unroll 4
        for (int j = 0; j < VECTORS; j++) _mm256_storeu_ps(onto + i * onto_stride + j * WIDTH, sums[i][j]);
}

/* The same, for all `rows` of a and all `panels`. */
static void add_all_products(const float *a, int64_t a_stride, int64_t rows, const float *turned, int64_t panels,
                             int64_t size, float *onto, int64_t onto_stride) {
    for (int64_t j = 0; j < panels; j++, turned += size * PANEL, onto += PANEL) {
        int64_t i = 0;
        for (; i + ROWS <= rows; i += ROWS)
            add_products(a + i * a_stride, a_stride, turned, size, onto + i * onto_stride, onto_stride, ROWS);
        if (rows - i == 2)
            add_products(a + i * a_stride, a_stride, turned, size, onto + i * onto_stride, onto_stride, 2);
        else if (rows - i == 1)
            add_products(a + i * a_stride, a_stride, turned, size, onto + i * onto_stride, onto_stride, 1);
    }
}

/* ---- one block of columns ----------------------------------------------------------------------- */

/* A width in whole panels. */
static inline int64_t whole_panels(int64_t dim) { return (dim + PANEL - 1) / PANEL * PANEL; }

/* HIDDEN in a query's scores of columns after its own, and of those that its window has left. */
static void hide(float *scores, int64_t where, int64_t first, int64_t window) {
    for (int64_t c = where - first + 1 < 0 ? 0 : where - first + 1; c < BLOCK; c++) scores[c] = HIDDEN;
    for (int64_t c = 0; window && c <= where - window - first && c < BLOCK; c++) scores[c] = HIDDEN;
}

static float highest(const float *scores) {
    __m256 tops[2] = {_mm256_loadu_ps(scores), _mm256_loadu_ps(scores + WIDTH)};
    for (int c = 2 * WIDTH; c < BLOCK; c += 2 * WIDTH) {
        tops[0] = _mm256_max_ps(tops[0], _mm256_loadu_ps(scores + c));
        tops[1] = _mm256_max_ps(tops[1], _mm256_loadu_ps(scores + c + WIDTH));
    }
    const __m256 top = _mm256_max_ps(tops[0], tops[1]);
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps(top, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

/* One query's scores to weights. Gives back their sum. */
static float weigh(float *scores, float scale, float top) {
    const __m256 scales = _mm256_set1_ps(scale), lift = _mm256_set1_ps(top * scale);
    __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int c = 0; c < BLOCK; c += 2 * WIDTH)
#pragma GCC unroll 2
        for (int i = 0; i < 2; i++) {
            float *at = scores + c + i * WIDTH;
            const __m256 weight = exp2_exact(_mm256_fmsub_ps(_mm256_loadu_ps(at), scales, lift));
            _mm256_storeu_ps(at, weight);
            sums[i] = _mm256_add_ps(sums[i], weight);
        }
    return add_lanes(_mm256_add_ps(sums[0], sums[1]));
}

/* The same for queries [begin, end): move the running maxima and sums, fade what was added up before. One step of
 * all queries follows the other, so that none waits for its own last one. */
static void weigh_all(Scratch *s, const Call *call, int64_t begin, int64_t end) {
    const int64_t wide = whole_panels(call->dim);
    const float scale = LOG2E / __builtin_sqrtf((float)call->dim);
    float fade[QUERIES + WIDTH];
    for (int64_t i = begin; i < end; i++) {
        const float was = s->top[i], new = highest(s->p[i]);
        s->top[i] = new > was ? new : was;
        fade[i] = (was - s->top[i]) * scale;
    }
    for (int64_t i = begin; i < end; i += WIDTH) _mm256_storeu_ps(fade + i, exp2_exact(_mm256_loadu_ps(fade + i)));
    for (int64_t i = begin; i < end; i++)
        s->sum[i] = __builtin_fmaf(s->sum[i], fade[i], weigh(s->p[i], scale, s->top[i]));
    for (int64_t i = begin; i < end; i++)
        for (int64_t d = 0; fade[i] != 1.0f && d < wide; d += WIDTH) {
            float *o = s->o + i * wide + d;
            _mm256_storeu_ps(o, _mm256_mul_ps(_mm256_loadu_ps(o), _mm256_set1_ps(fade[i])));
        }
}

/* Queries [begin, end) in scaled columns: a bias for their scores, or a gain for their weights, where sums are
 * left as they are. */
static void scale_columns(Scratch *s, const Sequence *sequence, const Call *call, int64_t begin, int64_t end,
                          int64_t first, int is_gain) {
    for (int64_t j = 0; j < sequence->num_scaled; j++) {
        const int64_t c = sequence->scaled_at[j] - first;
        if (c < 0 || c >= BLOCK) continue;
        for (int64_t i = begin; i < end; i++) {
            if (is_gain) s->p[i][c] *= sequence->gain_of[j * call->heads + s->head[i]];
            else s->p[i][c] += sequence->bias_of[j * call->heads + s->head[i]];
        }
    }
}

/* The same for queries of several sequences: neighbours are of one. */
static void scale_all_columns(Scratch *s, const Call *call, int64_t begin, int64_t end, int64_t first, int is_gain) {
    for (int64_t stop; begin < end; begin = stop) {
        const Sequence *sequence = s->of[begin];
        for (stop = begin + 1; stop < end && s->of[stop] == sequence;) stop++;
        if (!is_gain || sequence->gain_of) scale_columns(s, sequence, call, begin, stop, first, is_gain);
    }
}

/* Queries [begin, end) over the columns from `first` on: `sequence` has them, and `is_scaled` says whether any of
 * its group scales some. */
static void one_block(Scratch *s, const Sequence *sequence, const Task *task, const Call *call, int64_t begin,
                      int64_t end, int64_t first, int is_scaled) {
    const int64_t dim = call->dim, wide = whole_panels(dim), queries = end - begin;
    const Columns at = find_columns(&s->gathered, sequence, call, task->kv_head, first, BLOCK);
    memset(s->p[begin], 0, sizeof s->p[0] * queries);
    turn_rows(at.k, at.k_stride, BLOCK, dim, s->turned);
    add_all_products(s->q + begin * dim, dim, queries, s->turned, BLOCK / PANEL, dim, s->p[begin], BLOCK);
    if (is_scaled) scale_all_columns(s, call, begin, end, first, 0);
    for (int64_t i = begin; i < end; i++)
        if (s->where[i] < first + BLOCK - 1 || call->window) hide(s->p[i], s->where[i], first, call->window);
    weigh_all(s, call, begin, end);
    if (is_scaled) scale_all_columns(s, call, begin, end, first, 1);
    turn_rows(at.v, at.v_stride, dim, BLOCK, s->turned);
    add_all_products(s->p[begin], BLOCK, queries, s->turned, wide / PANEL, BLOCK, s->o + begin * wide, wide);
}

/* ---- tasks: some queries of a group over all their columns ---------------------------------------- */

static void load_queries(Scratch *s, const Task *task, const Call *call, int64_t queries) {
    const int64_t group = call->heads / call->kv_heads, dim = call->dim;
    for (int64_t i = 0; i < queries; i++) {
        const int64_t row = (task->first + i) / group;
        const int64_t own = task->prefix_group->num_sequences > 1 ? 0 : row;
        s->of[i] = sequence_of(task->prefix_group, row);
        s->head[i] = task->kv_head * group + (task->first + i) % group;
        s->row[i] = s->of[i]->start + own;
        s->where[i] = s->of[i]->positions[own];
        s->top[i] = FAR, s->sum[i] = 0;
        memcpy(s->q + i * dim, call->q + s->row[i] * call->q_stride + s->head[i] * dim, sizeof(float) * dim);
    }
    memset(s->o, 0, sizeof(float) * queries * whole_panels(dim));
}

static void store_rows(const Scratch *s, const Call *call, int64_t queries) {
    for (int64_t i = 0; i < queries; i++) {
        const float *o = s->o + i * whole_panels(call->dim), share = 1.0f / s->sum[i];
        float *out = call->out + (s->row[i] * call->heads + s->head[i]) * call->dim;
        for (int64_t d = 0; d < call->dim; d++) out[d] = o[d] * share;
    }
}

/* Queries [begin, end) of one sequence over its columns [first, stop). */
static void attend_columns(Scratch *s, const Sequence *sequence, const Task *task, const Call *call, int64_t begin,
                           int64_t end, int64_t first, int64_t stop, int is_scaled) {
    for (; first < stop && first <= s->where[end - 1]; first += BLOCK) {
        int64_t last = end;
        while (s->where[begin] < first) begin++; /* rows ascend */
        while (call->window && last > begin && s->where[last - 1] - call->window >= first + BLOCK - 1) last--;
        if (last > begin) one_block(s, sequence, task, call, begin, last, first, is_scaled);
    }
}

static int64_t first_column(const Scratch *s, const Call *call, int64_t queries) {
    int64_t lowest = s->where[0];
    for (int64_t i = 1; i < queries; i++) lowest = s->where[i] < lowest ? s->where[i] : lowest;
    const int64_t first = call->window ? lowest - call->window + 1 : 0;
    return first > 0 ? first / BLOCK * BLOCK : 0;
}

static void run_task(Scratch *s, const Task *task, const Call *call) {
    const Sequence *sequences = task->prefix_group->sequences;
    const int64_t group = call->heads / call->kv_heads;
    const int64_t left = num_rows(task->prefix_group) * group - task->first;
    const int64_t queries = left < task->most ? left : task->most;
    load_queries(s, task, call, queries);
    const int64_t first = first_column(s, call, queries);
    if (task->prefix_group->num_sequences == 1) {
        attend_columns(s, sequences, task, call, 0, queries, first, INT64_MAX, sequences->num_scaled > 0);
    } else {
        const int64_t shared = sequences->num_prefix / BLOCK * BLOCK, behind = first > shared ? first : shared;
        for (int64_t at = first; at < shared; at += BLOCK) one_block(s, sequences, task, call, 0, queries, at, 1);
        for (int64_t begin = 0, end; begin < queries; begin = end) {
            for (end = begin + 1; end < queries && s->of[end] == s->of[begin];) end++;
            attend_columns(s, s->of[begin], task, call, begin, end, behind, INT64_MAX, 1);
        }
    }
    store_rows(s, call, queries);
}

static int64_t num_queries(const PrefixGroup *prefix_group, const Call *call) {
    return num_rows(prefix_group) * (call->heads / call->kv_heads);
}

/* Room for every number of threads. */
int64_t kdn_num_tasks(const PrefixGroup *prefix_groups, int64_t num_prefix_groups, const Call *call) {
    int64_t count = 0;
    for (int64_t i = 0; i < num_prefix_groups; i++)
        count += (num_queries(&prefix_groups[i], call) + FEWEST - 1) / FEWEST * call->kv_heads;
    return count;
}

/* How many queries a task has, at most: every thread shall have its share. */
static int64_t task_size(const PrefixGroup *prefix_groups, int64_t num_prefix_groups, const Call *call) {
    int64_t all = 0;
    for (int64_t i = 0; i < num_prefix_groups; i++) all += num_queries(&prefix_groups[i], call) * call->kv_heads;
    const int64_t share = all / (SHARES * call->threads) / FEWEST * FEWEST;
    const int64_t room = VALUES / whole_panels(call->dim), most = room < QUERIES ? room : QUERIES;
    return share < FEWEST ? FEWEST : share < most ? share : most;
}

/* Every row of every sequence over the columns at or before its position. Rows of a sequence ascend.
 * `tasks` has room for as many as kdn_num_tasks says. */
void kdn_attend(const PrefixGroup *prefix_groups, int64_t num_prefix_groups, const Call *call, Task *tasks) {
    const int64_t most = task_size(prefix_groups, num_prefix_groups, call);
    int64_t num_tasks = 0;
    for (int64_t i = 0; i < num_prefix_groups; i++)
        for (int64_t first = 0; first < num_queries(&prefix_groups[i], call); first += most)
            for (int64_t h = 0; h < call->kv_heads; h++) tasks[num_tasks++] = (Task){&prefix_groups[i], h, first, most};
#pragma omp parallel num_threads(call->threads)
    {
        Scratch s;
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = num_tasks - 1; i >= 0; i--) run_task(&s, &tasks[i], call);
    }
}

/* ---- rotary position, and writing K and V where they are kept ------------------------------------ */

/* `sin` carries the sign of the first half, as kdn.model.rope makes it; each operation is rounded, as there. */
static inline void turn(const float *x, const float *shift, const float *cos, const float *sin, int64_t dim,
                        float *out) {
    const int64_t half = dim / 2;
    for (int64_t i = 0, j = half; i < half; i++, j++) {
        const float a = shift ? x[i] + shift[i] : x[i], b = shift ? x[j] + shift[j] : x[j];
        out[i] = a * cos[i] + b * sin[i];
        out[j] = b * cos[j] + a * sin[j];
    }
}

/* V of WRITTEN neighbouring tokens, `stride` apart, to as many neighbouring columns of `to` [dim, columns]. */
static inline void transpose_rows(const float *v, int64_t stride, int64_t dim, float *to, int64_t columns) {
    for (int64_t d = 0; d < dim; d++)
        for (int64_t r = 0; r < WRITTEN; r++) to[d * columns + r] = v[r * stride + d];
}

#include "place.h"
