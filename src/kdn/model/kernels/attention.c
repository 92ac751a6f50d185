/* Attention over KV in two pieces (a shared prefix, an own suffix) for bf16 on x86-64 with AVX512-BF16,
 * and with AMX where the processor has it.
 *
 * The trick is to compute S^T = K Q^T and O^T = V^T P^T.  Then
 *   - a tile of K (16 columns x 32 dims, row-major) is an operand as it lies in memory;
 *   - sixteen queries stand side by side in a vector register, so that softmax is vertical;
 *   - P^T comes out of the exponential in exactly the pair-interleaved form the next product wants;
 *   - V is kept transposed, so that its tiles, too, are operands as they lie.
 *
 * Columns are read in blocks cut at absolute multiples of BLOCK and queries never mix, so the bits
 * of a row depend neither on the rows beside it nor on where the prefix ends and the suffix begins.
 */

#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "columns.h"
#include "few.h"

typedef struct {
    bf16 q[TILES][MAX_DIM / 2][LANES][2];
    float o[TILES][MAX_DIM][LANES];
    float scores[BLOCK][LANES];
    bf16 p[BLOCK / 2][LANES][2];
    Gathered gathered;
    int32_t where[TILES][LANES]; /* a query's position */
    int32_t seen[LANES];         /* the same, or -1 for queries that sit a block out */
    int32_t head[TILES][LANES];  /* a query's head */
    float top[TILES][LANES], sum[TILES][LANES];
    int scaled, gained; /* has any sequence of the task scaled columns, and any of them a gain? */
} Scratch;

/* Two rows of sixteen values to sixteen pairs. */
static const uint16_t WEAVE[32] __attribute__((aligned(64))) = {
    0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
    8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};

/* 2: AMX, 1: AVX512-BF16, 0: neither. Asks the kernel for the tile registers. */
int kdn_level(void) {
    if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512bw")) return 0;
#ifdef __AMX_BF16__
    unsigned a, b, c, d = 0;
    __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
    const int has_tiles = (d >> 22 & 1) && (d >> 24 & 1) && (d >> 25 & 1); /* bf16, tiles, int8 */
    const long arch_req_xcomp_perm = 0x1023, tile_data = 18;
    if (has_tiles && syscall(SYS_arch_prctl, arch_req_xcomp_perm, tile_data) == 0) return 2;
#endif
    return 1;
}

/* ---- products: the two ways -------------------------------------------------------------------- */

/* As many sums side by side as hide that one takes six times as long to come out as to go in. */
#define SUMS 16

static void scores_avx(Scratch *s, int t, Columns at, int64_t columns, int64_t dim) {
    const __m512bh *q = (const __m512bh *)s->q[t];
    for (int64_t c = 0; c < columns; c += SUMS) {
        const bf16 *k = at.k + c * at.k_stride;
        __m512 acc[SUMS];
#pragma GCC unroll 16
        for (int i = 0; i < SUMS; i++) acc[i] = _mm512_setzero_ps();
        for (int64_t pair = 0; pair < dim / 2; pair++)
#pragma GCC unroll 16
            for (int i = 0; i < SUMS; i++) {
                int32_t two;
                memcpy(&two, k + i * at.k_stride + 2 * pair, 4);
                acc[i] = _mm512_dpbf16_ps(acc[i], (__m512bh)_mm512_set1_epi32(two), q[pair]);
            }
#pragma GCC unroll 16
        for (int i = 0; i < SUMS; i++) _mm512_store_ps(s->scores[c + i], acc[i]);
    }
}

static void mix_avx(Scratch *s, int t, Columns at, int64_t columns, int64_t dim) {
    const __m512bh *p = (const __m512bh *)s->p;
    for (int64_t d = 0; d < dim; d += SUMS) {
        const bf16 *v = at.v + d * at.v_stride;
        __m512 acc[SUMS];
#pragma GCC unroll 16
        for (int i = 0; i < SUMS; i++) acc[i] = _mm512_load_ps(s->o[t][d + i]);
        for (int64_t pair = 0; pair < columns / 2; pair++)
#pragma GCC unroll 16
            for (int i = 0; i < SUMS; i++) {
                int32_t two;
                memcpy(&two, v + i * at.v_stride + 2 * pair, 4);
                acc[i] = _mm512_dpbf16_ps(acc[i], (__m512bh)_mm512_set1_epi32(two), p[pair]);
            }
#pragma GCC unroll 16
        for (int i = 0; i < SUMS; i++) _mm512_store_ps(s->o[t][d + i], acc[i]);
    }
}

