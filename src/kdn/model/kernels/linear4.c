/* Rows times a matrix of 4- or 8-bit weights q, which stand for scale q + low in every 32 inputs of an output.
 *
 * A weight is a nibble that picks a bf16 out of a table, so that a row is multiplied in bf16 with fp32 sums and the
 * bytes that are read are the packed ones.  8 bits are two nibbles, each with its own table.  `low` is multiplied by
 * the sum of a row's 32 inputs, which is taken once.
 *
 * Layout: 32 outputs at a time ("panels", as in linear.c), and of those, for every 32 inputs, 32 scales and 32 lows in
 * fp16 and, for each half of 16 outputs and each nibble, four vectors.  A vector is 32 words: word 2 c + j holds, for
 * output c, input j of four pairs, a nibble each.
 *
 * A row is summed in the same order whatever rows stand beside it: its bits depend on nothing else.
 */

#include "linear.h"

#define GROUP 32  /* inputs that share a scale */
#define TOGETHER 8 /* rows that share a nibble's way through the table */
#define AHEAD 4096 /* bytes that are asked for ahead of their use */

static inline int64_t group_bytes(int64_t nibbles) { return 4 * SIDE + nibbles * SIDE * GROUP / 2; }

/* `q`[out, in] below 16 (or 256), `scale` and `low`[out, in / 32] in fp16, to panels. */
void kdn_pack4(const uint8_t *q, const uint16_t *scale, const uint16_t *low, int64_t out, int64_t in, int64_t kind,
               int64_t nibbles, uint8_t *packed) {
    for (int64_t p = 0; p < out / SIDE; p++)
        for (int64_t g = 0; g < in / GROUP; g++, packed += group_bytes(nibbles)) {
            uint16_t *scales = (uint16_t *)packed, *lows = scales + SIDE, *words = lows + SIDE;
            for (int64_t half = 0; half < 2; half++) {
                const int64_t first = kind == PLAIN ? p * SIDE + half * 16 : half * (out / 2) + p * 16;
                for (int64_t c = 0; c < 16; c++) {
                    scales[half * 16 + c] = scale[(first + c) * (in / GROUP) + g];
                    lows[half * 16 + c] = low[(first + c) * (in / GROUP) + g];
                }
                for (int64_t nibble = nibbles - 1; nibble >= 0; nibble--)
                    for (int64_t four = 0; four < 4; four++)
                        for (int64_t c = 0; c < 16; c++)
                            for (int64_t j = 0; j < 2; j++) {
                                const uint8_t *from = q + (first + c) * in + g * GROUP + four * 8 + j;
                                uint16_t word = 0;
                                for (int64_t pair = 0; pair < 4; pair++)
                                    word |= (uint16_t)(from[2 * pair] >> 4 * nibble & 15) << 4 * pair;
                                *words++ = word;
                            }
            }
        }
}

/* The bf16 of step n for nibbles n, twice over: the index's fifth bit is another weight's. */
static inline __m512i table(int step) {
    uint16_t entry[32];
    for (int n = 0; n < 32; n++) entry[n] = float_to_bf16((float)(step * (n % 16)));
    return _mm512_loadu_si512(entry);
}

/* The sums of a row's inputs, 32 at a time, to `row_scale`. */
static void add_up(const Linear *call, int64_t row) {
    const bf16 *x = call->x + row * call->x_stride;
    float *sums = call->row_scale + row * (call->in / GROUP);
    for (int64_t g = 0; g < call->in; g += GROUP)
        sums[g / GROUP] = _mm512_reduce_add_ps(_mm512_add_ps(widen(x + g), widen(x + g + 16)));
}

/* One nibble of 32 inputs of 16 outputs, or of both halves of a panel, for `rows` rows, onto their sums. */
static inline __attribute__((always_inline)) void multiply(const bf16 *x, int64_t stride, const uint8_t *vectors,
                                                           int64_t apart, __m512i values, const int rows,
                                                           const int halves, __m512 sums[2][TOGETHER]) {
#pragma GCC unroll 4
    for (int four = 0; four < 4; four++) {
        __m512i words[2];
#pragma GCC unroll 2
        for (int h = 0; h < halves; h++) words[h] = _mm512_loadu_si512(vectors + h * apart + 64 * four);
#pragma GCC unroll 4
        for (int pair = 0; pair < 4; pair++) {
            __m512bh picked[2];
#pragma GCC unroll 2
            for (int h = 0; h < halves; h++)
                picked[h] = (__m512bh)_mm512_permutexvar_epi16(_mm512_srli_epi16(words[h], 4 * pair), values);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                int32_t both;
                memcpy(&both, x + r * stride + four * 8 + 2 * pair, 4);
                const __m512bh inputs = (__m512bh)_mm512_set1_epi32(both);
#pragma GCC unroll 2
                for (int h = 0; h < halves; h++) sums[h][r] = _mm512_dpbf16_ps(sums[h][r], picked[h], inputs);
            }
        }
    }
}

