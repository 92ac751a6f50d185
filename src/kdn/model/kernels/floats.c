/* Norms and attention of fp32 rows, for processors that have AVX2 and no bf16.
 *
 * Attention is made of one product: K as it lies gives scores, and V, kept transposed, gives the output.  Columns are
 * read in blocks cut at absolute multiples of BLOCK and queries never mix, so the bits of a row depend neither on the
 * rows beside it nor on where the prefix ends and the suffix begins.
 */

#include <omp.h>

#include "columns.h"
#include "floats.h"

#define QUERIES 48 /* of a task: they and a block's scores fit the first-level cache */
#define ROWS 3     /* rows of a product whose sums are in registers together, with COLUMNS columns */
#define COLUMNS 4

typedef struct {
    float q[QUERIES * MAX_DIM], o[QUERIES * MAX_DIM]; /* [queries][dim], without gaps */
    float p[QUERIES][BLOCK];
    float top[QUERIES], sum[QUERIES];
    int64_t where[QUERIES], head[QUERIES]; /* a query's position and head */
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

/* The sums of four vectors' lanes. */
static inline __m128 add_four(const __m256 x[COLUMNS]) {
    const __m256 all = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

/* onto[i][j] += sum of a[i][..] b[j][..] over `size`, for `n` rows of a and COLUMNS of b. */
static inline __attribute__((always_inline)) void add_products(const float *a, int64_t a_stride, const float *b,
                                                               int64_t b_stride, int64_t size, float *onto,
                                                               int64_t onto_stride, const int n) {
    __m256 sums[ROWS][COLUMNS];
#pragma GCC unroll 3
    for (int i = 0; i < n; i++)
#pragma GCC unroll 4
        for (int j = 0; j < COLUMNS; j++) sums[i][j] = _mm256_setzero_ps();
    for (int64_t k = 0; k < size; k += WIDTH) {
        __m256 row[ROWS];
#pragma GCC unroll 3
        for (int i = 0; i < n; i++) row[i] = _mm256_loadu_ps(a + i * a_stride + k);
#pragma GCC unroll 4
        for (int j = 0; j < COLUMNS; j++) {
            const __m256 column = _mm256_loadu_ps(b + j * b_stride + k);
#pragma GCC unroll 3
            for (int i = 0; i < n; i++) sums[i][j] = _mm256_fmadd_ps(row[i], column, sums[i][j]);
        }
    }
#pragma GCC unroll 3
    for (int i = 0; i < n; i++) {
        float *to = onto + i * onto_stride;
        _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), add_four(sums[i])));
    }
}

/* The same, for all `rows` of a and all `columns` of b. */
static void add_all_products(const float *a, int64_t a_stride, int64_t rows, const float *b, int64_t b_stride,
                             int64_t columns, int64_t size, float *onto, int64_t onto_stride) {
    for (int64_t j = 0; j < columns; j += COLUMNS, b += COLUMNS * b_stride, onto += COLUMNS) {
        int64_t i = 0;
        for (; i + ROWS <= rows; i += ROWS)
            add_products(a + i * a_stride, a_stride, b, b_stride, size, onto + i * onto_stride, onto_stride, ROWS);
        if (rows - i == 2)
            add_products(a + i * a_stride, a_stride, b, b_stride, size, onto + i * onto_stride, onto_stride, 2);
        else if (rows - i == 1)
            add_products(a + i * a_stride, a_stride, b, b_stride, size, onto + i * onto_stride, onto_stride, 1);
    }
}

/* ---- one block of columns ----------------------------------------------------------------------- */

/* HIDDEN in a query's scores of columns after its own, and of those that its window has left. */
static void hide(float *scores, int64_t where, int64_t first, int64_t window) {
    for (int64_t c = where - first + 1 < 0 ? 0 : where - first + 1; c < BLOCK; c++) scores[c] = HIDDEN;
    for (int64_t c = 0; window && c <= where - window - first && c < BLOCK; c++) scores[c] = HIDDEN;
}

static float highest(const float *scores) {
    __m256 top = _mm256_loadu_ps(scores);
    for (int c = WIDTH; c < BLOCK; c += WIDTH) top = _mm256_max_ps(top, _mm256_loadu_ps(scores + c));
    __m128 y = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps(top, 1));
    y = _mm_max_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

