/* Rows times a matrix of 8-bit integers, with whole sums.
 *
 * A row is scaled to 16-bit integers and cut in two bytes, high (signed) and low: two products of bytes
 * are then as good as bf16 times integer, cost the tile unit what one product in bf16 costs, and read half
 * the weights' bytes.  Layout: as in linear.c, but a tile is [16 input quads][16 outputs][4].
 *
 * Sums are whole numbers, so a row's bits depend on nothing but the row.
 */

#include "linear.h"

#ifdef __AMX_INT8__

#define STEP 64 /* inputs in a tile */

void kdn_pack8(const int8_t *w, int64_t out, int64_t in, int64_t kind, int8_t *packed) {
    for (int64_t p = 0; p < out / SIDE; p++)
        for (int64_t k = 0; k < in; k += STEP)
            for (int64_t half = 0; half < 2; half++) {
                const int64_t first = kind == PLAIN ? p * SIDE + half * 16 : half * (out / 2) + p * 16;
                for (int64_t quad = 0; quad < 16; quad++)
                    for (int64_t c = 0; c < 16; c++, packed += 4)
                        memcpy(packed, w + (first + c) * in + k + 4 * quad, 4);
            }
}

static inline __m512i whole(const bf16 *x, __m512 factor) { return _mm512_cvtps_epi32(_mm512_mul_ps(widen(x), factor)); }

/* One row as bytes: `to` holds 16 rows of a step's high bytes, then 16 of its low ones. Gives the scale. */
static float cut(const bf16 *x, int64_t in, int8_t *to) {
    __m512 peak = _mm512_setzero_ps();
    for (int64_t k = 0; k < in; k += 16) peak = _mm512_max_ps(peak, _mm512_abs_ps(widen(x + k)));
    const float most = _mm512_reduce_max_ps(peak);
    const __m512 factor = _mm512_set1_ps(most > 0 ? 32767.0f / most : 0.0f);
    for (int64_t k = 0; k < in; k += STEP, to += 2 * 16 * STEP)
        for (int64_t i = 0; i < STEP; i += 16) {
            const __m512i number = whole(x + k + i, factor);
            _mm_storeu_si128((__m128i *)(to + i), _mm512_cvtepi32_epi8(_mm512_srai_epi32(number, 8)));
            _mm_storeu_si128((__m128i *)(to + 16 * STEP + i), _mm512_cvtepi32_epi8(number));
        }
    return most / 32767.0f;
}

/* Rows [first, first + 16) as tiles, those that are not there as zeros. */
static void line_up(const Linear *call, int64_t first, int8_t *tiles) {
    if (first + 16 > call->rows) memset(tiles, 0, 2 * 16 * call->in);
    for (int64_t r = first; r < first + 16 && r < call->rows; r++)
        call->row_scale[r] = cut(call->x + r * call->x_stride, call->in, tiles + (r - first) * STEP);
}

/* 16 rows over one panel: sums of high and of low bytes, of its left and of its right half. */
static void multiply(const int8_t *x, const int8_t *w, int64_t in, int32_t sums[4][16][16]) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t k = 0; k < in; k += STEP, x += 2 * 16 * STEP, w += 2 * 16 * STEP) {
        _tile_loadd(4, x, STEP);
        _tile_loadd(6, w, STEP);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(7, w + 16 * STEP, STEP);
        _tile_dpbssd(1, 4, 7);
        _tile_loadd(5, x + 16 * STEP, STEP);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
}

/* high * 256 + low, times the row's scale. */
static void join(const float *row_scale, int64_t rows, int32_t sums[4][16][16], float halves[2][16][16]) {
    for (int64_t r = 0; r < rows; r++)
        for (int half = 0; half < 2; half++) {
            const __m512 high = _mm512_cvtepi32_ps(_mm512_load_si512(sums[half][r]));
            const __m512 low = _mm512_cvtepi32_ps(_mm512_load_si512(sums[2 + half][r]));
            const __m512 sum = _mm512_fmadd_ps(high, _mm512_set1_ps(256.0f), low);
            _mm512_store_ps(halves[half][r], _mm512_mul_ps(sum, _mm512_set1_ps(row_scale[r])));
        }
}

/* Rows [first, stop) over panels [from, to). */
static void block(const Linear *call, int64_t first, int64_t stop, int64_t from, int64_t to) {
    int32_t sums[4][16][16] __attribute__((aligned(64)));
    float halves[2][16][16] __attribute__((aligned(64)));
    const int8_t *tiles = (const int8_t *)call->tiles;
    for (int64_t r = first; r < stop; r += 16)
        for (int64_t p = from; p < to; p++) {
            const int64_t rows = stop - r < 16 ? stop - r : 16;
            multiply(tiles + 2 * r * call->in, call->w8 + p * SIDE * call->in, call->in, sums);
            join(call->row_scale + r, rows, sums, halves);
            put(call, r, rows, p, halves[0], halves[1]);
        }
}

void kdn_linear8(const Linear *call) {
    const int64_t panels = call->out / SIDE, blocks = (call->rows + ROWS - 1) / ROWS;
    const int64_t wanted = (call->rows > SIDE ? 8 : 1) * call->threads;
    const int64_t parts = wanted < panels ? wanted : panels;
#pragma omp parallel num_threads(call->threads)
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < call->rows; r += 16) line_up(call, r, (int8_t *)call->tiles + 2 * r * call->in);
        tiles_on();
#pragma omp for schedule(dynamic, 1) collapse(2)
        for (int64_t b = 0; b < blocks; b++)
            for (int64_t part = 0; part < parts; part++) {
                const int64_t stop = (b + 1) * ROWS < call->rows ? (b + 1) * ROWS : call->rows;
                block(call, b * ROWS, stop, part * panels / parts, (part + 1) * panels / parts);
            }
        _tile_release();
    }
}

#endif