#ifdef __AMX_BF16__
/* Four sums at a time, since one product takes three times as long to come out as to go in. */
static void scores_amx(Scratch *s, int t, Columns at, int64_t columns, int64_t dim) {
    const int64_t stride = 2 * at.k_stride, down = 16 * at.k_stride;
    for (int64_t c = 0; c < columns; c += STEP) {
        const bf16 *k = at.k + c * at.k_stride;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t d = 0; d < dim; d += 32) {
            _tile_loadd(4, s->q[t][d / 2], 64);
            _tile_loadd(5, k + d, stride);
            _tile_dpbf16ps(0, 5, 4);
            _tile_loadd(6, k + down + d, stride);
            _tile_dpbf16ps(1, 6, 4);
            _tile_loadd(7, k + 2 * down + d, stride);
            _tile_dpbf16ps(2, 7, 4);
            _tile_loadd(5, k + 3 * down + d, stride);
            _tile_dpbf16ps(3, 5, 4);
        }
        _tile_stored(0, s->scores[c], 64);
        _tile_stored(1, s->scores[c + 16], 64);
        _tile_stored(2, s->scores[c + 32], 64);
        _tile_stored(3, s->scores[c + 48], 64);
    }
}

static void mix_amx(Scratch *s, int t, Columns at, int64_t columns, int64_t dim) {
    const int64_t stride = 2 * at.v_stride, down = 16 * at.v_stride;
    for (int64_t d = 0; d < dim; d += STEP) {
        _tile_loadd(0, s->o[t][d], 64);
        _tile_loadd(1, s->o[t][d + 16], 64);
        _tile_loadd(2, s->o[t][d + 32], 64);
        _tile_loadd(3, s->o[t][d + 48], 64);
        for (int64_t c = 0; c < columns; c += 32) {
            const bf16 *v = at.v + d * at.v_stride + c;
            _tile_loadd(4, s->p[c / 2], 64);
            _tile_loadd(5, v, stride);
            _tile_dpbf16ps(0, 5, 4);
            _tile_loadd(6, v + down, stride);
            _tile_dpbf16ps(1, 6, 4);
            _tile_loadd(7, v + 2 * down, stride);
            _tile_dpbf16ps(2, 7, 4);
            _tile_loadd(5, v + 3 * down, stride);
            _tile_dpbf16ps(3, 5, 4);
        }
        _tile_stored(0, s->o[t][d], 64);
        _tile_stored(1, s->o[t][d + 16], 64);
        _tile_stored(2, s->o[t][d + 32], 64);
        _tile_stored(3, s->o[t][d + 48], 64);
    }
}
#else
static inline void tiles_on(void) {}
#define scores_amx scores_avx
#define mix_amx mix_avx
#endif

/* ---- one block of columns ---------------------------------------------------------------------- */

static inline __m512 max4(const __m512 x[4]) {
    return _mm512_max_ps(_mm512_max_ps(x[0], x[1]), _mm512_max_ps(x[2], x[3]));
}

/* Put HIDDEN where a query must not look. */
static void hide(Scratch *s, int64_t first, int64_t columns, const Call *call) {
    const __m512i where = _mm512_load_epi32(s->seen);
    const __m512i low = _mm512_sub_epi32(where, _mm512_set1_epi32((int)call->window));
    for (int64_t c = 0; c < columns; c++) {
        const __m512i column = _mm512_set1_epi32((int)(first + c));
        __mmask16 out = _mm512_cmplt_epi32_mask(where, column);
        if (call->window) out |= _mm512_cmpge_epi32_mask(low, column);
        _mm512_mask_store_ps(s->scores[c], out, _mm512_set1_ps(HIDDEN));
    }
}