/* Scores of one query to weights: move the running maximum and sum, fade what was added up before. */
static void weigh(Scratch *s, int64_t i, const Call *call) {
    const float scale = LOG2E / __builtin_sqrtf((float)call->dim), was = s->top[i];
    const float new = highest(s->p[i]), top = new > was ? new : was;
    float *o = s->o + i * call->dim;
    const __m256 scales = _mm256_set1_ps(scale), lift = _mm256_set1_ps(top * scale);
    __m256 sum = _mm256_setzero_ps();
    for (int c = 0; c < BLOCK; c += WIDTH) {
        const __m256 weight = exp2_exact(_mm256_fmsub_ps(_mm256_loadu_ps(s->p[i] + c), scales, lift));
        _mm256_storeu_ps(s->p[i] + c, weight);
        sum = _mm256_add_ps(sum, weight);
    }
    const __m256 fade = exp2_exact(_mm256_set1_ps((was - top) * scale));
    s->top[i] = top;
    s->sum[i] = __builtin_fmaf(s->sum[i], _mm256_cvtss_f32(fade), add_lanes(sum));
    if (top > was)
        for (int64_t d = 0; d < call->dim; d += WIDTH)
            _mm256_storeu_ps(o + d, _mm256_mul_ps(_mm256_loadu_ps(o + d), fade));
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

/* Queries [begin, end), all of which see some of the columns from `first` on. */
static void one_block(Scratch *s, const Sequence *sequence, const Call *call, Columns at, int64_t begin, int64_t end,
                      int64_t first) {
    const int64_t dim = call->dim, queries = end - begin;
    memset(s->p[begin], 0, sizeof s->p[0] * queries);
    add_all_products(s->q + begin * dim, dim, queries, at.k, at.k_stride, BLOCK, dim, s->p[begin], BLOCK);
    if (sequence->num_scaled) scale_columns(s, sequence, call, begin, end, first, 0);
    for (int64_t i = begin; i < end; i++) {
        if (s->where[i] < first + BLOCK - 1 || call->window) hide(s->p[i], s->where[i], first, call->window);
        weigh(s, i, call);
    }
    if (sequence->num_scaled && sequence->gain_of) scale_columns(s, sequence, call, begin, end, first, 1);
    add_all_products(s->p[begin], BLOCK, queries, at.v, at.v_stride, dim, BLOCK, s->o + begin * dim, dim);
}

/* ---- tasks: some queries of a sequence over all their columns ------------------------------------ */

static void run_task(Scratch *s, const Task *task, const Call *call) {
    const Sequence *sequence = task->prefix_group->sequences;
    const int64_t group = call->heads / call->kv_heads, left = sequence->num_rows * group - task->first;
    const int64_t queries = left < QUERIES ? left : QUERIES;
    for (int64_t i = 0; i < queries; i++) {
        const int64_t row = (task->first + i) / group;
        s->head[i] = task->kv_head * group + (task->first + i) % group;
        s->where[i] = sequence->positions[row];
        s->top[i] = FAR, s->sum[i] = 0;
        const float *q = call->q + (sequence->start + row) * call->q_stride + s->head[i] * call->dim;
        memcpy(s->q + i * call->dim, q, sizeof(float) * call->dim);
        memset(s->o + i * call->dim, 0, sizeof(float) * call->dim);
    }
    const int64_t lowest = call->window ? s->where[0] - call->window + 1 : 0;
    int64_t begin = 0;
    for (int64_t first = lowest > 0 ? lowest / BLOCK * BLOCK : 0; first <= s->where[queries - 1]; first += BLOCK) {
        int64_t end = queries;
        while (s->where[begin] < first) begin++; /* rows ascend */
        while (call->window && end > begin && s->where[end - 1] - call->window >= first + BLOCK - 1) end--;
        if (end == begin) continue;
        const Columns at = find_columns(&s->gathered, sequence, call, task->kv_head, first, BLOCK);
        one_block(s, sequence, call, at, begin, end, first);
    }
    for (int64_t i = 0; i < queries; i++) {
        const int64_t row = sequence->start + (task->first + i) / group;
        float *out = call->out + (row * call->heads + s->head[i]) * call->dim;
        const float share = 1.0f / s->sum[i];
        for (int64_t d = 0; d < call->dim; d++) out[d] = s->o[i * call->dim + d] * share;
    }
}

/* Groups are of one sequence each. */
int64_t kdn_num_tasks(const PrefixGroup *prefix_groups, int64_t num_prefix_groups, const Call *call) {
    int64_t count = 0;
    for (int64_t i = 0; i < num_prefix_groups; i++) {
        const int64_t queries = prefix_groups[i].sequences->num_rows * (call->heads / call->kv_heads);
        count += (queries + QUERIES - 1) / QUERIES * call->kv_heads;
    }
    return count;
}

/* Every row of every sequence over the columns at or before its position. Rows of a sequence ascend.
 * `tasks` has room for as many as kdn_num_tasks says. */
void kdn_attend(const PrefixGroup *prefix_groups, int64_t num_prefix_groups, const Call *call, Task *tasks) {
    const int64_t group = call->heads / call->kv_heads;
    int64_t num_tasks = 0;
    for (int64_t i = 0; i < num_prefix_groups; i++)
        for (int64_t first = 0; first < prefix_groups[i].sequences->num_rows * group; first += QUERIES)
            for (int64_t h = 0; h < call->kv_heads; h++) tasks[num_tasks++] = (Task){&prefix_groups[i], h, first};
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
