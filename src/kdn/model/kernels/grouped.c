/* Rows in fp32 times a matrix of 4- or 8-bit weights, for processors that have AVX2 and no bf16.
 *
 * A weight q stands for scale q + low, with one scale and one low in every 32 inputs of an output.  Some inputs of 32
 * outputs at a time are widened to fp32, in the first-level cache, and multiply all rows of a block there.
 *
 * Layout: 32 outputs at a time ("panels"), and of those, for every 32 inputs, 32 scales and 32 lows in fp16, then for
 * each 8 outputs 4 vectors of 8 words (8 vectors of 8-bit weights).  A word has an output's next 8 (or 4) inputs, the
 * first in its lowest bits.
 *
 * A row is summed input by input, whatever rows stand beside it: its bits depend on nothing else.
 */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define SIDE 32     /* outputs of a panel */
#define LANES 8     /* outputs of a vector */
#define WIDE 4      /* vectors of a panel */
#define GROUP 32    /* inputs that share a scale */
#define CHUNK 64    /* inputs that are widened together: they and the sums fit the first-level cache */
#define ROWS 96     /* rows of a block */
#define TOGETHER 3  /* rows whose sums are in registers together */
#define AHEAD 2048  /* bytes that are asked for ahead of their use */

typedef struct {
    const float *x, *bias; /* bias: of every output, or null */
    const uint8_t *packed;
    float *y;
    int64_t rows, in, out, bits, threads; /* x and y have no gaps between rows */
} Grouped;

static inline int64_t group_bytes(int64_t bits) { return 4 * SIDE + bits * SIDE * GROUP / 8; }

/* `q`[out, in] below 2^bits, `scale` and `low`[out, in / 32] in fp16, to panels. */
void kdn_pack_grouped(const uint8_t *q, const uint16_t *scale, const uint16_t *low, int64_t out, int64_t in,
                      int64_t bits, uint8_t *packed) {
    const int64_t groups = in / GROUP, each = 32 / bits;
    for (int64_t p = 0; p < out / SIDE; p++)
        for (int64_t g = 0; g < groups; g++, packed += group_bytes(bits)) {
            uint16_t *scales = (uint16_t *)packed, *lows = scales + SIDE;
            uint32_t *words = (uint32_t *)(lows + SIDE);
            for (int64_t c = 0; c < SIDE; c++) {
                const int64_t output = p * SIDE + c;
                scales[c] = scale[output * groups + g];
                lows[c] = low[output * groups + g];
                for (int64_t w = 0; w < GROUP / each; w++) {
                    uint32_t word = 0;
                    for (int64_t i = 0; i < each; i++)
                        word |= (uint32_t)q[output * in + g * GROUP + w * each + i] << bits * i;
                    words[(c / LANES * (GROUP / each) + w) * LANES + c % LANES] = word;
                }
            }
        }
}

/* 32 inputs of a panel's 32 outputs to fp32: wide[input][output]. */
static inline __attribute__((always_inline)) void widen_group(const uint8_t *packed, const int bits,
                                                              float wide[][SIDE]) {
    const int each = 32 / bits;
    const __m256i low_bits = _mm256_set1_epi32((1 << bits) - 1);
    const __m256i *words = (const __m256i *)(packed + 4 * SIDE);
    for (int i = 0; i < 4 * SIDE + bits * SIDE * GROUP / 8; i += 64)
        _mm_prefetch((const char *)packed + AHEAD + i, _MM_HINT_T0);
    for (int v = 0; v < WIDE; v++) {
        const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)packed + v));
        const __m256 low = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(packed + 2 * SIDE) + v));
        for (int w = 0; w < GROUP / each; w++) {
            const __m256i word = _mm256_loadu_si256(words++);
#pragma GCC unroll 8
            for (int i = 0; i < each; i++) {
                const __m256i q = _mm256_and_si256(_mm256_srli_epi32(word, bits * i), low_bits);
                _mm256_store_ps(wide[w * each + i] + v * LANES, _mm256_fmadd_ps(_mm256_cvtepi32_ps(q), scale, low));
            }
        }
    }
}

/* sums[n][32] += x[n][inputs] wide[inputs][32]. */
static inline __attribute__((always_inline)) void add_products(const float *x, int64_t stride, int64_t inputs,
                                                               const float wide[][SIDE], float sums[][SIDE],
                                                               const int n) {
    __m256 total[TOGETHER][WIDE];
#pragma GCC unroll 3
    for (int r = 0; r < n; r++)
#pragma GCC unroll 4
        for (int v = 0; v < WIDE; v++) total[r][v] = _mm256_load_ps(sums[r] + v * LANES);
    for (int64_t i = 0; i < inputs; i++)
#pragma GCC unroll 3
        for (int r = 0; r < n; r++) {
            const __m256 input = _mm256_broadcast_ss(x + r * stride + i);
#pragma GCC unroll 4
            for (int v = 0; v < WIDE; v++)
                total[r][v] = _mm256_fmadd_ps(input, _mm256_load_ps(wide[i] + v * LANES), total[r][v]);
        }
#pragma GCC unroll 3
    for (int r = 0; r < n; r++)
#pragma GCC unroll 4
        for (int v = 0; v < WIDE; v++) _mm256_store_ps(sums[r] + v * LANES, total[r][v]);
}

