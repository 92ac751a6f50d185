/* Range coding of signed bytes by fixed shapes (rANS, Duda, arXiv 1311.2540): 32 interleaved states
 * of 32 bits, refilled by 16 bits from one stream of words; and the way back from coded numbers to
 * values.  Every function here has a twin in numpy (rans.py, residuals.py) with the same results. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define LANES 32
#define SCALE_BITS 12
#define SLOTS (1u << SCALE_BITS)
#define LOW (1u << 16)

#ifdef __AVX512F__
#include <immintrin.h>

/* Sixteen symbols: gather their slots, step the states, refill those that ran low, in order. */
static inline __m512i decode_sixteen(__m512i x, const uint32_t *slots, const uint8_t *shape,
                                     const uint16_t **next, int8_t *to) {
    __m512i mask = _mm512_set1_epi32(SLOTS - 1);
    __m512i table = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)shape));
    __m512i at = _mm512_add_epi32(_mm512_slli_epi32(table, SCALE_BITS), _mm512_and_si512(x, mask));
    __m512i slot = _mm512_i32gather_epi32(at, slots, 4);
    _mm_storeu_si128((__m128i *)to, _mm512_cvtepi32_epi8(slot));
    x = _mm512_add_epi32(
        _mm512_mullo_epi32(_mm512_srli_epi32(slot, 20), _mm512_srli_epi32(x, SCALE_BITS)),
        _mm512_and_si512(_mm512_srli_epi32(slot, 8), mask));
    __mmask16 need = _mm512_cmplt_epu32_mask(x, _mm512_set1_epi32(LOW));
    __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)*next));
    words = _mm512_maskz_expand_epi32(need, words);
    *next += __builtin_popcount(need);
    return _mm512_mask_or_epi32(x, need, _mm512_slli_epi32(x, 16), words);
}

/* As many whole rows as there are surely words for; gives back how many. */
static size_t decode_rows(uint32_t *state, const uint16_t **next, const uint16_t *end,
                          const uint32_t *slots, const uint8_t *shape, size_t rows, size_t width,
                          int8_t *symbols) {
    size_t row = 0;
    if (width % LANES)
        return 0;
    __m512i low = _mm512_loadu_si512(state), high = _mm512_loadu_si512(state + 16);
    for (; row < rows && (size_t)(end - *next) >= width + 16; row++)
        for (size_t c = 0; c < width; c += LANES) {
            int8_t *to = symbols + row * width + c;
            low = decode_sixteen(low, slots, shape + c, next, to);
            high = decode_sixteen(high, slots, shape + c + 16, next, to + 16);
        }
    _mm512_storeu_si512(state, low);
    _mm512_storeu_si512(state + 16, high);
    return row;
}
#else
static size_t decode_rows(uint32_t *state, const uint16_t **next, const uint16_t *end,
                          const uint32_t *slots, const uint8_t *shape, size_t rows, size_t width,
                          int8_t *symbols) {
    return 0;
}
#endif

/* Symbols [rows, width] of `words`, which begin with the states.  Returns 0, or 1 when the stream is
 * not one that an encoder makes: too short, too long, or not ending where encoding began. */
int kdn_rans_decode(const uint16_t *words, size_t num_words, const uint32_t *restrict slots,
                    const uint8_t *restrict shape, size_t rows, size_t width,
                    int8_t *restrict symbols) {
    if (num_words < 2 * LANES)
        return 1;
    uint32_t state[LANES];
    memcpy(state, words, sizeof state);
    const uint16_t *next = words + 2 * LANES, *end = words + num_words;
    size_t done = decode_rows(state, &next, end, slots, shape, rows, width, symbols);
    for (size_t i = done * width; i < rows * width; i++) {
        uint32_t x = state[i % LANES];
        uint32_t slot = slots[((size_t)shape[i % width] << SCALE_BITS) + (x & (SLOTS - 1))];
        x = (slot >> 20) * (x >> SCALE_BITS) + (slot >> 8 & (SLOTS - 1));
        symbols[i] = (int8_t)(slot & 0xFF);
        if (x < LOW) {
            if (next == end)
                return 1;
            x = x << 16 | *next++;
        }
        state[i % LANES] = x;
    }
    for (size_t l = 0; l < LANES; l++)
        if (state[l] != LOW)
            return 1;
    return next != end;
}

/* The words for `symbols`, written to the end of `words`.  Returns how many, or 0 when a symbol is not
 * in its shape or the room does not suffice (rows * width + 64 words always do). */
size_t kdn_rans_encode(const int8_t *symbols, const uint32_t *spans, const uint8_t *shape,
                       size_t rows, size_t width, uint16_t *words, size_t room) {
    uint32_t state[LANES];
    for (size_t l = 0; l < LANES; l++)
        state[l] = LOW;
    uint16_t *first = words + 2 * LANES, *next = words + room;
    if (room < 2 * LANES)
        return 0;
    for (size_t i = rows * width; i-- > 0;) {
        uint32_t span = spans[((size_t)shape[i % width] << 8) + (uint8_t)symbols[i]];
        uint32_t frequency = span & 0xFFFF, x = state[i % LANES];
        if (frequency == 0)
            return 0;
        if ((uint64_t)x >= (uint64_t)frequency << (32 - SCALE_BITS)) {
            if (next == first)
                return 0;
            *--next = (uint16_t)x;
            x >>= 16;
        }
        state[i % LANES] = (x / frequency << SCALE_BITS) + x % frequency + (span >> 16);
    }
    next -= 2 * LANES;
    memcpy(next, state, sizeof state);
    return (size_t)(words + room - next);
}

static inline uint16_t to_bfloat16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + ((bits >> 16 & 1) + 0x7FFF)) >> 16);
}

/* Numbers from symbols [tokens, 2 * channels], and values from numbers: the token before, times
 * factor / 4, is added; then number * step + mean.  K goes to the first half of `out`, V to the second,
 * as bfloat16 when `half_width`, else as float32.  Returns 0, or 1 when the escapes do not fit. */
int kdn_restore(const int8_t *symbols, const int32_t *escapes, size_t num_escapes,
                const uint8_t *factor, const float *mean, const float *step, size_t tokens,
                size_t channels, int32_t *numbers, int half_width, void *out) {
    size_t width = 2 * channels, used = 0;
    memset(numbers, 0, width * sizeof *numbers);
    for (size_t t = 0; t < tokens; t++) {
        const int8_t *row = symbols + t * width;
        int escaped = 0;
        for (size_t c = 0; c < width; c++) {
            /* unsigned, so that numbers that no encoder makes wrap as they do in numpy */
            int32_t before = (int32_t)((uint32_t)factor[c] * (uint32_t)numbers[c]) >> 2;
            numbers[c] = (int32_t)((uint32_t)before + (uint32_t)row[c]);
            escaped |= row[c] == -128;
        }
        if (escaped)
            for (size_t c = 0; c < width; c++)
                if (row[c] == -128) {
                    if (used == num_escapes)
                        return 1;
                    numbers[c] = (int32_t)((uint32_t)numbers[c] + 128u + (uint32_t)escapes[used++]);
                }
        for (size_t part = 0; part < 2; part++) {
            size_t from = part * channels, to = (part * tokens + t) * channels;
            if (half_width)
                for (size_t c = 0; c < channels; c++)
                    ((uint16_t *)out)[to + c] = to_bfloat16(
                        (float)numbers[from + c] * step[from + c] + mean[from + c]);
            else
                for (size_t c = 0; c < channels; c++)
                    ((float *)out)[to + c] =
                        (float)numbers[from + c] * step[from + c] + mean[from + c];
        }
    }
    return used != num_escapes;
}
