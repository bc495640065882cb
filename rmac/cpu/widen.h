/* Values as floats of 32 bits, exactly in the default floating-point mode: see floats.h. */

#ifndef RMAC_WIDEN_H
#define RMAC_WIDEN_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "lines.h"

static inline float number_of_bits(uint32_t bits)
{
    float number;
    memcpy(&number, &bits, sizeof(number));
    return number;
}

/* The exponent of a float16 is 112 less than that of a float. */
static inline float number_of_half(uint16_t bits)
{
    const uint32_t size = (uint32_t)(bits & 0x7FFF) << 13, sign = (uint32_t)(bits & 0x8000) << 16;
    const float number = number_of_bits(size) * 0x1p112f;
    uint32_t wide;
    memcpy(&wide, &number, sizeof(wide));
    wide |= wide >= 0x47800000 ? 0x7F800000 : 0; /* 2**16, where a float16 has inf and NaN */
    return number_of_bits(wide | sign);
}

static inline float number_of_brain(uint16_t bits)
{
    return number_of_bits((uint32_t)bits << 16);
}

/* Values as floats, as many at a time as a register has floats. Without this, gcc widens a register
   of bytes in two steps, which takes up to 1.5 times as long. */
#if defined(__AVX512F__)
#define WIDE_FLOATS 16
#define STORE_FLOATS(out, floats) _mm512_storeu_ps(out, floats)
#define FLOATS_OF_INTEGERS(integers, zero_point)                                                   \
    _mm512_cvtepi32_ps(_mm512_sub_epi32(integers, _mm512_set1_epi32(zero_point)))
#define FLOATS_OF_UINT8S(values, zero_point)                                                       \
    FLOATS_OF_INTEGERS(_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)(values))), zero_point)
#define FLOATS_OF_INT8S(values, zero_point)                                                        \
    FLOATS_OF_INTEGERS(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(values))), zero_point)
#define FLOATS_OF_HALVES(values, _) _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(values)))
#define FLOATS_OF_BRAINS(values, _)                                                                \
    _mm512_castsi512_ps(_mm512_slli_epi32(                                                         \
        _mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(values))), 16))
#elif defined(__AVX2__) && defined(__F16C__)
#define WIDE_FLOATS 8
#define STORE_FLOATS(out, floats) _mm256_storeu_ps(out, floats)
#define FLOATS_OF_INTEGERS(integers, zero_point)                                                   \
    _mm256_cvtepi32_ps(_mm256_sub_epi32(integers, _mm256_set1_epi32(zero_point)))
#define FLOATS_OF_UINT8S(values, zero_point)                                                       \
    FLOATS_OF_INTEGERS(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(values))), zero_point)
#define FLOATS_OF_INT8S(values, zero_point)                                                        \
    FLOATS_OF_INTEGERS(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(values))), zero_point)
#define FLOATS_OF_HALVES(values, _) _mm256_cvtph_ps(_mm_loadu_si128((const void *)(values)))
#define FLOATS_OF_BRAINS(values, _)                                                                \
    _mm256_castsi256_ps(_mm256_slli_epi32(                                                         \
        _mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(values))), 16))
#endif

#ifdef WIDE_FLOATS
#define WIDEN_REGISTERS(values, out, i, n, zero_point, FLOATS_OF)                                  \
    UNROLLED_BY_4 for (; i + WIDE_FLOATS <= n; i += WIDE_FLOATS)                                   \
        STORE_FLOATS(out + i, FLOATS_OF(values + i, zero_point));
#else
#define WIDEN_REGISTERS(values, out, i, n, zero_point, FLOATS_OF)
#endif

#define WIDEN_VALUES(values_t, name, FLOATS_OF, number_of)                                         \
    static inline void widen_##name(                                                               \
        const values_t *values, float *out, ptrdiff_t n, int zero_point)                           \
    {                                                                                              \
        ptrdiff_t i = 0;                                                                           \
        WIDEN_REGISTERS(values, out, i, n, zero_point, FLOATS_OF)                                  \
        for (; i < n; i++)                                                                         \
            out[i] = (float)number_of(values[i], zero_point);                                      \
    }

#define INTEGER_VALUE(value, zero_point) ((int)(value) - (zero_point))
#define HALF_VALUE(bits, _) number_of_half(bits)
#define BRAIN_VALUE(bits, _) number_of_brain(bits)
WIDEN_VALUES(uint8_t, uint8s, FLOATS_OF_UINT8S, INTEGER_VALUE)
WIDEN_VALUES(int8_t, int8s, FLOATS_OF_INT8S, INTEGER_VALUE)
WIDEN_VALUES(uint16_t, halves, FLOATS_OF_HALVES, HALF_VALUE)
WIDEN_VALUES(uint16_t, brains, FLOATS_OF_BRAINS, BRAIN_VALUE)

#endif