static int must_hide(const Scratch *s, int64_t first, int64_t columns, const Call *call) {
    const __m512i where = _mm512_load_epi32(s->seen);
    const __m512i low = _mm512_sub_epi32(where, _mm512_set1_epi32((int)call->window));
    if (_mm512_cmplt_epi32_mask(where, _mm512_set1_epi32((int)(first + columns - 1)))) return 1;
    return call->window && _mm512_cmpge_epi32_mask(low, _mm512_set1_epi32((int)first));
}

/* The maximum with the next columns' scores. Four chains run side by side, by column modulo four. */
static inline __m512 highest(const Scratch *s, __m512 was, int64_t columns) {
    __m512 tops[4] = {was, was, was, was};
    for (int64_t c = 0; c < columns; c += 4)
        for (int i = 0; i < 4; i++) tops[i] = _mm512_max_ps(tops[i], _mm512_load_ps(s->scores[c + i]));
    return max4(tops);
}

/* Scores to weights: move the running maximum, leave P^T there. Sums run in four chains, too. */
static void weigh(Scratch *s, int t, int64_t first, int64_t columns, const Call *call) {
    if (must_hide(s, first, columns, call)) hide(s, first, columns, call);
    const __m512 scale = _mm512_set1_ps(LOG2E / __builtin_sqrtf((float)call->dim));
    const __m512 was = _mm512_load_ps(s->top[t]);
    const __m512 top = highest(s, was, columns), lift = _mm512_mul_ps(top, scale);
    const __m512i weave = _mm512_load_si512(WEAVE);
    __m512 sums[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t c = 0; c < columns; c += 4)
        for (int i = 0; i < 4; i += 2) {
            const __m512 a = exp2_fast(_mm512_fmsub_ps(_mm512_load_ps(s->scores[c + i]), scale, lift));
            const __m512 b = exp2_fast(_mm512_fmsub_ps(_mm512_load_ps(s->scores[c + i + 1]), scale, lift));
            sums[i] = _mm512_add_ps(sums[i], a);
            sums[i + 1] = _mm512_add_ps(sums[i + 1], b);
            const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(b, a);
            _mm512_store_si512(s->p[(c + i) / 2], _mm512_permutexvar_epi16(weave, both));
        }
    const __m512 sum = _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]));
    const __m512 fade = exp2_fast(_mm512_mul_ps(_mm512_sub_ps(was, top), scale));
    _mm512_store_ps(s->top[t], top);
    _mm512_store_ps(s->sum[t], _mm512_fmadd_ps(_mm512_load_ps(s->sum[t]), fade, sum));
    if (_mm512_cmpneq_ps_mask(fade, _mm512_set1_ps(1.0f)))
        for (int64_t d = 0; d < call->dim; d++)
            _mm512_store_ps(s->o[t][d], _mm512_mul_ps(_mm512_load_ps(s->o[t][d]), fade));
}

/* ---- one task: some queries over all their columns ---------------------------------------------- */

static void load_queries(Scratch *s, const Task *task, const Call *call, int tiles, int64_t total) {
    const int64_t group = call->heads / call->kv_heads;
    for (int t = 0; t < tiles; t++)
        for (int i = 0; i < LANES; i++) {
            int64_t query = task->first + t * LANES + i;
            if (query >= total) query = total - 1; /* a tile that is not full repeats the last one */
            const int64_t row = query / group, head = task->kv_head * group + query % group;
            const Sequence *sequence = sequence_of(task->prefix_group, row);
            const int64_t own = task->prefix_group->num_sequences > 1 ? 0 : row;
            const bf16 *q = call->q + (sequence->start + own) * call->q_stride + head * call->dim;
            for (int64_t d = 0; d < call->dim; d += 2) memcpy(s->q[t][d / 2][i], q + d, 4);
            s->where[t][i] = (int32_t)sequence->positions[own];
            s->head[t][i] = (int32_t)head;
            s->top[t][i] = FAR;
            s->sum[t][i] = 0;
        }
    for (int t = 0; t < tiles; t++) memset(s->o[t], 0, sizeof(float) * LANES * call->dim);
}

