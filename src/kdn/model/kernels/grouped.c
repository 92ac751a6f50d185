/* Rows in fp32 times a matrix of weights of 4, 8, 16 or 32 bits, for processors that have AVX2 and no bf16.
 *
 * A weight q of 4 or 8 bits stands for scale q + low, with one scale and one low in every 32 inputs of an output; one
 * of 16 bits is a bf16.  The products of a row's 32 inputs and the q are added up first, input by input; then the
 * total grows by that sum times the scale, and by the sum of the inputs times the low.  A row is summed so whatever
 * rows stand beside it.
 *
 * One row is multiplied by the q where they lie in their word: an input is divided by the place's power of two before,
 * which rounds nothing.  For several rows the q of 32 outputs are widened to fp32, in the first-level cache.
 *
 * Layout: 32 outputs at a time ("panels"), and of those, for every 32 inputs, 32 scales and 32 lows in fp16 (of 4 and
 * 8 bits), then for each 8 outputs as many vectors of 8 words as weights have bits.  Word w of an output's n words
 * has inputs w, w + n, w + 2 n, ..., the first in its lowest bits.
 */

#include "floats.h"
#include "real.h"

#define WIDE 4     /* vectors of a panel */
#define GROUP 32   /* inputs that share a scale */
#define PAIR 2     /* groups that one row is multiplied by together: enough sums that none is waited for */
#define CHUNK 64   /* inputs that are widened together: they and the sums fit the first-level cache */
#define ROWS 96    /* rows of a block */
#define TOGETHER 6 /* rows whose sums are in registers together, half a panel's */
#define AHEAD 2048 /* bytes that are asked for ahead of their use */

#define INLINE static inline __attribute__((always_inline))

typedef struct {
    float q[CHUNK][SIDE], scale[CHUNK / GROUP][SIDE], low[CHUNK / GROUP][SIDE];
} Widened;

/* Bytes of a panel's group before its weights, and with them. */
INLINE int64_t scale_bytes(int64_t bits) { return bits <= 8 ? 4 * SIDE : 0; }
INLINE int64_t group_bytes(int64_t bits) { return scale_bytes(bits) + bits * SIDE * GROUP / 8; }

/* The output that column `c` of panel `p` is. */
INLINE int64_t output_of(int64_t p, int64_t c, int64_t out, int64_t kind) {
    return kind == PLAIN ? p * SIDE + c : c / 16 * (out / 2) + p * 16 + c % 16;
}

/* `q`[out, in] below 2^(4 nibbles), `scale` and `low`[out, in / 32] in fp16, to panels. */
void kdn_pack4(const uint8_t *q, const uint16_t *scale, const uint16_t *low, int64_t out, int64_t in, int64_t kind,
               int64_t nibbles, uint8_t *packed) {
    const int64_t groups = in / GROUP, bits = 4 * nibbles, each = 32 / bits;
    for (int64_t p = 0; p < out / SIDE; p++)
        for (int64_t g = 0; g < groups; g++, packed += group_bytes(bits)) {
            uint16_t *scales = (uint16_t *)packed, *lows = scales + SIDE;
            uint32_t *words = (uint32_t *)(lows + SIDE);
            for (int64_t c = 0; c < SIDE; c++) {
                const int64_t output = output_of(p, c, out, kind);
                scales[c] = scale[output * groups + g];
                lows[c] = low[output * groups + g];
                for (int64_t w = 0; w < GROUP / each; w++) {
                    uint32_t word = 0;
                    for (int64_t i = 0; i < each; i++)
                        word |= (uint32_t)q[output * in + g * GROUP + i * (GROUP / each) + w] << bits * i;
                    words[(c / WIDTH * (GROUP / each) + w) * WIDTH + c % WIDTH] = word;
                }
            }
        }
}

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

INLINE __m256 half_floats(const uint8_t *packed, int v) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)packed + v));
}

INLINE void ask_for(const uint8_t *packed, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) _mm_prefetch((const char *)packed + AHEAD + i, _MM_HINT_T0);
}

/* total + sum scale + inputs low: how the sums of 32 inputs go into a row's. */
INLINE __m256 with_group(__m256 total, __m256 sum, __m256 scale, __m256 inputs, __m256 low) {
    return _mm256_fmadd_ps(sum, scale, _mm256_fmadd_ps(inputs, low, total));
}

/* The `i`th input's weights of 8 outputs out of their word, in fp32: `in_place` with the power of two of its place. */
INLINE __m256 weights_of(__m256i word, const int i, const int bits, const int in_place) {
    if (bits == 32) return _mm256_castsi256_ps(word);
    if (bits == 16)
        return _mm256_castsi256_ps(i ? _mm256_and_si256(word, _mm256_set1_epi32((int)0xffff0000u))
                                     : _mm256_slli_epi32(word, 16));
    const uint32_t some = (1u << bits) - 1;
    if (bits * (i + 1) == 32) return _mm256_cvtepi32_ps(_mm256_srli_epi32(word, 32 - bits));
    if (in_place) return _mm256_cvtepi32_ps(_mm256_and_si256(word, _mm256_set1_epi32((int)(some << bits * i))));
    return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(word, bits * i), _mm256_set1_epi32((int)some)));
}

