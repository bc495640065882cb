/* Floats of 16 bits as floats of 32, exactly and whatever the floating-point mode. */

#ifndef RMAC_HALVES_H
#define RMAC_HALVES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__F16C__)
#include <immintrin.h>
#endif

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

/* The machine's conversion ignores the modes that flush subnormal numbers to zero. */
static inline void widen_halves(const uint16_t *values, float *out, ptrdiff_t n)
{
    ptrdiff_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= n; i += 16)
        _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(values + i))));
#elif defined(__F16C__)
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const void *)(values + i))));
#endif
    for (; i < n; i++)
        out[i] = number_of_half(values[i]);
}

#endif