static void store_rows(Scratch *s, const Task *task, const Call *call, int tiles, int64_t total) {
    const int64_t group = call->heads / call->kv_heads;
    for (int t = 0; t < tiles; t++)
        for (int i = 0; i < LANES; i++) {
            const int64_t query = task->first + t * LANES + i;
            if (query >= total) return;
            const int64_t row = query / group, head = task->kv_head * group + query % group;
            const int64_t own = task->prefix_group->num_sequences > 1 ? 0 : row;
            const int64_t at = sequence_of(task->prefix_group, row)->start + own;
            bf16 *out = call->out + (at * call->heads + head) * call->dim;
            const float share = 1.0f / s->sum[t][i];
            for (int64_t d = 0; d < call->dim; d++) out[d] = float_to_bf16(s->o[t][d][i] * share);
        }
}

/* The lanes of tile `t` whose queries belong to row `row` of the group. */
static __mmask16 lanes_of(const Task *task, int t, int64_t row, int64_t group, int64_t total) {
    __mmask16 lanes = 0;
    for (int i = 0; i < LANES; i++) {
        int64_t query = task->first + t * LANES + i;
        if (query >= total) query = total - 1;
        if (query / group == row) lanes |= (__mmask16)(1u << i);
    }
    return lanes;
}

static int64_t first_scaled(const Sequence *sequence, int64_t column) {
    int64_t low = 0, high = sequence->num_scaled;
    while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (sequence->scaled_at[middle] < column) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* What is done to the lanes of one sequence in the scaled column `first + c`, the `j`th of all: other lanes
 * keep their bits. */
typedef void ScaleColumn(Scratch *s, int t, const Sequence *sequence, int64_t j, int64_t c, __mmask16 lanes,
                         const Call *call);

static void shift_scores(Scratch *s, int t, const Sequence *sequence, int64_t j, int64_t c, __mmask16 lanes,
                         const Call *call) {
    const __m512 was = _mm512_load_ps(s->scores[c]);
    const __m512i head = _mm512_loadu_si512(s->head[t]);
    const float *bias = sequence->bias_of + j * call->heads;
    const __m512 by = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), lanes, head, bias, 4);
    _mm512_store_ps(s->scores[c], _mm512_mask_add_ps(was, lanes, was, by));
}

/* The column's weights once more from its scores, times the gain, and then rounded: a gain of 1 changes no
 * bit.  Sums are left as they are, so that nothing is renormalised. */
static void gain_weights(Scratch *s, int t, const Sequence *sequence, int64_t j, int64_t c, __mmask16 lanes,
                         const Call *call) {
    if (!sequence->gain_of) return;
    const __m512 scale = _mm512_set1_ps(LOG2E / __builtin_sqrtf((float)call->dim));
    const __m512 lift = _mm512_mul_ps(_mm512_load_ps(s->top[t]), scale);
    const __m512 weight = exp2_fast(_mm512_fmsub_ps(_mm512_load_ps(s->scores[c]), scale, lift));
    const __m512i head = _mm512_loadu_si512(s->head[t]);
    const float *gain = sequence->gain_of + j * call->heads;
    const __m512 by = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), lanes, head, gain, 4);
    uint16_t rounded[LANES];
    _mm256_storeu_si256((__m256i *)rounded, (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(weight, by)));
    for (int i = 0; i < LANES; i++)
        if (lanes >> i & 1) memcpy(&s->p[c / 2][i][c % 2], &rounded[i], 2);
}

static void scale_columns(Scratch *s, const Task *task, int t, int64_t first, int64_t columns, const Call *call,
                          ScaleColumn *scale) {
    const PrefixGroup *prefix_group = task->prefix_group;
    const int64_t group = call->heads / call->kv_heads, total = num_rows(prefix_group) * group;
    const int64_t query = task->first + t * LANES;
    const int64_t last = query + LANES < total ? query + LANES - 1 : total - 1;
    const int alone = prefix_group->num_sequences == 1;
    for (int64_t row = alone ? 0 : query / group; row <= (alone ? 0 : last / group); row++) {
        const Sequence *sequence = prefix_group->sequences + row;
        if (!sequence->num_scaled) continue;
        const __mmask16 lanes = alone ? 0xffff : lanes_of(task, t, row, group, total);
        for (int64_t j = first_scaled(sequence, first); j < sequence->num_scaled; j++) {
            const int64_t c = sequence->scaled_at[j] - first;
            if (c >= columns) break;
            scale(s, t, sequence, j, c, lanes, call);
        }
    }
}

