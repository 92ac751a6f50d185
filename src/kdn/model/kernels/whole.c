/* Rows in fp32 times a matrix of weights of 16 or 32 bits; one of 16 bits is a bf16.
 *
 * The products of a row's 32 inputs are added up first, input by input, and then the total grows by their sum.  A row
 * is summed so whatever rows stand beside it.  For several rows the weights of 32 outputs are widened to fp32, in the
 * first-level cache.
 */

#include "panels.h"

#define PAIR 2   /* groups that one row is multiplied by together: enough sums that none is waited for */
#define CHUNK 64 /* inputs that are widened together: they and the sums fit the first-level cache */

/* Bytes of a panel's group. */
INLINE int64_t group_bytes(int64_t bits) { return bits * SIDE * GROUP / 8; }

INLINE void pack_whole(const float *weight, int64_t out, int64_t in, int64_t kind, uint8_t *packed, const int bits) {
    const int each = 32 / bits, words = GROUP / each;
    for (int64_t p = 0; p < out / SIDE; p++)
        for (int64_t g = 0; g < in; g += GROUP)
            for (int64_t v = 0; v < WIDE; v++)
                for (int64_t w = 0; w < words; w++)
                    for (int64_t c = v * WIDTH; c < (v + 1) * WIDTH; c++, packed += 4) {
                        const float *from = weight + output_of(p, c, out, kind) * in + g + w;
                        for (int i = 0; i < each; i++)
                            memcpy(packed + i * bits / 8, (const uint8_t *)(from + i * words) + 4 - bits / 8, bits / 8);
                    }
}

/* `weight`[out, in], with 16 bits the upper halves of its numbers, to panels. */
void kdn_pack(const float *weight, int64_t out, int64_t in, int64_t kind, uint8_t *packed, int64_t bits) {
    if (bits == 16) pack_whole(weight, out, in, kind, packed, 16);
    else pack_whole(weight, out, in, kind, packed, 32);
}

/* The `i`th input's weights of 8 outputs out of their word, in fp32. */
INLINE __m256 weights_of(__m256i word, const int i, const int bits) {
    if (bits == 32) return _mm256_castsi256_ps(word);
    return _mm256_castsi256_ps(i ? _mm256_and_si256(word, _mm256_set1_epi32((int)0xffff0000u))
                                 : _mm256_slli_epi32(word, 16));
}

/* ---- one row ---------------------------------------------------------------------------------- */

/* sums[groups][32] of the products of `groups` neighbouring groups. */
INLINE void multiply_groups(const float *x, const uint8_t *packed, const int bits, const int groups,
                            __m256 sums[PAIR][WIDE]) {
    const int each = 32 / bits, words = GROUP / each;
#pragma GCC unroll 2
    for (int g = 0; g < groups; g++)
#pragma GCC unroll 4
        for (int v = 0; v < WIDE; v++) sums[g][v] = _mm256_setzero_ps();
#pragma GCC unroll 8
    for (int i = 0; i < each; i++)
#pragma GCC unroll 1
        for (int w = 0; w < words; w++) {
#pragma GCC unroll 2
            for (int g = 0; g < groups; g++) {
                const __m256i *word = (const __m256i *)(packed + g * group_bytes(bits)) + w;
                const __m256 input = _mm256_broadcast_ss(x + g * GROUP + i * words + w);
#pragma GCC unroll 4
                for (int v = 0; v < WIDE; v++) {
                    const __m256 q = weights_of(_mm256_loadu_si256(word + v * words), i, bits);
                    sums[g][v] = _mm256_fmadd_ps(input, q, sums[g][v]);
                }
            }
        }
}

/* One row over one panel. */
INLINE void multiply_one(const Linear *call, int64_t panel, const int bits) {
    const int64_t num_groups = call->in / GROUP;
    const uint8_t *packed = (const uint8_t *)call->w8 + panel * num_groups * group_bytes(bits);
    float totals[SIDE] __attribute__((aligned(64)));
    __m256 total[WIDE], sums[PAIR][WIDE];
    for (int v = 0; v < WIDE; v++) total[v] = _mm256_setzero_ps();
    for (int64_t g = 0; g < num_groups;) {
        const int groups = num_groups - g >= PAIR ? PAIR : 1;
        ask_for(packed, groups * group_bytes(bits));
        if (groups == PAIR) multiply_groups(call->x + g * GROUP, packed, bits, PAIR, sums);
        else multiply_groups(call->x + g * GROUP, packed, bits, 1, sums);
        for (int one = 0; one < groups; one++, g++, packed += group_bytes(bits))
#pragma GCC unroll 4
            for (int v = 0; v < WIDE; v++)
                total[v] = _mm256_add_ps(total[v], sums[one][v]);
    }
    for (int v = 0; v < WIDE; v++) _mm256_store_ps(totals + v * WIDTH, total[v]);
    put(call, 0, panel, totals);
}

