/* What kernels of fp32 rows need: a vector's parts, and an exponential as exact as fp32 shows. */

#ifndef KDN_FLOATS_H
#define KDN_FLOATS_H

#include <immintrin.h>

#define WIDTH 8 /* values of a vector */

static inline float add_lanes(__m256 x) {
    __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    y = _mm_add_ps(y, _mm_movehl_ps(y, y));
    return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}

/* 2^x to 2e-7 of itself; 0 below the least normal number. */
static inline __m256 exp2_exact(__m256 x) {
    const __m256 least = _mm256_set1_ps(-126.0f), shown = _mm256_cmp_ps(x, least, _CMP_GE_OQ);
    x = _mm256_min_ps(_mm256_max_ps(x, least), _mm256_set1_ps(127.0f));
    const __m256 whole = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m256 r = _mm256_sub_ps(x, whole);
    __m256 y = _mm256_set1_ps(1.535336188e-4f);
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.339887440e-3f));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(9.618437358e-3f));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(5.550332471e-2f));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(2.402264791e-1f));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(6.931472029e-1f));
    y = _mm256_fmadd_ps(y, r, _mm256_set1_ps(1.0f));
    const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
    return _mm256_and_ps(shown, _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), exponent)));
}

#endif
