/* Attention of few queries without AMX: decoding, as a rule.
 *
 * Queries side by side would leave most of a register empty.  So columns stand there for the scores, and dims for the
 * output: K and V are turned in pairs, the pairs that a product adds up first.  A query's sums run in the order of
 * the other way, to the same bits.
 */

#ifndef KDN_FEW_H
#define KDN_FEW_H

#include "attention.h"
#include "common.h"

/* Sixteen rows of sixteen pairs to sixteen rows of what stood below each other. */
static void turn_pairs(const bf16 *from, int64_t stride, int32_t to[][BLOCK]) {
    __m512i x[16], y[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) x[i] = _mm512_loadu_si512(from + i * stride);
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
        for (int j = 0; j < 2; j++) {
            x[i + 2 * j] = _mm512_unpacklo_epi64(y[i + j], y[i + 2 + j]);
            x[i + 2 * j + 1] = _mm512_unpackhi_epi64(y[i + j], y[i + 2 + j]);
        }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) { /* x[4 g + j]: of rows 4 g to 4 g + 3, pairs j, j + 4, j + 8 and j + 12 */
        const __m512i a = _mm512_shuffle_i32x4(x[j], x[4 + j], 0x88), b = _mm512_shuffle_i32x4(x[j], x[4 + j], 0xdd);
        const __m512i c = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0x88);
        const __m512i d = _mm512_shuffle_i32x4(x[8 + j], x[12 + j], 0xdd);
        _mm512_store_si512(to[j], _mm512_shuffle_i32x4(a, c, 0x88));
        _mm512_store_si512(to[4 + j], _mm512_shuffle_i32x4(b, d, 0x88));
        _mm512_store_si512(to[8 + j], _mm512_shuffle_i32x4(a, c, 0xdd));
        _mm512_store_si512(to[12 + j], _mm512_shuffle_i32x4(b, d, 0xdd));
    }
}

/* BLOCK rows of `pairs` pairs, turned. */
static void turn_block(const bf16 *from, int64_t stride, int64_t pairs, int32_t to[][BLOCK]) {
    for (int64_t pair = 0; pair < pairs; pair += 16)
        for (int64_t row = 0; row < BLOCK; row += 16)
            turn_pairs(from + row * stride + 2 * pair, stride, (int32_t(*)[BLOCK])&to[pair][row]);
}

/* onto[i][BLOCK] += sum over pairs of turned[pair][BLOCK] times[i][pair], for `n` queries. */
static inline __attribute__((always_inline)) void add_products(const int32_t turned[][BLOCK], int64_t pairs,
                                                               const bf16 *const *times, float *const *onto,
                                                               const int n) {
    __m512 acc[4][4];
#pragma GCC unroll 4
    for (int i = 0; i < n; i++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) acc[i][j] = _mm512_load_ps(onto[i] + 16 * j);
    for (int64_t pair = 0; pair < pairs; pair++)
#pragma GCC unroll 4
        for (int i = 0; i < n; i++) {
            int32_t two;
            memcpy(&two, times[i] + 2 * pair, 4);
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++)
                acc[i][j] = _mm512_dpbf16_ps(acc[i][j], (__m512bh)_mm512_load_si512(turned[pair] + 16 * j),
                                             (__m512bh)_mm512_set1_epi32(two));
        }
#pragma GCC unroll 4
    for (int i = 0; i < n; i++)
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) _mm512_store_ps(onto[i] + 16 * j, acc[i][j]);
}

/* As add_products, four queries at a time. */
static void add_all_products(const int32_t turned[][BLOCK], int64_t pairs, const bf16 *const *times,
                             float *const *onto, int n) {
    for (; n > 0; n -= 4, times += 4, onto += 4) {
        if (n >= 4) add_products(turned, pairs, times, onto, 4);
        else if (n == 3) add_products(turned, pairs, times, onto, 3);
        else if (n == 2) add_products(turned, pairs, times, onto, 2);
        else add_products(turned, pairs, times, onto, 1);
    }
}

