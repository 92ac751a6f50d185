/* Root-mean-square norm of bf16 rows: summed and scaled in fp32, rounded once. */

#include "common.h"

/* y[rows, size] = x / sqrt(mean(x^2) + eps) * weight; `size` is a multiple of 16. */
void kdn_norm(const bf16 *x, int64_t x_stride, const float *weight, float eps, int64_t rows, int64_t size, bf16 *y,
              int64_t threads) {
#pragma omp parallel for num_threads(threads) if (rows > 32)
    for (int64_t r = 0; r < rows; r++) {
        const bf16 *in = x + r * x_stride;
        bf16 *out = y + r * size;
        __m512 sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (int64_t i = 0; i < size; i += 16) {
            const __m512 wide = widen(in + i);
            sums[i / 16 % 2] = _mm512_fmadd_ps(wide, wide, sums[i / 16 % 2]);
        }
        const float mean = _mm512_reduce_add_ps(_mm512_add_ps(sums[0], sums[1])) / (float)size;
        const __m512 scale = _mm512_set1_ps(1.0f / __builtin_sqrtf(mean + eps));
        for (int64_t i = 0; i < size; i += 16)
            narrow(out + i, _mm512_mul_ps(_mm512_mul_ps(widen(in + i), scale), _mm512_loadu_ps(weight + i)));
    }
}