static void one_block(Scratch *s, const Task *task, int t, Columns at, int64_t first, int64_t columns,
                      const Call *call) {
    call->use_amx ? scores_amx(s, t, at, columns, call->dim) : scores_avx(s, t, at, columns, call->dim);
    if (s->scaled) scale_columns(s, task, t, first, columns, call, shift_scores);
    weigh(s, t, first, columns, call);
    if (s->gained) scale_columns(s, task, t, first, columns, call, gain_weights);
    call->use_amx ? mix_amx(s, t, at, columns, call->dim) : mix_avx(s, t, at, columns, call->dim);
}

static int64_t block_columns(int64_t first, int64_t last) {
    const int64_t columns = last + 1 - first;
    return columns > BLOCK ? BLOCK : (columns + STEP - 1) / STEP * STEP;
}

/* Blocks from `first` on, up to `stop` (exclusive) or the last column that any query sees. */
static void attend_columns(Scratch *s, const Task *task, const Call *call, int tiles, int64_t first, int64_t stop) {
    int32_t highest = 0;
    for (int t = 0; t < tiles; t++)
        for (int i = 0; i < LANES; i++)
            if (s->where[t][i] > highest) highest = s->where[t][i];
    for (; first <= highest && first < stop; first += BLOCK) {
        const int64_t columns = block_columns(first, highest);
        const Columns at = find_columns(&s->gathered, task->prefix_group->sequences, call, task->kv_head, first, columns);
        for (int t = 0; t < tiles; t++) {
            memcpy(s->seen, s->where[t], sizeof s->seen);
            one_block(s, task, t, at, first, columns, call);
        }
    }
}

/* The columns that only `sequence` has: its queries look, the others sit out. */
static void attend_suffix(Scratch *s, const Task *task, const Call *call, int tiles, int64_t row, int64_t first) {
    const int64_t group = call->heads / call->kv_heads;
    const Sequence *sequence = sequence_of(task->prefix_group, row);
    for (; first <= sequence->positions[0]; first += BLOCK) {
        const int64_t columns = block_columns(first, sequence->positions[0]);
        const Columns at = find_columns(&s->gathered, sequence, call, task->kv_head, first, columns);
        for (int t = 0; t < tiles; t++) {
            int looks = 0;
            for (int i = 0; i < LANES; i++) {
                const int own = (task->first + t * LANES + i) / group == row;
                s->seen[i] = own ? s->where[t][i] : -1;
                looks |= own;
            }
            if (looks) one_block(s, task, t, at, first, columns, call);
        }
    }
}

/* ---- a task of few queries, without AMX ---------------------------------------------------------- */

/* `n` queries of one sequence over columns from `first` on. `s` lends the room of find_columns. */
static void run_few(Scratch *s, FewScratch *few, const Task *task, const Call *call, int n, int64_t first) {
    const int64_t group = call->heads / call->kv_heads, dim = call->dim;
    const Sequence *sequence = task->prefix_group->sequences;
    int32_t highest = 0;
    const bf16 *p[FEW];
    float *scores[FEW], *o[FEW];
    memset(few->o, 0, sizeof few->o);
    for (int i = 0; i < LANES; i++) few->top[i] = FAR, few->sum[i] = 0;
    for (int i = 0; i < n; i++) {
        const int64_t row = (task->first + i) / group, head = task->kv_head * group + (task->first + i) % group;
        few->q[i] = call->q + (sequence->start + row) * call->q_stride + head * dim;
        few->where[i] = (int32_t)sequence->positions[row];
        if (few->where[i] > highest) highest = few->where[i];
        p[i] = few->p[i], scores[i] = few->scores[i], o[i] = few->o[i];
    }
    for (; first <= highest; first += BLOCK) {
        const Columns at = find_columns(&s->gathered, sequence, call, task->kv_head, first, BLOCK);
        for (int64_t d = 0; d < dim; d++) ask_for(at.v + d * at.v_stride, BLOCK);
        turn_block(at.k, at.k_stride, dim / 2, few->turned);
        memset(few->scores, 0, sizeof few->scores);
        add_all_products(few->turned, dim / 2, few->q, scores, n);
        for (int64_t c = BLOCK; c < 2 * BLOCK; c++) ask_for(at.k + c * at.k_stride, dim);
        weigh_few(few, n, first, call);
        for (int64_t d = 0; d < dim; d += BLOCK) {
            turn_block(at.v + d * at.v_stride, at.v_stride, BLOCK / 2, few->turned);
            for (int i = 0; i < n; i++) o[i] = few->o[i] + d;
            add_all_products(few->turned, BLOCK / 2, p, o, n);
        }
    }
    for (int i = 0; i < n; i++) {
        const int64_t row = (task->first + i) / group, head = task->kv_head * group + (task->first + i) % group;
        bf16 *out = call->out + ((sequence->start + row) * call->heads + head) * dim;
        const float share = 1.0f / few->sum[i];
        for (int64_t d = 0; d < dim; d++) out[d] = float_to_bf16(few->o[i][d] * share);
    }
}