/* `size` values on their way to the first-level cache. */
static inline void ask_for(const bf16 *x, int64_t size) {
    for (int64_t i = 0; i < size; i += 32) _mm_prefetch((const char *)(x + i), _MM_HINT_T0);
}

typedef struct {
    int32_t turned[MAX_DIM / 2][BLOCK];
    float o[FEW][MAX_DIM], scores[FEW][BLOCK];
    bf16 p[FEW][BLOCK];
    float top[LANES], sum[LANES], fade[LANES];
    int32_t where[FEW];
    const bf16 *q[FEW];
} FewScratch;

/* One query's scores with HIDDEN where it must not look; the highest of them. */
static float hide_few(FewScratch *s, int i, int64_t first, int64_t window) {
    const __m512i where = _mm512_set1_epi32(s->where[i]), low = _mm512_set1_epi32(s->where[i] - (int32_t)window);
    __m512 top = _mm512_set1_ps(HIDDEN);
    for (int c = 0; c < BLOCK; c += 16) {
        const __m512i ramp = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const __m512i column = _mm512_add_epi32(_mm512_set1_epi32((int)(first + c)), ramp);
        __mmask16 out = _mm512_cmplt_epi32_mask(where, column);
        if (window) out |= _mm512_cmpge_epi32_mask(low, column);
        const __m512 x = _mm512_mask_mov_ps(_mm512_load_ps(s->scores[i] + c), out, _mm512_set1_ps(HIDDEN));
        _mm512_store_ps(s->scores[i] + c, x);
        top = _mm512_max_ps(top, x);
    }
    return _mm512_reduce_max_ps(top);
}

/* One query's weights, and their sum: four chains, by column modulo four, as in `weigh`. */
static float weigh_one(FewScratch *s, int i, __m512 scale, float lift) {
    __m128 sum = _mm_setzero_ps();
    for (int c = 0; c < BLOCK; c += 16) {
        const __m512 x = _mm512_load_ps(s->scores[i] + c);
        const __m512 weight = exp2_fast(_mm512_fmsub_ps(x, scale, _mm512_set1_ps(lift)));
        sum = _mm_add_ps(sum, _mm512_extractf32x4_ps(weight, 0));
        sum = _mm_add_ps(sum, _mm512_extractf32x4_ps(weight, 1));
        sum = _mm_add_ps(sum, _mm512_extractf32x4_ps(weight, 2));
        sum = _mm_add_ps(sum, _mm512_extractf32x4_ps(weight, 3));
        narrow(s->p[i] + c, weight);
    }
    float chain[4];
    _mm_storeu_ps(chain, sum);
    return (chain[0] + chain[1]) + (chain[2] + chain[3]);
}

/* As `weigh`, of all queries. */
static void weigh_few(FewScratch *s, int n, int64_t first, const Call *call) {
    const __m512 scale = _mm512_set1_ps(LOG2E / __builtin_sqrtf((float)call->dim));
    const __m512 was = _mm512_load_ps(s->top);
    float lift[LANES] __attribute__((aligned(64))), sums[LANES] __attribute__((aligned(64))) = {0};
    for (int i = 0; i < n; i++) {
        const float highest = hide_few(s, i, first, call->window);
        if (highest > s->top[i]) s->top[i] = highest;
    }
    const __m512 top = _mm512_load_ps(s->top);
    _mm512_store_ps(lift, _mm512_mul_ps(top, scale));
    for (int i = 0; i < n; i++) sums[i] = weigh_one(s, i, scale, lift[i]);
    const __m512 fade = exp2_fast(_mm512_mul_ps(_mm512_sub_ps(was, top), scale));
    _mm512_store_ps(s->sum, _mm512_fmadd_ps(_mm512_load_ps(s->sum), fade, _mm512_load_ps(sums)));
    _mm512_store_ps(s->fade, fade);
    for (int i = 0; i < n; i++)
        if (s->fade[i] != 1.0f)
            for (int64_t d = 0; d < call->dim; d += 16)
                _mm512_store_ps(s->o[i] + d, _mm512_mul_ps(_mm512_load_ps(s->o[i] + d), _mm512_set1_ps(s->fade[i])));
}

#endif
