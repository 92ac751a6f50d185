/* How many exponentials of fp32 values this processor makes, by the polynomial that the kernels use. */

#include "../../model/kernels/common.h"

/* y = 2^x of `count` values, a multiple of 64, `rounds` times over. */
void kdn_exponentials(const float *x, float *y, int64_t count, int64_t rounds, int64_t threads) {
#pragma omp parallel num_threads(threads)
    for (int64_t round = 0; round < rounds; round++)
#pragma omp for schedule(static) nowait
        for (int64_t i = 0; i < count; i += 64)
            for (int64_t lane = 0; lane < 64; lane += 16)
                _mm512_storeu_ps(y + i + lane, exp2_fast(_mm512_loadu_ps(x + i + lane)));
}
