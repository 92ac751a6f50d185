/* In what numbers rows, K and V are kept, and what a product is told: kernels of bf16 and of fp32 share it. */

#ifndef KDN_REAL_H
#define KDN_REAL_H

#include <stdint.h>
#include <string.h>

#ifdef KDN_FLOATS
typedef float real;
#else
typedef uint16_t real; /* bf16 */
#endif

#define SIDE 32 /* outputs of a panel */

/* PAIRED: a panel's two tiles are 16 columns of the gate and the same 16 of the up projection; they go to
 * columns j and out/2 + j.  GATED: silu(gate) * up goes to column j of [rows, out/2]. */
enum { PLAIN = 0, PAIRED = 1, GATED = 2 };

typedef struct {
    const real *x, *w, *onto;
    const int8_t *w8;          /* in place of w */
    const float *scale, *bias; /* of every output; no scale means 1 */
    float *row_scale;          /* of every row, where there is w8; in groups: the sums of its inputs, in fp32 with their steps */
    real *y, *tiles; /* `tiles` has room for the rows, rounded up to 32 */
    float *wide;     /* where the sums go unrounded, in place of y */
    int64_t rows, in, out, x_stride, y_stride, onto_stride, kind, threads, use_amx;
} Linear;

#endif