/* The lowest and the highest position of a task's queries decide which columns are read. */
static int64_t first_column(const Task *task, const Call *call, int64_t queries) {
    const int64_t group = call->heads / call->kv_heads;
    int64_t lowest = INT64_MAX;
    for (int64_t query = task->first; query < task->first + queries; query++) {
        const int64_t row = query / group, own = task->prefix_group->num_sequences > 1 ? 0 : row;
        const int64_t where = sequence_of(task->prefix_group, row)->positions[own];
        if (where < lowest) lowest = where;
    }
    const int64_t first = call->window ? lowest - call->window + 1 : 0;
    return first > 0 ? first / BLOCK * BLOCK : 0;
}

static void run_task(Scratch *s, FewScratch *few, const Task *task, const Call *call) {
    const int64_t group = call->heads / call->kv_heads, total = num_rows(task->prefix_group) * group;
    const int64_t left = total - task->first, queries = left < TILES * LANES ? left : TILES * LANES;
    const int tiles = (int)((queries + LANES - 1) / LANES);
    const int64_t first = first_column(task, call, queries);
    s->scaled = s->gained = 0;
    for (int64_t i = 0; i < task->prefix_group->num_sequences; i++) {
        const Sequence *sequence = &task->prefix_group->sequences[i];
        s->scaled |= sequence->num_scaled > 0;
        s->gained |= sequence->num_scaled > 0 && sequence->gain_of;
    }
    if (!call->use_amx && queries <= FEW && task->prefix_group->num_sequences == 1 && !s->scaled) {
        run_few(s, few, task, call, (int)queries, first);
        return;
    }
    load_queries(s, task, call, tiles, total);
    if (task->prefix_group->num_sequences == 1) {
        attend_columns(s, task, call, tiles, first, INT64_MAX);
    } else {
        const int64_t shared = task->prefix_group->sequences->num_prefix / BLOCK * BLOCK;
        attend_columns(s, task, call, tiles, first, shared);
        const int64_t last = task->first + queries - 1;
        for (int64_t row = task->first / group; row <= last / group; row++)
            attend_suffix(s, task, call, tiles, row, first > shared ? first : shared);
    }
    store_rows(s, task, call, tiles, total);
}

/* Every row of every sequence over the columns at or before its position. Rows of a sequence ascend.
 * `tasks` has room for as many as kdn_num_tasks says. */
int64_t kdn_num_tasks(const PrefixGroup *prefix_groups, int64_t num_prefix_groups, const Call *call) {
    int64_t count = 0;
    for (int64_t i = 0; i < num_prefix_groups; i++) {
        const int64_t queries = num_rows(&prefix_groups[i]) * (call->heads / call->kv_heads);
        count += (queries + TILES * LANES - 1) / (TILES * LANES) * call->kv_heads;
    }
    return count;
}

