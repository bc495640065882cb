/* Sums of squares, and quotients, in loops that compilers make vectors of. These functions are not
   declared inline for Cython: inlined early, gcc does not make vectors of the sum. */

#include <math.h>
#include <stddef.h>

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define HAS_FMA 1
#else
#define HAS_FMA 0
#endif

/* The square of a float32 is exact in float64. That of a float64, if fused, is rounded once less.
   */
static inline double add_square(double total, double value)
{
    return HAS_FMA ? fma(value, value, total) : total + value * value;
}

#define PARTIAL_SUMS 16 /* interleaved, so that their order does not depend on register width */

#define SUM_OF_SQUARES(real)                                                                       \
    static double sum_of_squares_##real(const real *values, ptrdiff_t n)                           \
    {                                                                                              \
        double parts[PARTIAL_SUMS] = {0};                                                          \
        const ptrdiff_t whole = n / PARTIAL_SUMS * PARTIAL_SUMS;                                   \
        for (ptrdiff_t i = 0; i < whole; i += PARTIAL_SUMS)                                        \
            for (int part = 0; part < PARTIAL_SUMS; part++)                                        \
                parts[part] = add_square(parts[part], values[i + part]);                           \
        for (ptrdiff_t part = 0; part < n - whole; part++)                                         \
            parts[part] = add_square(parts[part], values[whole + part]);                           \
        for (int half = PARTIAL_SUMS / 2; half > 1; half /= 2)                                     \
            for (int part = 0; part < half; part++)                                                \
                parts[part] += parts[part + half];                                                 \
        return parts[0] + parts[1];                                                                \
    }

SUM_OF_SQUARES(float)
SUM_OF_SQUARES(double)

/* A finite value divided by a norm, given the inverse of the norm. With fused multiplication, two
   corrections make this as exact as a division and several times as fast. Only the last bit of the
   least subnormal numbers may differ. A lone value becomes exactly 1. */
#define QUOTIENT(real, fma)                                                                        \
    static inline real quotient_##real(real value, real norm, real inverse)                        \
    {                                                                                              \
        const real guess = value * inverse;                                                        \
        return HAS_FMA ? fma(fma(-guess, norm, value), inverse, guess) : value / norm;             \
    }

QUOTIENT(float, fmaf)
QUOTIENT(double, fma)