/* As widening and adding, of a whole matrix's width, without a way through memory: what one row takes. */
static inline __attribute__((always_inline)) void multiply_one(const Grouped *call, int64_t row, int64_t panel,
                                                               const int bits) {
    const int each = 32 / bits, words = GROUP / each;
    const __m256i low_bits = _mm256_set1_epi32((1 << bits) - 1);
    const uint8_t *packed = call->packed + panel * (call->in / GROUP) * group_bytes(bits);
    const float *x = call->x + row * call->in;
    __m256 total[WIDE], scale[WIDE], low[WIDE];
    for (int v = 0; v < WIDE; v++)
        total[v] = call->bias ? _mm256_loadu_ps(call->bias + panel * SIDE + v * LANES) : _mm256_setzero_ps();
    for (int64_t g = 0; g < call->in; g += GROUP, packed += group_bytes(bits)) {
        const __m256i *word = (const __m256i *)(packed + 4 * SIDE);
        for (int i = 0; i < 4 * SIDE + bits * SIDE * GROUP / 8; i += 64)
            _mm_prefetch((const char *)packed + AHEAD + i, _MM_HINT_T0);
#pragma GCC unroll 4
        for (int v = 0; v < WIDE; v++) {
            scale[v] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)packed + v));
            low[v] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(packed + 2 * SIDE) + v));
        }
        for (int w = 0; w < words; w++)
#pragma GCC unroll 8
            for (int i = 0; i < each; i++) {
                const __m256 input = _mm256_broadcast_ss(x + g + w * each + i);
#pragma GCC unroll 4
                for (int v = 0; v < WIDE; v++) {
                    const __m256i two = _mm256_srli_epi32(_mm256_loadu_si256(word + v * words + w), bits * i);
                    const __m256 q = _mm256_cvtepi32_ps(_mm256_and_si256(two, low_bits));
                    total[v] = _mm256_fmadd_ps(input, _mm256_fmadd_ps(q, scale[v], low[v]), total[v]);
                }
            }
    }
    for (int v = 0; v < WIDE; v++) _mm256_storeu_ps(call->y + row * call->out + panel * SIDE + v * LANES, total[v]);
}

/* Rows [first, first + rows) over one panel. */
static inline __attribute__((always_inline)) void multiply_block(const Grouped *call, int64_t first, int64_t rows,
                                                                 int64_t panel, const int bits) {
    float wide[CHUNK][SIDE] __attribute__((aligned(64))), sums[ROWS][SIDE] __attribute__((aligned(64)));
    const uint8_t *packed = call->packed + panel * (call->in / GROUP) * group_bytes(bits);
    const float *x = call->x + first * call->in;
    for (int64_t r = 0; r < rows; r++)
        if (call->bias) memcpy(sums[r], call->bias + panel * SIDE, sizeof sums[r]);
        else memset(sums[r], 0, sizeof sums[r]);
    for (int64_t from = 0; from < call->in; from += CHUNK) {
        const int64_t inputs = call->in - from < CHUNK ? call->in - from : CHUNK;
        for (int64_t i = 0; i < inputs; i += GROUP, packed += group_bytes(bits)) widen_group(packed, bits, wide + i);
        int64_t r = 0;
        for (; r + TOGETHER <= rows; r += TOGETHER)
            add_products(x + r * call->in + from, call->in, inputs, wide, sums + r, TOGETHER);
        if (rows - r == 2) add_products(x + r * call->in + from, call->in, inputs, wide, sums + r, 2);
        else if (rows - r == 1) add_products(x + r * call->in + from, call->in, inputs, wide, sums + r, 1);
    }
    for (int64_t r = 0; r < rows; r++)
        memcpy(call->y + (first + r) * call->out + panel * SIDE, sums[r], sizeof sums[r]);
}

void kdn_multiply_grouped(const Grouped *call) {
    const int64_t panels = call->out / SIDE, blocks = (call->rows + ROWS - 1) / ROWS;
#pragma omp parallel for num_threads(call->threads) schedule(dynamic, 4) collapse(2)
    for (int64_t b = 0; b < blocks; b++)
        for (int64_t p = 0; p < panels; p++) {
            const int64_t left = call->rows - b * ROWS, rows = left < ROWS ? left : ROWS;
            if (rows == 1 && call->bits == 4) multiply_one(call, b * ROWS, p, 4);
            else if (rows == 1) multiply_one(call, b * ROWS, p, 8);
            else if (call->bits == 4) multiply_block(call, b * ROWS, rows, p, 4);
            else multiply_block(call, b * ROWS, rows, p, 8);
        }
}
