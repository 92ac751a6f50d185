/* What both kernels need: numbers in bf16, a quick exponential, the tile registers. */

#ifndef KDN_COMMON_H
#define KDN_COMMON_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

/* 2^x to 4e-6 of itself, far below what bf16 keeps of it. */
static inline __m512 exp2_fast(__m512 x) {
    const __m512 whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 r = _mm512_sub_ps(x, whole);
    __m512 y = _mm512_set1_ps(9.570130e-3f);
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(5.591685e-2f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(2.402302e-1f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(6.931305e-1f));
    y = _mm512_fmadd_ps(y, r, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(y, whole);
}

static inline float bf16_to_float(bf16 x) {
    const uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

static inline bf16 float_to_bf16(float x) { /* to nearest, ties to even */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (bf16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline __m512 widen(const bf16 *x) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

static inline void narrow(bf16 *y, __m512 x) {
    _mm256_storeu_si256((__m256i *)y, (__m256i)_mm512_cvtneps_pbh(x));
}

#ifdef __AMX_BF16__
static inline void tiles_on(void) { /* eight tiles of 16 rows of 64 bytes */
    struct {
        uint8_t palette, row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } __attribute__((aligned(64))) shape = {0};
    shape.palette = 1;
    for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;
    /* GCC 12 believes that the next line reads 8 of the 64 bytes, and may drop the others. */
    __asm__ volatile("" : : "r"(&shape) : "memory");
    _tile_loadconfig(&shape);
}
#endif

#endif
