/* Rows times a matrix that was laid out once, in bf16 with fp32 sums: by tiles where there is AMX, else by vectors.
 *
 * Layout ("panels"): 32 output columns at a time, and of those, for every 32 inputs, two tiles of
 * [16 input pairs][16 outputs][2], one after the other.  So a panel is read from front to back, which is
 * all that a single row needs, and each tile, or each pair of inputs for a vector, is an operand as it lies.
 *
 * A row is summed in the same order whatever rows stand beside it: its bits depend on nothing else.
 */

#include "linear.h"

#define PART (512 << 10) /* two threads' parts and their rows fit a second-level cache of 2 MiB */
#define TOGETHER 12      /* rows whose sums over a panel are kept in registers */
#define AHEAD 4096       /* weights that the first walk over a panel asks for ahead of their use: 8 KiB */

/* [out, in] row-major to panels. For PAIRED and GATED the matrix is the gate on top of the up projection. */
void kdn_pack(const bf16 *w, int64_t out, int64_t in, int64_t kind, bf16 *packed) {
    for (int64_t p = 0; p < out / SIDE; p++)
        for (int64_t k = 0; k < in / 32; k++)
            for (int64_t half = 0; half < 2; half++) {
                const int64_t first = kind == PLAIN ? p * SIDE + half * 16 : half * (out / 2) + p * 16;
                for (int64_t pair = 0; pair < 16; pair++)
                    for (int64_t c = 0; c < 16; c++, packed += 2)
                        memcpy(packed, w + (first + c) * in + k * 32 + 2 * pair, 4);
            }
}

#ifdef __AMX_BF16__

/* Rows [first, first + 32) as tiles, one after the other in the order of their use: [in / 32][2][16][32].
 * Rows that are not there are zero. */
static void line_up(const Linear *call, int64_t first, bf16 *tiles) {
    for (int64_t k = 0; k < call->in; k += 32)
        for (int64_t r = first; r < first + SIDE; r++, tiles += 32) {
            if (r < call->rows)
                memcpy(tiles, call->x + r * call->x_stride + k, 64);
            else
                memset(tiles, 0, 64);
        }
}

/* Two tiles of a panel on their way to the second-level cache. */
static inline void fetch(const bf16 *w) {
    for (int i = 0; i < 1024; i += 32) _mm_prefetch((const char *)(w + i), _MM_HINT_T1);
}

/* 32 rows (or 16, when `few`) over one panel. Both are read from front to back. `next` is a panel to fetch
 * meanwhile, or null. */
static void multiply_tiles(const bf16 *x, const bf16 *w, int64_t in, int few, const bf16 *next, float sums[4][16][16]) {
    _tile_zero(0);
    _tile_zero(1);
    if (few) {
        for (int64_t k = 0; k < in; k += 32, x += 1024, w += 1024) {
            _tile_loadd(4, x, 64);
            _tile_loadd(6, w, 64);
            _tile_loadd(7, w + 512, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_dpbf16ps(1, 4, 7);
        }
    } else {
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t k = 0; k < in; k += 32, x += 1024, w += 1024) {
            if (next) fetch(next + k * SIDE);
            _tile_loadd(4, x, 64);
            _tile_loadd(6, w, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, w + 512, 64);
            _tile_dpbf16ps(1, 4, 7);
            _tile_loadd(5, x + 512, 64);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(2, sums[2], 64);
        _tile_stored(3, sums[3], 64);
    }
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
}

/* Rows [first, stop) over panels [from, to). The first walk over the panels waits for memory, and asks
 * for the next one ahead of time. */
static void block_of_tiles(const Linear *call, int64_t first, int64_t stop, int64_t from, int64_t to) {
    float sums[4][16][16] __attribute__((aligned(64)));
    for (int64_t r = first; r < stop; r += SIDE)
        for (int64_t p = from; p < to; p++) {
            const int64_t rows = stop - r < SIDE ? stop - r : SIDE;
            const bf16 *w = call->w + p * SIDE * call->in;
            const bf16 *next = r == first && p + 1 < to ? w + SIDE * call->in : 0;
            multiply_tiles(call->tiles + r * call->in, w, call->in, rows <= 16, next, sums);
            put(call, r, rows < 16 ? rows : 16, p, sums[0], sums[1]);
            if (rows > 16) put(call, r + 16, rows - 16, p, sums[2], sums[3]);
        }
}

#endif

/* `rows` rows over one panel, which comes from memory when `cold`. */
static inline __attribute__((always_inline)) void multiply(const bf16 *x, int64_t stride, const bf16 *w, int64_t in,
                                                           const int rows, const int cold, float sums[2][16][16]) {
    __m512 left[TOGETHER], right[TOGETHER];
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) left[r] = right[r] = _mm512_setzero_ps();
    for (int64_t k = 0; k < in; k += 32, w += 512)
        for (int64_t i = k; i < k + 32; i += 2, w += 32) {
            if (cold) {
                _mm_prefetch((const char *)(w + AHEAD), _MM_HINT_T0);
                _mm_prefetch((const char *)(w + AHEAD + 512), _MM_HINT_T0);
            }
            const __m512bh a = (__m512bh)_mm512_loadu_si512(w), b = (__m512bh)_mm512_loadu_si512(w + 512);
#pragma GCC unroll 12
            for (int r = 0; r < rows; r++) {
                int32_t pair;
                memcpy(&pair, x + r * stride + i, 4);
                const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
                left[r] = _mm512_dpbf16_ps(left[r], a, both);
                right[r] = _mm512_dpbf16_ps(right[r], b, both);
            }
        }
#pragma GCC unroll 12
    for (int r = 0; r < rows; r++) {
        _mm512_store_ps(sums[0][r], left[r]);
        _mm512_store_ps(sums[1][r], right[r]);
    }
}

#define WALK(rows)                                                     \
    do {                                                               \
        if (r == first)                                                \
            multiply(x, call->x_stride, w, call->in, rows, 1, sums);   \
        else                                                           \
            multiply(x, call->x_stride, w, call->in, rows, 0, sums);   \
    } while (0)

/* As block_of_tiles, but a panel at a time for all rows: after the first ones it comes from a near cache. */
static void block_of_vectors(const Linear *call, int64_t first, int64_t stop, int64_t from, int64_t to) {
    float sums[2][16][16] __attribute__((aligned(64)));
    for (int64_t p = from; p < to; p++) {
        const bf16 *w = call->w + p * SIDE * call->in;
        for (int64_t r = first; r < stop;) {
            const bf16 *x = call->x + r * call->x_stride;
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

void kdn_linear(const Linear *call) {
    const int64_t fitting = (2 * call->out * call->in + PART - 1) / PART; /* parts of at most PART bytes */
    Walk *walk = block_of_vectors;
#ifdef __AMX_BF16__
    if (call->use_amx) walk = block_of_tiles;
#endif
#pragma omp parallel num_threads(call->threads)
    {
#ifdef __AMX_BF16__
        if (call->use_amx) {
#pragma omp for schedule(static)
            for (int64_t r = 0; r < call->rows; r += SIDE) line_up(call, r, call->tiles + r * call->in);
            tiles_on();
        }
#endif
        share_walks(call, fitting, walk);
#ifdef __AMX_BF16__
        if (call->use_amx) _tile_release();
#endif
    }
}