/* ---- several rows ----------------------------------------------------------------------------- */

/* The weights of 32 inputs of a panel's 32 outputs to fp32. */
INLINE void widen_group(const uint8_t *packed, const int bits, float (*to)[SIDE]) {
    const int each = 32 / bits;
    const __m256i *words = (const __m256i *)packed;
    ask_for(packed, group_bytes(bits));
    for (int v = 0; v < WIDE; v++)
        for (int w = 0; w < GROUP / each; w++) {
            const __m256i word = _mm256_loadu_si256(words++);
#pragma GCC unroll 2
            for (int i = 0; i < each; i++)
                _mm256_store_ps(to[i * (GROUP / each) + w] + v * WIDTH, weights_of(word, i, bits));
        }
}

/* One group of `n` rows over half a panel, from output `half` on: totals[n][32] grow. */
INLINE void add_group(const float *x, int64_t stride, float (*w)[SIDE], int64_t half, float totals[][SIDE],
                      const int n) {
    __m256 sums[TOGETHER][2];
#pragma GCC unroll 6
    for (int r = 0; r < n; r++) sums[r][0] = sums[r][1] = _mm256_setzero_ps();
    for (int64_t i = 0; i < GROUP; i++) {
        const __m256 a = _mm256_load_ps(w[i] + half), b = _mm256_load_ps(w[i] + half + WIDTH);
#pragma GCC unroll 6
        for (int r = 0; r < n; r++) {
            const __m256 input = _mm256_broadcast_ss(x + r * stride + i);
            sums[r][0] = _mm256_fmadd_ps(input, a, sums[r][0]);
            sums[r][1] = _mm256_fmadd_ps(input, b, sums[r][1]);
        }
    }
#pragma GCC unroll 2
    for (int v = 0; v < 2; v++)
#pragma GCC unroll 6
        for (int r = 0; r < n; r++) {
            float *total = totals[r] + half + v * WIDTH;
            _mm256_store_ps(total, _mm256_add_ps(_mm256_load_ps(total), sums[r][v]));
        }
}

/* Rows [first, first + rows) over one panel. */
INLINE void multiply_block(const Linear *call, int64_t first, int64_t rows, int64_t panel, const int bits) {
    float wide[CHUNK][SIDE] __attribute__((aligned(64)));
    float totals[ROWS][SIDE] __attribute__((aligned(64)));
    const int64_t num_groups = call->in / GROUP;
    const uint8_t *packed = (const uint8_t *)call->w8 + panel * num_groups * group_bytes(bits);
    memset(totals, 0, sizeof totals[0] * rows);
    for (int64_t from = 0; from < num_groups; from += CHUNK / GROUP) {
        const int64_t groups = num_groups - from < CHUNK / GROUP ? num_groups - from : CHUNK / GROUP;
        for (int64_t g = 0; g < groups; g++, packed += group_bytes(bits))
            widen_group(packed, bits, wide + g * GROUP);
        for (int64_t r = 0; r < rows; r += TOGETHER) {
            const float *x = call->x + (first + r) * call->x_stride + from * GROUP;
            for (int64_t g = 0; g < groups; g++)
                for (int64_t half = 0; half < SIDE; half += SIDE / 2) {
#define ADD(n) add_group(x + g * GROUP, call->x_stride, wide + g * GROUP, half, totals + r, n)
                    FOR_ROWS(rows - r, ADD)
#undef ADD
                }
        }
    }
    for (int64_t r = 0; r < rows; r++) put(call, first + r, panel, totals[r]);
}

/* ---- all rows --------------------------------------------------------------------------------- */

static void times16(const Linear *call, int64_t first, int64_t rows, int64_t panel) {
    if (call->rows == 1) multiply_one(call, panel, 16);
    else multiply_block(call, first, rows, panel, 16);
}

static void times32(const Linear *call, int64_t first, int64_t rows, int64_t panel) {
    if (call->rows == 1) multiply_one(call, panel, 32);
    else multiply_block(call, first, rows, panel, 32);
}

/* Weights of 16 or 32 bits. */
void kdn_whole(const Linear *call, int64_t bits) { multiply_all(call, bits == 16 ? times16 : times32); }
