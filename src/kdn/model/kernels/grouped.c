/* Rows in fp32 times a matrix of weights of 4 or 8 bits.
 *
 * A weight q stands for scale q + low, with one scale and one low in every 32 inputs of an output.  A row's 32 inputs
 * are rounded to whole numbers of 16 bits times a step of their own, a 32767th of the largest.  Their products with
 * the q are added up in 32 bits, exactly, so that the order does not matter; then the total grows by that sum times
 * both scales, and by the sum of the inputs times the low.  A row is summed so whatever rows stand beside it.
 *
 * An instruction multiplies two inputs of 8 outputs.  One row meets the q where they lie in their word, and the sums
 * are shifted.  For several rows the q of 32 outputs are widened to 16 bits, in the first-level cache.
 */

#include "panels.h"

void kdn_whole(const Linear *call, int64_t bits);

#define PAIRS (GROUP / 2) /* of a group: inputs j and j + 16, as in a word of weights */
#define LEAST 1e-30f      /* inputs below are zero */
#define CHUNK 2           /* groups that are widened together: they and the sums fit the first-level cache */

/* A group of a row's inputs: numbers of 16 bits times `step`, which add up to `sum`. */
typedef struct {
    float step, sum;
} Group;

typedef struct {
    __m256i q[CHUNK][PAIRS][WIDE];
    __m256 scale[CHUNK][WIDE], low[CHUNK][WIDE];
} Widened;

/* Bytes of a panel's group before its weights, and with them. */
#define SCALE_BYTES (4 * SIDE)
INLINE int64_t group_bytes(int64_t bits) { return SCALE_BYTES + bits * SIDE * GROUP / 8; }

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

INLINE __m256 half_floats(const uint8_t *packed, int v) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)packed + v));
}

/* total + sum scale + inputs low, the inputs' step being one of the two factors of `scale`. */
INLINE __m256 with_group(__m256 total, __m256i sum, __m256 scale, __m256 low, const Group *group) {
    const __m256 both = _mm256_mul_ps(scale, _mm256_broadcast_ss(&group->step));
    const __m256 lowest = _mm256_fmadd_ps(_mm256_broadcast_ss(&group->sum), low, total);
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), both, lowest);
}

/* ---- inputs as whole numbers ------------------------------------------------------------------ */

/* 32 inputs: pair j has input j in its lower half and j + 16 in its upper one. */
INLINE void round_group(const float *x, int32_t pairs[PAIRS], Group *group) {
    const __m256 shown = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256i top = _mm256_setzero_si256(), whole[WIDE], total;
    for (int v = 0; v < WIDE; v++) /* as integers, where what is no number is above all others */
        top = _mm256_max_epi32(top, _mm256_castps_si256(_mm256_and_ps(_mm256_loadu_ps(x + v * WIDTH), shown)));
    top = _mm256_max_epi32(top, _mm256_permute2x128_si256(top, top, 1));
    top = _mm256_max_epi32(top, _mm256_shuffle_epi32(top, 0x4e));
    top = _mm256_max_epi32(top, _mm256_shuffle_epi32(top, 0xb1));
    const float largest = _mm256_cvtss_f32(_mm256_castsi256_ps(top)), inverse = largest < LEAST ? 0 : 32767 / largest;
    for (int v = 0; v < WIDE; v++)
        whole[v] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + v * WIDTH), _mm256_set1_ps(inverse)));
    total = _mm256_add_epi32(_mm256_add_epi32(whole[0], whole[1]), _mm256_add_epi32(whole[2], whole[3]));
    for (int v = 0; v < 2; v++)
        _mm256_storeu_si256((__m256i *)pairs + v,
                            _mm256_blend_epi16(whole[v], _mm256_slli_epi32(whole[v + 2], 16), 0xaa));
    group->step = largest < LEAST ? 0 : largest / 32767;
    group->sum = add_lanes(_mm256_cvtepi32_ps(total)) * group->step;
}

/* ---- one row ---------------------------------------------------------------------------------- */

/* sums[32] += the products of the `place`th weights of all words, which are multiples of its power of two but at the
 * last place. */
