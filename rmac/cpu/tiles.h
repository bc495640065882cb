/* Numbers of tiles: made ready to be squared and compared, and the largest of a box. */

#ifndef RMAC_TILES_H
#define RMAC_TILES_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Makes packed numbers ready: a NaN becomes inf. Returns whether a square may overflow or underflow:
   whether one that is finite and not 0 is outside of 2**-LEAST to 2**LEAST. */
#define READY(name, real, bits, mantissa, bias, least)                                             \
    static int make_ready_##name(void *cells, ptrdiff_t n)                                         \
    {                                                                                              \
        real *numbers = cells;                                                                     \
        const uint##bits##_t inf = (uint##bits##_t)(2 * bias + 1) << mantissa;                     \
        const uint##bits##_t low = (uint##bits##_t)(bias - least) << mantissa;                     \
        const uint##bits##_t high = (uint##bits##_t)(bias + least) << mantissa;                    \
        uint##bits##_t outside = 0;                                                                \
        for (ptrdiff_t i = 0; i < n; i++) {                                                        \
            uint##bits##_t value, size;                                                            \
            memcpy(&value, numbers + i, sizeof(value));                                            \
            size = value & (((uint##bits##_t)1 << (bits - 1)) - 1);                                \
            value = size > inf ? inf : value;                                                      \
            outside |= (size != 0) & (size < inf) & ((size < low) | (size > high));                \
            memcpy(numbers + i, &value, sizeof(value));                                            \
        }                                                                                          \
        return outside != 0;                                                                       \
    }

READY(floats, float, 32, 23, 127, 50)
READY(doubles, double, 64, 52, 1023, 450)

/* For `score_wide_doubles`, which has no range. */
static int make_ready_wide_doubles(void *cells, ptrdiff_t n)
{
    make_ready_doubles(cells, n);
    return 0;
}

/* The same for keys of 16 bits, where `inf` is that of the dtype, and numbers in between are normal. */
static int make_keys_ready(int16_t *keys, ptrdiff_t n, int inf, int low, int high)
{
    int outside = 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        const int16_t bits = keys[i], size = bits & INT16_MAX;
        const int16_t value = size > inf ? (int16_t)inf : bits;
        outside |= (size != 0) & (size < inf) & ((size < low) | (size > high));
        keys[i] = ENCODED(value, 16, INT16_MAX, 0);
    }
    return outside;
}

static int make_ready_halves(void *cells, ptrdiff_t n)
{
    return make_keys_ready(cells, n, 0x7C00, 1, 0x7C00);
}

static int make_ready_brains(void *cells, ptrdiff_t n)
{
    return make_keys_ready(cells, n, 0x7F80, (127 - 50) << 7, (127 + 50) << 7);
}

/* Integers of at most 16 bits are in order as they are, and their squares do not overflow. */
static int make_ready_integers(void *cells, ptrdiff_t n)
{
    (void)cells, (void)n;
    return 0;
}

/* The maxima of numbers that are read, where a NaN is inf. */
#define TAKE_LARGER(real)                                                                          \
    static inline void take_larger_##real(real *maxima, const real *numbers, ptrdiff_t n)          \
    {                                                                                              \
        for (ptrdiff_t i = 0; i < n; i++) {                                                        \
            const real number = numbers[i] == numbers[i] ? numbers[i] : (real)INFINITY;            \
            maxima[i] = number > maxima[i] ? number : maxima[i];                                   \
        }                                                                                          \
    }

TAKE_LARGER(float)
TAKE_LARGER(double)

/* The largest number in rows of n numbers, `stride` bytes apart; inf if any is a NaN. A row is read
   in whole vectors: the last one ends where the row ends, and reads some numbers again. */
#define LARGEST_IN_VECTORS(name, real, bits, size)                                                 \
    static real largest_##name(const char *row, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t n)     \
    {                                                                                              \
        enum { COUNT = size / sizeof(real) };                                                      \
        typedef real Vector __attribute__((vector_size(size), aligned(1), may_alias));             \
        typedef int##bits##_t Mask __attribute__((vector_size(size)));                             \
        Vector maxima = *(const Vector *)row;                                                      \
        Mask nan = maxima != maxima;                                                               \
        for (ptrdiff_t y = 0; y < rows; y++, row += stride)                                        \
            for (ptrdiff_t at = 0; at < n; at += COUNT) {                                          \
                const ptrdiff_t first = at + COUNT <= n ? at : n - COUNT;                          \
                const Vector numbers = *(const Vector *)(row + first * sizeof(real));              \
                const Mask is_larger = numbers > maxima;                                           \
                nan |= numbers != numbers;                                                         \
                maxima = (Vector)(((Mask)numbers & is_larger) | ((Mask)maxima & ~is_larger));      \
            }                                                                                      \
        real result = maxima[0];                                                                   \
        for (int i = 0; i < COUNT; i++)                                                            \
            result = nan[i] ? (real)INFINITY : maxima[i] > result ? maxima[i] : result;            \
        return result;                                                                             \
    }

LARGEST_IN_VECTORS(floats_1, float, 32, 4)
LARGEST_IN_VECTORS(floats_4, float, 32, 16)
LARGEST_IN_VECTORS(floats_8, float, 32, 32)
LARGEST_IN_VECTORS(doubles_1, double, 64, 8)
LARGEST_IN_VECTORS(doubles_4, double, 64, 32)

static float largest_float(const void *row, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t n)
{
    return (n < 4 ? largest_floats_1 : n < 8 ? largest_floats_4 : largest_floats_8)(
        row, stride, rows, n);
}

static double largest_double(const void *row, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t n)
{
    return (n < 4 ? largest_doubles_1 : largest_doubles_4)(row, stride, rows, n);
}

/* Numbers have the type of the last argument. */
#define TYPED(name, like) _Generic((like), float: name##_float, double: name##_double)
#define largest(row, stride, rows, n, like) TYPED(largest, like)(row, stride, rows, n)
#define take_larger(maxima, numbers, n, like) TYPED(take_larger, like)(maxima, numbers, n)

#endif