/* ---- where the totals go ---------------------------------------------------------------------- */

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

/* ---- one row ---------------------------------------------------------------------------------- */

/* Inputs divided by the power of two with which their q come out of a word. */
static void divide_by_place(const float *x, int64_t in, int64_t bits, float *divided) {
    const int64_t each = 32 / bits;
    float by[8];
    for (int64_t i = 0; i < each; i++) by[i] = bits <= 8 && i + 1 < each ? 1.0f / (float)(1 << bits * i) : 1.0f;
    for (int64_t i = 0; i < in; i++) divided[i] = x[i] * by[i % GROUP / (GROUP / each)];
}

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
                const __m256i *word = (const __m256i *)(packed + g * group_bytes(bits) + scale_bytes(bits)) + w;
                const __m256 input = _mm256_broadcast_ss(x + g * GROUP + i * words + w);
#pragma GCC unroll 4
                for (int v = 0; v < WIDE; v++) {
                    const __m256 q = weights_of(_mm256_loadu_si256(word + v * words), i, bits, 1);
                    sums[g][v] = _mm256_fmadd_ps(input, q, sums[g][v]);
                }
            }
        }
}

/* One row over one panel; `divided` are its inputs, `inputs` the sums of them by group. */
INLINE void multiply_one(const Linear *call, const float *divided, const float *inputs, int64_t panel,
                         const int bits) {
    const int64_t num_groups = call->in / GROUP;
    const uint8_t *packed = (const uint8_t *)call->w8 + panel * num_groups * group_bytes(bits);
    float totals[SIDE] __attribute__((aligned(64)));
    __m256 total[WIDE], sums[PAIR][WIDE];
    for (int v = 0; v < WIDE; v++) total[v] = _mm256_setzero_ps();
    for (int64_t g = 0; g < num_groups;) {
        const int groups = num_groups - g >= PAIR ? PAIR : 1;
        ask_for(packed, groups * group_bytes(bits));
        if (groups == PAIR) multiply_groups(divided + g * GROUP, packed, bits, PAIR, sums);
        else multiply_groups(divided + g * GROUP, packed, bits, 1, sums);
        for (int one = 0; one < groups; one++, g++, packed += group_bytes(bits))
#pragma GCC unroll 4
            for (int v = 0; v < WIDE; v++)
                total[v] = bits > 8 ? _mm256_add_ps(total[v], sums[one][v])
                                    : with_group(total[v], sums[one][v], half_floats(packed, v),
                                                 _mm256_broadcast_ss(inputs + g),
                                                 half_floats(packed + 2 * SIDE, v));
    }
    for (int v = 0; v < WIDE; v++) _mm256_store_ps(totals + v * WIDTH, total[v]);
    put(call, 0, panel, totals);
}

/* ---- several rows ----------------------------------------------------------------------------- */

/* The q of 32 inputs of a panel's 32 outputs to fp32, and their scales and lows. */
INLINE void widen_group(const uint8_t *packed, const int bits, Widened *to, int64_t group) {
    const int each = 32 / bits;
    const __m256i *words = (const __m256i *)(packed + scale_bytes(bits));
    float(*q)[SIDE] = to->q + group * GROUP;
    ask_for(packed, group_bytes(bits));
    for (int v = 0; v < WIDE; v++) {
        if (bits <= 8) {
            _mm256_store_ps(to->scale[group] + v * WIDTH, half_floats(packed, v));
            _mm256_store_ps(to->low[group] + v * WIDTH, half_floats(packed + 2 * SIDE, v));
        }
        for (int w = 0; w < GROUP / each; w++) {
            const __m256i word = _mm256_loadu_si256(words++);
#pragma GCC unroll 8
            for (int i = 0; i < each; i++)
                _mm256_store_ps(q[i * (GROUP / each) + w] + v * WIDTH, weights_of(word, i, bits, 0));
        }
    }
}

/* One group of `n` rows over half a panel, from output `half` on: totals[n][32] grow. */
INLINE void add_group(const float *x, int64_t stride, const float *inputs, int64_t input_stride, const Widened *w,
                      int64_t group, int64_t half, float totals[][SIDE], const int n, const int bits) {
    const float(*q)[SIDE] = w->q + group * GROUP;
    __m256 sums[TOGETHER][2];
#pragma GCC unroll 6
    for (int r = 0; r < n; r++) sums[r][0] = sums[r][1] = _mm256_setzero_ps();
    for (int64_t i = 0; i < GROUP; i++) {
        const __m256 a = _mm256_load_ps(q[i] + half), b = _mm256_load_ps(q[i] + half + WIDTH);
#pragma GCC unroll 6
        for (int r = 0; r < n; r++) {
            const __m256 input = _mm256_broadcast_ss(x + r * stride + i);
            sums[r][0] = _mm256_fmadd_ps(input, a, sums[r][0]);
            sums[r][1] = _mm256_fmadd_ps(input, b, sums[r][1]);
        }
    }
#pragma GCC unroll 2
    for (int v = 0; v < 2; v++) {
        const int64_t at = half + v * WIDTH;
        const __m256 scale = bits > 8 ? _mm256_setzero_ps() : _mm256_load_ps(w->scale[group] + at);
        const __m256 low = bits > 8 ? _mm256_setzero_ps() : _mm256_load_ps(w->low[group] + at);
#pragma GCC unroll 6
        for (int r = 0; r < n; r++) {
            const __m256 total = _mm256_load_ps(totals[r] + at);
            const __m256 input = bits > 8 ? _mm256_setzero_ps() : _mm256_broadcast_ss(inputs + r * input_stride);
            _mm256_store_ps(totals[r] + at, bits > 8 ? _mm256_add_ps(total, sums[r][v])
                                                     : with_group(total, sums[r][v], scale, input, low));
        }
    }
}