void kdn_attend(const PrefixGroup *prefix_groups, int64_t num_prefix_groups, const Call *call, Task *tasks) {
    const int64_t group = call->heads / call->kv_heads;
    int64_t num_tasks = 0;
    for (int64_t i = 0; i < num_prefix_groups; i++)
        for (int64_t first = 0; first < num_rows(&prefix_groups[i]) * group; first += TILES * LANES)
            for (int64_t h = 0; h < call->kv_heads; h++) tasks[num_tasks++] = (Task){&prefix_groups[i], h, first};
#pragma omp parallel num_threads(call->threads)
    {
        Scratch s __attribute__((aligned(64)));
        FewScratch few __attribute__((aligned(64)));
        if (call->use_amx) tiles_on();
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = num_tasks - 1; i >= 0; i--) run_task(&s, &few, &tasks[i], call);
#ifdef __AMX_BF16__
        if (call->use_amx) _tile_release();
#endif
    }
}

/* ---- how much every column is looked at ----------------------------------------------------------- */

/* The next columns' scores to the running maxima and sums; no weights are kept. */
static void update_sums(Scratch *s, int t, int64_t first, int64_t columns, const Call *call) {
    if (must_hide(s, first, columns, call)) hide(s, first, columns, call);
    const __m512 scale = _mm512_set1_ps(LOG2E / __builtin_sqrtf((float)call->dim));
    const __m512 was = _mm512_load_ps(s->top[t]);
    const __m512 top = highest(s, was, columns), lift = _mm512_mul_ps(top, scale);
    __m512 sum = _mm512_mul_ps(_mm512_load_ps(s->sum[t]), exp2_fast(_mm512_mul_ps(_mm512_sub_ps(was, top), scale)));
    for (int64_t c = 0; c < columns; c++)
        sum = _mm512_add_ps(sum, exp2_fast(_mm512_fmsub_ps(_mm512_load_ps(s->scores[c]), scale, lift)));
    _mm512_store_ps(s->top[t], top);
    _mm512_store_ps(s->sum[t], sum);
}

/* Weights of one tile's queries, added up in `mass` [columns][LANES]; `share` is one over a query's sum. */
static void add_weights(Scratch *s, int t, int64_t first, int64_t columns, const Call *call, __m512 share,
                        float mass[BLOCK][LANES]) {
    if (must_hide(s, first, columns, call)) hide(s, first, columns, call);
    const __m512 scale = _mm512_set1_ps(LOG2E / __builtin_sqrtf((float)call->dim));
    const __m512 lift = _mm512_mul_ps(_mm512_load_ps(s->top[t]), scale);
    for (int64_t c = 0; c < columns; c++) {
        const __m512 weight = exp2_fast(_mm512_fmsub_ps(_mm512_load_ps(s->scores[c]), scale, lift));
        _mm512_store_ps(mass[c], _mm512_fmadd_ps(weight, share, _mm512_load_ps(mass[c])));
    }
}

static void score(Scratch *s, int t, Columns at, int64_t columns, const Call *call) {
    memcpy(s->seen, s->where[t], sizeof s->seen);
    call->use_amx ? scores_amx(s, t, at, columns, call->dim) : scores_avx(s, t, at, columns, call->dim);
}

/* One task's weights to out[width]: the first round finds each query's maximum and sum, the second
 * the weights. */
static void weigh_columns(Scratch *s, const Task *task, const Call *call, int64_t width, float *out) {
    const int64_t group = call->heads / call->kv_heads, total = num_rows(task->prefix_group) * group;
    const int64_t left = total - task->first;
    const int tiles = left >= TILES * LANES ? TILES : (int)((left + LANES - 1) / LANES);
    float mass[BLOCK][LANES] __attribute__((aligned(64)));
    load_queries(s, task, call, tiles, total);
    for (int64_t first = 0; first < width; first += BLOCK) {
        const int64_t columns = block_columns(first, width - 1);
        const Columns at = find_columns(&s->gathered, task->prefix_group->sequences, call, task->kv_head, first, columns);
        for (int t = 0; t < tiles; t++) {
            score(s, t, at, columns, call);
            update_sums(s, t, first, columns, call);
        }
    }
    for (int64_t first = 0; first < width; first += BLOCK) {
        const int64_t columns = block_columns(first, width - 1);
        const Columns at = find_columns(&s->gathered, task->prefix_group->sequences, call, task->kv_head, first, columns);
        memset(mass, 0, sizeof mass);
        for (int t = 0; t < tiles; t++) {
            const int64_t alive = left - t * LANES; /* a tile that is not full repeats its last query */
            const __mmask16 counts = alive >= LANES ? 0xffff : (__mmask16)((1 << alive) - 1);
            score(s, t, at, columns, call);
            add_weights(s, t, first, columns, call,
                        _mm512_maskz_div_ps(counts, _mm512_set1_ps(1.0f), _mm512_load_ps(s->sum[t])), mass);
        }
        for (int64_t c = 0; c < columns && first + c < width; c++)
            out[first + c] = _mm512_reduce_add_ps(_mm512_load_ps(mass[c]));
    }
}