/* `rows` rows over `halves` halves of a panel, the first of which is `half`: sums[halves][rows] of 16 outputs each. */
static inline __attribute__((always_inline)) void walk(const Linear *call, int64_t row, const uint8_t *packed,
                                                       const int half, const int halves, const int rows,
                                                       const int nibbles, float sums[][16][16]) {
    const bf16 *x = call->x + row * call->x_stride;
    const float *inputs = call->row_scale + row * (call->in / GROUP);
    const int64_t in = call->in, stride = call->x_stride, apart = 256 * nibbles;
    __m512 total[2][TOGETHER];
    const __m512i tables[2] = {table(nibbles == 1 ? 1 : 16), table(1)};
    for (int h = 0; h < halves; h++)
        for (int r = 0; r < rows; r++) total[h][r] = _mm512_setzero_ps();
    for (int64_t g = 0; g < in; g += GROUP, packed += group_bytes(nibbles)) {
        __m512 part[2][TOGETHER];
        if (half == 0)
            for (int64_t i = 0; i < group_bytes(nibbles); i += 64)
                _mm_prefetch((const char *)packed + AHEAD + i, _MM_HINT_T0);
        for (int h = 0; h < halves; h++)
            for (int r = 0; r < rows; r++) part[h][r] = _mm512_setzero_ps();
        const uint8_t *vectors = packed + 4 * SIDE + half * apart;
        multiply(x + g, stride, vectors, apart, tables[0], rows, halves, part);
        if (nibbles == 2) multiply(x + g, stride, vectors + 256, apart, tables[1], rows, halves, part);
        for (int h = 0; h < halves; h++) {
            const uint8_t *scales = packed + 32 * (half + h);
            const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)scales));
            const __m512 low = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(scales + 2 * SIDE)));
            for (int r = 0; r < rows; r++) {
                const __m512 input = _mm512_set1_ps(inputs[r * (in / GROUP) + g / GROUP]);
                total[h][r] = _mm512_fmadd_ps(part[h][r], scale, _mm512_fmadd_ps(input, low, total[h][r]));
            }
        }
    }
    for (int h = 0; h < halves; h++)
        for (int r = 0; r < rows; r++) _mm512_store_ps(sums[h][r], total[h][r]);
}

static inline __attribute__((always_inline)) void block(const Linear *call, int64_t first, int64_t stop, int64_t from,
                                                        int64_t to, const int nibbles) {
    float halves[2][16][16] __attribute__((aligned(64)));
    for (int64_t p = from; p < to; p++) {
        const uint8_t *packed = (const uint8_t *)call->w8 + p * (call->in / GROUP) * group_bytes(nibbles);
        for (int64_t r = first; r < stop;) {
            const int64_t left = stop - r, rows = left >= TOGETHER ? TOGETHER : left >= 4 ? 4 : left >= 2 ? 2 : 1;
            if (rows == TOGETHER) {
                walk(call, r, packed, 0, 1, TOGETHER, nibbles, halves);
                walk(call, r, packed, 1, 1, TOGETHER, nibbles, halves + 1);
            } else if (rows == 4) {
                walk(call, r, packed, 0, 2, 4, nibbles, halves);
            } else if (rows == 2) {
                walk(call, r, packed, 0, 2, 2, nibbles, halves);
            } else {
                walk(call, r, packed, 0, 2, 1, nibbles, halves);
            }
            put(call, r, rows, p, halves[0], halves[1]);
            r += rows;
        }
    }
}

static void block4(const Linear *call, int64_t first, int64_t stop, int64_t from, int64_t to) {
    block(call, first, stop, from, to, 1);
}

static void block8(const Linear *call, int64_t first, int64_t stop, int64_t from, int64_t to) {
    block(call, first, stop, from, to, 2);
}

void kdn_linear4(const Linear *call, int64_t nibbles) {
#pragma omp parallel num_threads(call->threads)
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < call->rows; r++) add_up(call, r);
        share_walks(call, 0, nibbles == 1 ? block4 : block8);
    }
}