/* Rows [first, first + rows) over one panel. */
INLINE void multiply_block(const Linear *call, int64_t first, int64_t rows, int64_t panel, const int bits) {
    Widened wide __attribute__((aligned(64)));
    float totals[ROWS][SIDE] __attribute__((aligned(64)));
    const int64_t num_groups = call->in / GROUP;
    const uint8_t *packed = (const uint8_t *)call->w8 + panel * num_groups * group_bytes(bits);
    memset(totals, 0, sizeof totals[0] * rows);
    for (int64_t from = 0; from < num_groups; from += CHUNK / GROUP) {
        const int64_t groups = num_groups - from < CHUNK / GROUP ? num_groups - from : CHUNK / GROUP;
        for (int64_t g = 0; g < groups; g++, packed += group_bytes(bits)) widen_group(packed, bits, &wide, g);
        for (int64_t r = 0; r < rows; r += TOGETHER) {
            const float *x = call->x + (first + r) * call->x_stride + from * GROUP;
            const float *inputs = call->row_scale + (first + r) * num_groups + from;
            for (int64_t g = 0; g < groups; g++)
                for (int64_t half = 0; half < SIDE; half += SIDE / 2) {
#define ADD(n) add_group(x + g * GROUP, call->x_stride, inputs + g, num_groups, &wide, g, half, totals + r, n, bits)
                    switch (rows - r) {
                    case 1: ADD(1); break;
                    case 2: ADD(2); break;
                    case 3: ADD(3); break;
                    case 4: ADD(4); break;
                    case 5: ADD(5); break;
                    default: ADD(TOGETHER);
                    }
#undef ADD
                }
        }
    }
    for (int64_t r = 0; r < rows; r++) put(call, first + r, panel, totals[r]);
}

/* ---- all rows --------------------------------------------------------------------------------- */

/* The sums of a row's inputs, 32 at a time, to `row_scale`. */
static void add_up(const Linear *call, int64_t row) {
    const float *x = call->x + row * call->x_stride;
    float *sums = call->row_scale + row * (call->in / GROUP);
    for (int64_t g = 0; g < call->in; g += GROUP) {
        const __m256 a = _mm256_add_ps(_mm256_loadu_ps(x + g), _mm256_loadu_ps(x + g + 8));
        const __m256 b = _mm256_add_ps(_mm256_loadu_ps(x + g + 16), _mm256_loadu_ps(x + g + 24));
        sums[g / GROUP] = add_lanes(_mm256_add_ps(a, b));
    }
}

static void multiply_row(const Linear *call, int64_t bits) {
    float divided[call->in];
    divide_by_place(call->x, call->in, bits, divided);
#pragma omp parallel for num_threads(call->threads) schedule(dynamic, 4)
    for (int64_t p = 0; p < call->out / SIDE; p++) switch (bits) {
        case 4: multiply_one(call, divided, call->row_scale, p, 4); break;
        case 8: multiply_one(call, divided, call->row_scale, p, 8); break;
        case 16: multiply_one(call, divided, call->row_scale, p, 16); break;
        default: multiply_one(call, divided, call->row_scale, p, 32);
        }
}

/* Weights of 4 bits times `nibbles`. `row_scale` has room for the sums of every row's groups. */
void kdn_linear4(const Linear *call, int64_t nibbles) {
    const int64_t panels = call->out / SIDE, blocks = (call->rows + ROWS - 1) / ROWS, bits = 4 * nibbles;
    if (bits <= 8)
        for (int64_t r = 0; r < call->rows; r++) add_up(call, r);
    if (call->rows == 1) {
        multiply_row(call, bits);
        return;
    }
#pragma omp parallel for num_threads(call->threads) schedule(dynamic, 4) collapse(2)
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t p = 0; p < panels; p++) {
            const int64_t first = b * ROWS, left = call->rows - first, rows = left < ROWS ? left : ROWS;
            switch (bits) {
            case 4: multiply_block(call, first, rows, p, 4); break;
            case 8: multiply_block(call, first, rows, p, 8); break;
            case 16: multiply_block(call, first, rows, p, 16); break;
            default: multiply_block(call, first, rows, p, 32);
            }
        }
}