INLINE void add_place(const int32_t *pairs, const __m256i *words, const int place, const int bits,
                      __m256i sums[WIDE]) {
    const int last = 16 / bits - 1;
    const __m256i mask = _mm256_set1_epi16((short)(((1 << bits) - 1) << place * bits));
#pragma GCC unroll 1
    for (int w = 0; w < bits; w++) {
        const __m256i input = _mm256_set1_epi32(pairs[place * bits + w]);
#pragma GCC unroll 4
        for (int v = 0; v < WIDE; v++) {
            const __m256i word = _mm256_loadu_si256(words + v * bits + w);
            const __m256i q = place == last ? _mm256_srli_epi16(word, 16 - bits) : _mm256_and_si256(word, mask);
            sums[v] = _mm256_add_epi32(sums[v], _mm256_madd_epi16(q, input));
        }
    }
}

/* One row over one panel. */
INLINE void multiply_one(const Linear *call, int64_t panel, const int bits) {
    const int64_t num_groups = call->in / GROUP;
    const uint8_t *packed = (const uint8_t *)call->w8 + panel * num_groups * group_bytes(bits);
    const int32_t *pairs = (const int32_t *)call->tiles;
    float totals[SIDE] __attribute__((aligned(64)));
    __m256 total[WIDE];
    for (int v = 0; v < WIDE; v++) total[v] = _mm256_setzero_ps();
    for (int64_t g = 0; g < num_groups; g++, packed += group_bytes(bits), pairs += PAIRS) {
        __m256i sums[WIDE];
        ask_for(packed, group_bytes(bits));
#pragma GCC unroll 4
        for (int v = 0; v < WIDE; v++) sums[v] = _mm256_setzero_si256();
#pragma GCC unroll 3
        for (int place = 16 / bits - 2; place >= 0; place--) {
            add_place(pairs, (const __m256i *)(packed + SCALE_BYTES), place, bits, sums);
#pragma GCC unroll 4
            for (int v = 0; v < WIDE && place; v++) sums[v] = _mm256_srai_epi32(sums[v], bits);
        }
        add_place(pairs, (const __m256i *)(packed + SCALE_BYTES), 16 / bits - 1, bits, sums);
#pragma GCC unroll 4
        for (int v = 0; v < WIDE; v++)
            total[v] = with_group(total[v], sums[v], half_floats(packed, v), half_floats(packed + 2 * SIDE, v),
                                  (const Group *)call->row_scale + g);
    }
    for (int v = 0; v < WIDE; v++) _mm256_store_ps(totals + v * WIDTH, total[v]);
    put(call, 0, panel, totals);
}

/* ---- several rows ----------------------------------------------------------------------------- */

/* The q of 32 inputs of a panel's 32 outputs to 16 bits, and their scales and lows. */
INLINE void widen_group(const uint8_t *packed, const int bits, Widened *to, int64_t group) {
    const __m256i *words = (const __m256i *)(packed + SCALE_BYTES), mask = _mm256_set1_epi16((1 << bits) - 1);
    ask_for(packed, group_bytes(bits));
    for (int v = 0; v < WIDE; v++) {
        to->scale[group][v] = half_floats(packed, v);
        to->low[group][v] = half_floats(packed + 2 * SIDE, v);
        for (int w = 0; w < bits; w++) {
            const __m256i word = _mm256_loadu_si256(words++);
#pragma GCC unroll 4
            for (int i = 0; i < 16 / bits; i++)
                to->q[group][i * bits + w][v] = _mm256_and_si256(_mm256_srli_epi16(word, bits * i), mask);
        }
    }
}

/* sums += a pair of inputs times those of 16 outputs.  In C, GCC multiplies for all rows before it adds, and keeps the
 * sums in memory. */
INLINE void add_pair(const int32_t *pair, __m256i a, __m256i b, __m256i sums[2]) {
    __m256i input, product;
    __asm__("vpbroadcastd %4, %2\n\tvpmaddwd %2, %5, %3\n\tvpaddd %3, %0, %0\n\t"
            "vpmaddwd %2, %6, %2\n\tvpaddd %2, %1, %1"
            : "+x"(sums[0]), "+x"(sums[1]), "=&x"(input), "=&x"(product)
            : "m"(*pair), "x"(a), "x"(b));
}