/* What one sequence's rows put on each of the first `width` columns: a row of out [tasks, width] for every
 * task, to be added up. As many tasks as kdn_num_tasks says. */
void kdn_mass(const PrefixGroup *prefix_group, const Call *call, int64_t width, float *out) {
    const int64_t group = call->heads / call->kv_heads, queries = num_rows(prefix_group) * group;
    const int64_t head_tasks = (queries + TILES * LANES - 1) / (TILES * LANES);
#pragma omp parallel num_threads(call->threads)
    {
        Scratch s __attribute__((aligned(64)));
        if (call->use_amx) tiles_on();
#pragma omp for schedule(dynamic, 1)
        for (int64_t i = 0; i < head_tasks * call->kv_heads; i++) {
            const Task task = {prefix_group, i % call->kv_heads, i / call->kv_heads * TILES * LANES};
            weigh_columns(&s, &task, call, width, out + i * width);
        }
#ifdef __AMX_BF16__
        if (call->use_amx) _tile_release();
#endif
    }
}

/* ---- rotary position, and writing K and V where they are kept ------------------------------------ */

/* Sixteen values, with `shift` added and rounded where there is one. */
static inline __m512 shifted(const bf16 *x, const bf16 *shift, int64_t i) {
    if (!shift) return widen(x + i);
    const __m256i sum = (__m256i)_mm512_cvtneps_pbh(_mm512_add_ps(widen(x + i), widen(shift + i)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(sum), 16));
}

/* `sin` carries the sign of the first half, as kdn.model.rope makes it. */
static inline void turn(const bf16 *x, const bf16 *shift, const float *cos, const float *sin, int64_t dim, bf16 *out) {
    const int64_t half = dim / 2;
    for (int64_t i = 0, j = half; i < half; i += LANES, j += LANES) {
        const __m512 a = shifted(x, shift, i), b = shifted(x, shift, j);
        const __m512 first = _mm512_mul_ps(b, _mm512_loadu_ps(sin + i));
        const __m512 second = _mm512_mul_ps(a, _mm512_loadu_ps(sin + j));
        narrow(out + i, _mm512_fmadd_ps(a, _mm512_loadu_ps(cos + i), first));
        narrow(out + j, _mm512_fmadd_ps(b, _mm512_loadu_ps(cos + j), second));
    }
}

/* V of WRITTEN neighbouring tokens, `stride` apart, to as many neighbouring columns of `to` [dim, columns].
 * A gather brings two dims of sixteen tokens at once. */
static inline void transpose_rows(const bf16 *v, int64_t stride, int64_t dim, bf16 *to, int64_t columns) {
    const __m512i steps = _mm512_mullo_epi32(
        _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(2 * (int)stride));
    __m512i even, odd;
    {
        uint16_t at[WRITTEN];
        for (int i = 0; i < WRITTEN; i++) at[i] = (uint16_t)(2 * i);
        even = _mm512_loadu_si512(at);
        odd = _mm512_add_epi16(even, _mm512_set1_epi16(1));
    }
    for (int64_t d = 0; d < dim; d += 2) {
        const __m512i a = _mm512_i32gather_epi32(steps, v + d, 1);
        const __m512i b = _mm512_i32gather_epi32(steps, v + 16 * stride + d, 1);
        _mm512_storeu_si512(to + d * columns, _mm512_permutex2var_epi16(a, even, b));
        _mm512_storeu_si512(to + (d + 1) * columns, _mm512_permutex2var_epi16(a, odd, b));
    }
}

#include "place.h"
