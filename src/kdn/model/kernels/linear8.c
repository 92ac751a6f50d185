/* Rows times a matrix of 8-bit integers, with whole sums: by tiles where there is AMX, else by vectors.
 *
 * A row is scaled to 16-bit integers, so that its products with the weights are as good as those in bf16 and half the
 * weights' bytes are read.  Tiles multiply bytes alone: there a row is cut in two, high (signed) and low, which costs
 * what one product in bf16 costs.  Layout: as in linear.c, but a tile is [16 input quads][16 outputs][4], and what a
 * vector takes [2][16 outputs][2 inputs].
 *
 * Sums are whole numbers, so a row's bits depend on nothing but the row.
 */

#include "linear.h"

#define STEP 64      /* inputs in a tile */
#define TOGETHER 12  /* rows whose sums over a panel are kept in registers */
#define WHOLE 512    /* inputs whose products add up to less than 2^31 */
#define AHEAD 4096   /* weights that the first walk over a panel asks for ahead of their use */

/* [out, in] row-major to panels, for tiles with `use_amx`. */
void kdn_pack8(const int8_t *w, int64_t out, int64_t in, int64_t kind, int8_t *packed, int64_t use_amx) {
    const int64_t run = use_amx ? 4 : 2, step = use_amx ? STEP : 2;
    for (int64_t p = 0; p < out / SIDE; p++)
        for (int64_t k = 0; k < in; k += step)
            for (int64_t half = 0; half < 2; half++) {
                const int64_t first = kind == PLAIN ? p * SIDE + half * 16 : half * (out / 2) + p * 16;
                for (int64_t i = k; i < k + step; i += run)
                    for (int64_t c = 0; c < 16; c++, packed += run) memcpy(packed, w + (first + c) * in + i, run);
            }
}

static inline __m512i whole(const bf16 *x, __m512 factor) { return _mm512_cvtps_epi32(_mm512_mul_ps(widen(x), factor)); }

/* The largest of a row's numbers, without their signs. */
static float largest(const bf16 *x, int64_t in) {
    __m512 peak = _mm512_setzero_ps();
    for (int64_t k = 0; k < in; k += 16) peak = _mm512_max_ps(peak, _mm512_abs_ps(widen(x + k)));
    return _mm512_reduce_max_ps(peak);
}

/* sums += products of pairs. GCC 12 copies the sums of the intrinsic at each step, and spills them. */
static inline __attribute__((always_inline)) void add_products(__m512i *sums, __m512i a, __m512i b) {
    __asm__("vpdpwssd %2, %1, %0" : "+v"(*sums) : "v"(a), "v"(b));
}

/* `rows` rows of integers over one panel, which comes from memory when `cold`. */
static inline __attribute__((always_inline)) void multiply_vectors(const int16_t *x, int64_t in, const int8_t *w,
                                                                   const int rows, const int cold,
                                                                   const float *row_scale, float sums[2][16][16]) {
    for (int r = 0; r < rows; r++)
        for (int half = 0; half < 2; half++) _mm512_store_ps(sums[half][r], _mm512_setzero_ps());
    for (int64_t k = 0; k < in; k += WHOLE) {
        const int64_t stop = k + WHOLE < in ? k + WHOLE : in;
        __m512i left[TOGETHER], right[TOGETHER];
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) left[r] = right[r] = _mm512_setzero_si512();
        for (int64_t i = k; i < stop; i += 2, w += 64) {
            if (cold) _mm_prefetch((const char *)(w + AHEAD), _MM_HINT_T0);
            const __m512i a = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)w));
            const __m512i b = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(w + 32)));
#pragma GCC unroll 12
            for (int r = 0; r < rows; r++) {
                int32_t pair;
                memcpy(&pair, x + r * in + i, 4);
                const __m512i both = _mm512_set1_epi32(pair);
                add_products(&left[r], a, both);
                add_products(&right[r], b, both);
            }
        }