/* One group of `n` rows over half a panel, from vector `half` on: totals[n][32] grow. */
INLINE void add_group(const int32_t *pairs, const Group *inputs, int64_t num_groups, const Widened *w, int64_t group,
                      int64_t half, __m256 totals[][WIDE], const int n) {
    __m256i sums[TOGETHER][2];
#pragma GCC unroll 6
    for (int r = 0; r < n; r++) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 1
    for (int64_t i = 0; i < PAIRS; i++) {
        const __m256i a = w->q[group][i][half], b = w->q[group][i][half + 1];
#pragma GCC unroll 6
        for (int r = 0; r < n; r++) add_pair(pairs + r * num_groups * PAIRS + i, a, b, sums[r]);
    }
#pragma GCC unroll 2
    for (int64_t v = 0; v < 2; v++)
#pragma GCC unroll 6
        for (int r = 0; r < n; r++)
            totals[r][half + v] = with_group(totals[r][half + v], sums[r][v], w->scale[group][half + v],
                                             w->low[group][half + v], inputs + r * num_groups);
}

/* Rows [first, first + rows) over one panel. */
INLINE void multiply_block(const Linear *call, int64_t first, int64_t rows, int64_t panel, const int bits) {
    Widened wide;
    __m256 totals[ROWS][WIDE];
    const int64_t num_groups = call->in / GROUP;
    const uint8_t *packed = (const uint8_t *)call->w8 + panel * num_groups * group_bytes(bits);
    memset(totals, 0, sizeof totals[0] * rows);
    for (int64_t from = 0; from < num_groups; from += CHUNK) {
        const int64_t groups = num_groups - from < CHUNK ? num_groups - from : CHUNK;
        for (int64_t g = 0; g < groups; g++, packed += group_bytes(bits)) widen_group(packed, bits, &wide, g);
        for (int64_t r = 0; r < rows; r += TOGETHER)
            for (int64_t g = 0; g < groups; g++) {
                const int64_t at = (first + r) * num_groups + from + g;
                const Group *inputs = (const Group *)call->row_scale + at;
                const int32_t *pairs = (const int32_t *)call->tiles + at * PAIRS;
                for (int64_t half = 0; half < WIDE; half += 2) {
#define ADD(n) add_group(pairs, inputs, num_groups, &wide, g, half, totals + r, n)
                    FOR_ROWS(rows - r, ADD)
#undef ADD
                }
            }
    }
    for (int64_t r = 0; r < rows; r++) put(call, first + r, panel, (const float *)totals[r]);
}

/* ---- all rows --------------------------------------------------------------------------------- */

static void round_rows(const Linear *call) {
    const int64_t num_groups = call->in / GROUP;
#pragma omp parallel for num_threads(call->threads) if (call->rows > 32)
    for (int64_t r = 0; r < call->rows; r++)
        for (int64_t g = 0; g < num_groups; g++)
            round_group(call->x + r * call->x_stride + g * GROUP,
                        (int32_t *)call->tiles + (r * num_groups + g) * PAIRS,
                        (Group *)call->row_scale + r * num_groups + g);
}

static void times4(const Linear *call, int64_t first, int64_t rows, int64_t panel) {
    if (call->rows == 1) multiply_one(call, panel, 4);
    else multiply_block(call, first, rows, panel, 4);
}

static void times8(const Linear *call, int64_t first, int64_t rows, int64_t panel) {
    if (call->rows == 1) multiply_one(call, panel, 8);
    else multiply_block(call, first, rows, panel, 8);
}

/* Weights of 4 bits times `nibbles`. Of less than 16 bits `tiles` has room for the rows, and `row_scale` for two numbers
 * of every row's groups. */
void kdn_linear4(const Linear *call, int64_t nibbles) {
    if (nibbles > 2) {
        kdn_whole(call, 4 * nibbles);
        return;
    }
    round_rows(call);
    multiply_all(call, nibbles == 1 ? times4 : times8);
}
