/* Rows times a matrix that was laid out once for AMX, in bf16 with fp32 sums.
 *
 * Layout ("panels"): 32 output columns at a time, and of those, for every 32 inputs, two tiles of
 * [16 input pairs][16 outputs][2], one behind the other.  So a panel is read from front to back, which is
 * all that a single row needs, and each tile is an operand as it lies.
 *
 * A row is summed in the same order whatever rows stand beside it: its bits depend on nothing else.
 */

#include "common.h"

#ifdef __AMX_BF16__

#define SIDE 32     /* rows, and columns, of one block of four sums */
#define ROWS 512    /* rows that share a walk over the matrix: they fit the second-level cache */

enum { PLAIN = 0, PAIRED = 1, GATED = 2 };

/* PAIRED: a panel's two tiles are 16 columns of the gate and the same 16 of the up projection; they go to
 * columns j and out/2 + j.  GATED: silu(gate) * up goes to column j of [rows, out/2]. */
typedef struct {
    const bf16 *x, *w, *onto;
    const float *bias;
    bf16 *y, *tiles; /* `tiles` has room for the rows, rounded up to 32 */
    float *wide;     /* where the sums go unrounded, in place of y */
    int64_t rows, in, out, x_stride, y_stride, onto_stride, kind, threads;
} Linear;

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

static inline __m512 silu(__m512 x) {
    const __m512 e = exp2_fast(_mm512_mul_ps(x, _mm512_set1_ps(-1.4426950408889634f)));
    return _mm512_div_ps(x, _mm512_add_ps(e, _mm512_set1_ps(1.0f)));
}

/* Four sums [32 rows, 32 columns] to where they belong. */
static void put(const Linear *call, int64_t row, int64_t rows, int64_t panel, float sums[4][16][16]) {
    const int64_t left = call->kind == PLAIN ? panel * SIDE : panel * 16;
    const int64_t right = call->kind == PLAIN ? left + 16 : call->out / 2 + left;
    __m512 bias[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    if (call->bias) bias[0] = _mm512_loadu_ps(call->bias + left), bias[1] = _mm512_loadu_ps(call->bias + right);
    for (int64_t r = 0; r < rows; r++) {
        __m512 a = _mm512_add_ps(_mm512_load_ps(sums[r / 16 * 2][r % 16]), bias[0]);
        __m512 b = _mm512_add_ps(_mm512_load_ps(sums[r / 16 * 2 + 1][r % 16]), bias[1]);
        bf16 *y = call->y + (row + r) * call->y_stride;
        if (call->kind == GATED) {
            narrow(y + left, _mm512_mul_ps(silu(a), b));
            continue;
        }
        if (call->wide) {
            _mm512_storeu_ps(call->wide + (row + r) * call->out + left, a);
            _mm512_storeu_ps(call->wide + (row + r) * call->out + right, b);
            continue;
        }
        if (call->onto) {
            const bf16 *onto = call->onto + (row + r) * call->onto_stride;
            a = _mm512_add_ps(a, widen(onto + left));
            b = _mm512_add_ps(b, widen(onto + right));
        }
        narrow(y + left, a);
        narrow(y + right, b);
    }
}

/* Rows [first, first + 32) as tiles, one behind the other in the order of their use: [in / 32][2][16][32].
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

/* 32 rows (or 16, when `few`) over one panel. Both are read from front to back. */
static void multiply(const bf16 *x, const bf16 *w, int64_t in, int few, float sums[4][16][16]) {
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

/* Rows [first, stop) over panels [from, to). */
static void block(const Linear *call, int64_t first, int64_t stop, int64_t from, int64_t to) {
    float sums[4][16][16] __attribute__((aligned(64)));
    for (int64_t r = first; r < stop; r += SIDE)
        for (int64_t p = from; p < to; p++) {
            const int64_t rows = stop - r < SIDE ? stop - r : SIDE;
            multiply(call->tiles + r * call->in, call->w + p * SIDE * call->in, call->in, rows <= 16, sums);
            put(call, r, rows, p, sums);
        }
}

void kdn_linear(const Linear *call) {
    const int64_t panels = call->out / SIDE, blocks = (call->rows + ROWS - 1) / ROWS;
    const int64_t wanted = (call->rows > SIDE ? 8 : 1) * call->threads;
    const int64_t parts = wanted < panels ? wanted : panels;
#pragma omp parallel num_threads(call->threads)
    {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < call->rows; r += SIDE) line_up(call, r, call->tiles + r * call->in);
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