#pragma GCC unroll 12
        for (int r = 0; r < rows; r++) {
            _mm512_store_ps(sums[0][r], _mm512_add_ps(_mm512_load_ps(sums[0][r]), _mm512_cvtepi32_ps(left[r])));
            _mm512_store_ps(sums[1][r], _mm512_add_ps(_mm512_load_ps(sums[1][r]), _mm512_cvtepi32_ps(right[r])));
        }
    }
    for (int r = 0; r < rows; r++)
        for (int half = 0; half < 2; half++)
            _mm512_store_ps(sums[half][r],
                            _mm512_mul_ps(_mm512_load_ps(sums[half][r]), _mm512_set1_ps(row_scale[r])));
}

/* A row as 16-bit integers; gives the scale. */
static float as_whole(const bf16 *x, int64_t in, int16_t *to) {
    const float most = largest(x, in);
    const __m512 factor = _mm512_set1_ps(most > 0 ? 32767.0f / most : 0.0f);
    for (int64_t i = 0; i < in; i += 16)
        _mm256_storeu_si256((__m256i *)(to + i), _mm512_cvtepi32_epi16(whole(x + i, factor)));
    return most / 32767.0f;
}

#define WALK(rows)                                                                                   \
    do {                                                                                             \
        if (r == first)                                                                              \
            multiply_vectors(x, call->in, w, rows, 1, call->row_scale + r, sums);                    \
        else                                                                                         \
            multiply_vectors(x, call->in, w, rows, 0, call->row_scale + r, sums);                    \
    } while (0)

/* Rows [first, stop) over panels [from, to), a panel at a time for all rows. */
static void block_of_vectors(const Linear *call, int64_t first, int64_t stop, int64_t from, int64_t to) {
    float sums[2][16][16] __attribute__((aligned(64)));
    for (int64_t p = from; p < to; p++) {
        const int8_t *w = call->w8 + p * SIDE * call->in;
        for (int64_t r = first; r < stop;) {
            const int16_t *x = (const int16_t *)call->tiles + r * call->in;
            const int64_t left = stop - r;
            const int64_t rows = left >= TOGETHER ? TOGETHER : left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
            if (rows == TOGETHER) WALK(TOGETHER);
            else if (rows == 8) WALK(8);
            else if (rows == 4) WALK(4);
            else if (rows == 2) WALK(2);
            else WALK(1);
            put(call, r, rows, p, sums[0], sums[1]);
            r += rows;
        }
    }
}

#ifdef __AMX_INT8__

/* One row as bytes: `to` holds 16 rows of a step's high bytes, then 16 of its low ones. Gives the scale. */
static float cut(const bf16 *x, int64_t in, int8_t *to) {
    const float most = largest(x, in);
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
static void block_of_tiles(const Linear *call, int64_t first, int64_t stop, int64_t from, int64_t to) {
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

#endif

/* Sixteen rows, or those that are left, as integers. */
static void take_up(const Linear *call, int64_t first) {
#ifdef __AMX_INT8__
    if (call->use_amx) {
        line_up(call, first, (int8_t *)call->tiles + 2 * first * call->in);
        return;
    }
#endif
    for (int64_t r = first; r < first + 16 && r < call->rows; r++)
        call->row_scale[r] =
            as_whole(call->x + r * call->x_stride, call->in, (int16_t *)call->tiles + r * call->in);
}

void kdn_linear8(const Linear *call) {
    Walk *walk = block_of_vectors;
#ifdef __AMX_INT8__
    if (call->use_amx) walk = block_of_tiles;
#endif
#pragma omp parallel num_threads(call->threads)
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < call->rows; r += 16) take_up(call, r);
#ifdef __AMX_INT8__
        if (call->use_amx) tiles_on();
#endif
        share_walks(call, 0, walk);
#ifdef __AMX_INT8__
        if (call->use_amx) _tile_release();
#endif
    }
}
