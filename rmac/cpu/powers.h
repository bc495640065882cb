/* Powers and roots of many positive values, in place, in loops that compilers make vectors of.
   Values below LEAST are raised to LEAST first. NaN stays NaN. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "lines.h"

#define LEAST 1e-6
#define MOST_FACTORS 6 /* the highest power that is computed by multiplication */

#define SQRT_HALF 0x3F3504F3 /* its bits in float32 */
#define TO_INTEGER 0x1.8p52  /* added to a double, it moves the integer part to the lowest bits */

/* x**p as 2**(p * log2(x)) in float64, by the series of the inverse hyperbolic tangent and of the
   exponential. For normal x and |p| <= 6 the error is about one unit in the last place of float32.
   */
static inline float power_of(float x, double p)
{
    int32_t bits, exponent;
    int64_t whole, result_bits;
    float fraction;
    memcpy(&bits, &x, sizeof(bits));
    exponent = (bits - SQRT_HALF) >> 23;
    bits = ((bits - SQRT_HALF) & 0x7FFFFF) + SQRT_HALF;
    memcpy(&fraction, &bits, sizeof(bits));
    const double s = (fraction - 1.0) / (fraction + 1.0), s2 = s * s;
    const double log2_fraction =
        s * (2.8853900817779268 + s2 * (0.9617966939259756 + s2 * (0.5770780163555854
        + s2 * (0.41219858311113244 + s2 * (0.32059889797532526 + s2 * 0.26230818925253886)))));
    const double y = p * (exponent + log2_fraction), shifted = y + TO_INTEGER;
    const double r = y - (shifted - TO_INTEGER);
    double result =
        1.0 + r * (0.6931471805599453 + r * (0.24022650695910072 + r * (0.05550410866482158
        + r * (0.009618129107628477 + r * (0.0013333558146428443 + r * (0.0001540353039338161
        + r * (1.5252733804059841e-05 + r * 1.3215486790144307e-06)))))));
    memcpy(&whole, &shifted, sizeof(whole));
    memcpy(&result_bits, &result, sizeof(result));
    result_bits += (int64_t)((uint64_t)whole << 52);
    memcpy(&result, &result_bits, sizeof(result));
    return x < INFINITY ? (float)result : x;
}

#define FOR_EACH(power)                                                                            \
    UNROLLED_BY_4 for (ptrdiff_t i = 0; i < n; i++) {                                              \
        const real x = values[i] < least ? least : values[i];                                      \
        values[i] = power;                                                                         \
    }

#define POWERS(name, any_power)                                                                    \
    static inline void apply_power_##name(real *values, ptrdiff_t n, double p)                     \
    {                                                                                              \
        /* As a value in a register, it makes gcc take a maximum; a branch takes 1.2 times as long \
           for values of any sign. */                                                              \
        real least = (real)LEAST;                                                                  \
        IN_REGISTER(least);                                                                        \
        switch (p <= MOST_FACTORS && p == (int)p ? (int)p : 0) {                                   \
        case 1: FOR_EACH(x) break;                                                                 \
        case 2: FOR_EACH(x * x) break;                                                             \
        case 3: FOR_EACH(x * x * x) break;                                                         \
        case 4: FOR_EACH((x * x) * (x * x)) break;                                                 \
        case 5: FOR_EACH((x * x) * (x * x) * x) break;                                             \
        case 6: FOR_EACH((x * x) * (x * x) * (x * x)) break;                                       \
        default: FOR_EACH(any_power(x, p))                                                         \
        }                                                                                          \
    }                                                                                              \
    static inline void apply_root_##name(real *values, ptrdiff_t n, double p)                      \
    {                                                                                              \
        for (ptrdiff_t i = 0; i < n && p != 1; i++)                                                \
            values[i] = any_power(values[i], 1 / p);                                               \
    }

#define real float
POWERS(float, power_of)
#undef real
#define real double
POWERS(double, pow)
#undef real
