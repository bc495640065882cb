/* Maxima of boxes, and their sums of squares and of products with queries.

   A cell is a few lines of numbers, one for each channel of a tile. No number is a NaN: packing made
   them infinite. The numbers of a line are summed in a tree of fixed shape, whatever the registers,
   so that a sum depends on its numbers alone. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "halves.h"

/* The larger of two numbers. */
#if REGISTER == 64
#define MAX_float(a, b) (Numbers_float)_mm512_max_ps((__m512)(a), (__m512)(b))
#define MAX_double(a, b) (Numbers_double)_mm512_max_pd((__m512d)(a), (__m512d)(b))
#elif REGISTER == 32
#define MAX_float(a, b) (Numbers_float)_mm256_max_ps((__m256)(a), (__m256)(b))
#define MAX_double(a, b) (Numbers_double)_mm256_max_pd((__m256d)(a), (__m256d)(b))
#elif defined(__x86_64__)
#define MAX_float(a, b) (Numbers_float)_mm_max_ps((__m128)(a), (__m128)(b))
#define MAX_double(a, b) (Numbers_double)_mm_max_pd((__m128d)(a), (__m128d)(b))
#elif defined(__aarch64__)
#define MAX_float(a, b) (Numbers_float)vmaxq_f32((float32x4_t)(a), (float32x4_t)(b))
#define MAX_double(a, b) (Numbers_double)vmaxq_f64((float64x2_t)(a), (float64x2_t)(b))
#else
#define MAX_float(a, b)                                                                            \
    (Numbers_float)(((Keys_32)(a) & ((a) > (b))) | ((Keys_32)(b) & ~((a) > (b))))
#define MAX_double(a, b)                                                                           \
    (Numbers_double)(((Keys_64)(a) & ((a) > (b))) | ((Keys_64)(b) & ~((a) > (b))))
#endif

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Which numbers of two registers of n, one after the other, are the lower half of each group of
   twice `d`; with `o` = d, which are the upper half. */
#define RUN_1(i) (i)
#define RUN_2(i) (i), (i) + 1
#define RUN_4(i) RUN_2(i), RUN_2((i) + 2)
#define RUN_8(i) RUN_4(i), RUN_4((i) + 4)
#define HALVES_2_1(o) RUN_1(o), RUN_1(o + 2)
#define HALVES_4_2(o) RUN_2(o), RUN_2(o + 4)
#define HALVES_4_1(o) HALVES_2_1(o), HALVES_2_1(o + 4)
#define HALVES_8_4(o) RUN_4(o), RUN_4(o + 8)
#define HALVES_8_2(o) HALVES_4_2(o), HALVES_4_2(o + 8)
#define HALVES_8_1(o) HALVES_4_1(o), HALVES_4_1(o + 8)
#define HALVES_16_8(o) RUN_8(o), RUN_8(o + 16)
#define HALVES_16_4(o) HALVES_8_4(o), HALVES_8_4(o + 16)
#define HALVES_16_2(o) HALVES_8_2(o), HALVES_8_2(o + 16)
#define HALVES_16_1(o) HALVES_8_1(o), HALVES_8_1(o + 16)

/* The sums of two numbers `d` apart, first those of a, then those of b. */
#define FOLD(real, bits, n, d)                                                                     \
    ALWAYS_INLINE Numbers_##real fold_##real##_##d(Numbers_##real a, Numbers_##real b)             \
    {                                                                                              \
        return SHUFFLED(a, b, Keys_##bits, HALVES_##n##_##d(0))                                    \
            + SHUFFLED(a, b, Keys_##bits, HALVES_##n##_##d(d));                                    \
    }
#define NO_FOLD(real, d)                                                                           \
    ALWAYS_INLINE Numbers_##real fold_##real##_##d(Numbers_##real a, Numbers_##real b)             \
    {                                                                                              \
        (void)b;                                                                                   \
        return a;                                                                                  \
    }

#if REGISTER == 64
#define FOLDED(line, real) ((Numbers_##real)line.part[0])
FOLD(float, 32, 16, 8)
FOLD(float, 32, 16, 4)
FOLD(float, 32, 16, 2)
FOLD(float, 32, 16, 1)
FOLD(double, 64, 8, 4)
FOLD(double, 64, 8, 2)
FOLD(double, 64, 8, 1)
#elif REGISTER == 32
#define FOLDED(line, real) ((Numbers_##real)line.part[0] + (Numbers_##real)line.part[1])
FOLD(float, 32, 8, 4)
FOLD(float, 32, 8, 2)
FOLD(float, 32, 8, 1)
FOLD(double, 64, 4, 2)
FOLD(double, 64, 4, 1)
#else
#define FOLDED(line, real)                                                                         \
    (((Numbers_##real)line.part[0] + (Numbers_##real)line.part[2])                                 \
        + ((Numbers_##real)line.part[1] + (Numbers_##real)line.part[3]))
FOLD(float, 32, 4, 2)
FOLD(float, 32, 4, 1)
FOLD(double, 64, 2, 1)
#endif

/* Sums of several boxes at a time, until they fill a register: FOLDS of numbers `d` apart. */
#if REGISTER == 64
#define FOLDS_float(a, b, d)                                                                       \
    (d == 8 ? fold_float_8(a, b) : d == 4 ? fold_float_4(a, b)                                     \
                               : d == 2   ? fold_float_2(a, b)                                     \
                                          : fold_float_1(a, b))
#define FOLDS_double(a, b, d)                                                                      \
    (d == 4 ? fold_double_4(a, b) : d == 2 ? fold_double_2(a, b) : fold_double_1(a, b))
#elif REGISTER == 32
#define FOLDS_float(a, b, d)                                                                       \
    (d == 4 ? fold_float_4(a, b) : d == 2 ? fold_float_2(a, b) : fold_float_1(a, b))
#define FOLDS_double(a, b, d) (d == 2 ? fold_double_2(a, b) : fold_double_1(a, b))
#else
#define FOLDS_float(a, b, d) (d == 2 ? fold_float_2(a, b) : fold_float_1(a, b))
#define FOLDS_double(a, b, d) fold_double_1(a, b)
#endif

/* Boxes are `step` bytes apart in each of the two parts that they are combined from. */
typedef struct {
    const char *first, *second;
    ptrdiff_t step;
} Parts;

#define MOST_LINES 8 /* of numbers, in a cell */

/* Of two lines of numbers, and of 16 or fewer lines that are left to be added. */
#define SUMS(real)                                                                                 \
    enum { COUNT_##real = REGISTER / sizeof(real) };                                               \
    typedef struct {                                                                               \
        Numbers_##real squares, products;                                                          \
    } Sums_##real;                                                                                 \
    ALWAYS_INLINE Line larger_numbers_##real(Line x, Line y)                                       \
    {                                                                                              \
        UNROLLED for (int i = 0; i < PARTS; i++)                                                   \
            x.part[i] =                                                                            \
                (Register)MAX_##real((Numbers_##real)x.part[i], (Numbers_##real)y.part[i]);        \
        return x;                                                                                  \
    }                                                                                              \
    ALWAYS_INLINE Line add_products_##real(Line a, Line b, Line sums)                              \
    {                                                                                              \
        UNROLLED for (int i = 0; i < PARTS; i++)                                                   \
            sums.part[i] = (Register)FMA_##real((Numbers_##real)a.part[i],                         \
                (Numbers_##real)b.part[i], (Numbers_##real)sums.part[i]);                          \
        return sums;                                                                               \
    }                                                                                              \
    ALWAYS_INLINE Numbers_##real products_##real##_1(                                              \
        const char *kept, const char *query, int lines)                                            \
    {                                                                                              \
        Line products = {{{0}}};                                                                   \
        UNROLLED for (int i = 0; i < lines; i++)                                                   \
            products = add_products_##real(                                                        \
                load_line(kept + i * LINE), load_line(query + i * LINE), products);                \
        return FOLDED(products, real);                                                             \
    }                                                                                              \
    /* Of fewer boxes than fill a register, numbers are left to be added. */                       \
    ALWAYS_INLINE void store_sums_##real(real *out, Numbers_##real sums, int k)                    \
    {                                                                                              \
        if (COUNT_##real >= 16 && k < 2)                                                           \
            sums = FOLDS_##real(sums, sums, 8);                                                    \
        if (COUNT_##real >= 8 && k * 8 <= COUNT_##real)                                            \
            sums = FOLDS_##real(sums, sums, 4);                                                    \
        if (COUNT_##real >= 4 && k * 4 <= COUNT_##real)                                            \
            sums = FOLDS_##real(sums, sums, 2);                                                    \
        if (k * 2 <= COUNT_##real)                                                                 \
            sums = FOLDS_##real(sums, sums, 1);                                                    \
        memcpy(out, &sums, k * sizeof(real));                                                      \
    }                                                                                              \
    PRODUCTS(real, real, 2, 1)                                                                     \
    PRODUCTS(real, real, 4, 2)                                                                     \
    PRODUCTS(real, real, 8, 4)                                                                     \
    PRODUCTS(real, real, 16, 8)

#define PRODUCTS(sums_of, real, k, half)                                                           \
    ALWAYS_INLINE Numbers_##real products_##sums_of##_##k(                                         \
        const char *kept, const char *query, int lines)                                            \
    {                                                                                              \
        return FOLDS_##real(products_##sums_of##_##half(kept, query, lines),                       \
            products_##sums_of##_##half(kept + half * lines * LINE, query, lines),                 \
            COUNT_##real / k);                                                                     \
    }

SUMS(float)
SUMS(double)

/* The sums of k boxes. `keys` names what cells hold. A line of keys is widened to one or more lines
   of numbers; `lines` counts the lines of numbers. */
#define GROUP(keys, real, k, half)                                                                 \
    ALWAYS_INLINE Sums_##real group_##keys##_##k(                                                  \
        Parts parts, const char *query, char *kept, int lines)                                     \
    {                                                                                              \
        Sums_##real a = group_##keys##_##half(parts, query, kept, lines);                          \
        parts.first += half * parts.step;                                                          \
        parts.second += half * parts.step;                                                         \
        Sums_##real b =                                                                            \
            group_##keys##_##half(parts, query, kept ? kept + half * lines * LINE : NULL, lines);  \
        a.squares = FOLDS_##real(a.squares, b.squares, COUNT_##real / k);                          \
        a.products = FOLDS_##real(a.products, b.products, COUNT_##real / k);                       \
        return a;                                                                                  \
    }

/* Writes the sums of k boxes: of squares, and `n` numbers further of products, for each query. */
#define BLOCK(keys, sums_of, real, k)                                                              \
    ALWAYS_INLINE void block_##keys##_##k(Parts parts, const char *queries, ptrdiff_t n_queries,   \
        ptrdiff_t n, real *out, int lines, int keep)                                               \
    {                                                                                              \
        char kept[k * MOST_LINES * LINE] __attribute__((aligned(LINE)));                           \
        Sums_##real sums = group_##keys##_##k(parts, queries, keep ? kept : NULL, lines);          \
        store_sums_##real(out, sums.squares, k);                                                   \
        store_sums_##real(out + n, scaled_##sums_of(sums.products, queries, lines), k);            \
        for (ptrdiff_t i = 1; keep && i < n_queries; i++) {                                        \
            queries += query_size_##sums_of(lines);                                                \
            store_sums_##real(out + (i + 1) * n,                                                   \
                scaled_##sums_of(products_##sums_of##_##k(kept, queries, lines), queries, lines),  \
                k);                                                                                \
        }                                                                                          \
    }

#define IF_REST(keys, real, k)                                                                     \
    if (COUNT_##real > k && (n & k)) {                                                             \
        block_##keys##_##k(parts, queries, n_queries, n, out + at, lines, keep);                   \
        parts.first += k * parts.step;                                                             \
        parts.second += k * parts.step;                                                            \
        at += k;                                                                                   \
    }

#define WIDENED_SUMS(keys, real, ratio)                                                            \
    ALWAYS_INLINE Sums_##real group_##keys##_1(                                                    \
        Parts parts, const char *query, char *kept, int lines)                                     \
    {                                                                                              \
        Line squares = {{{0}}}, products = {{{0}}};                                                \
        UNROLLED for (int i = 0; i < lines / ratio; i++) {                                         \
            const Line maxima = larger_##keys(                                                     \
                load_line(parts.first + i * LINE), load_line(parts.second + i * LINE));            \
            UNROLLED for (int j = 0; j < ratio; j++) {                                             \
                const Line numbers = numbers_##keys(maxima, j);                                    \
                if (kept)                                                                          \
                    store_line(kept + (i * ratio + j) * LINE, numbers);                            \
                squares = add_products_##real(numbers, numbers, squares);                          \
                products = add_products_##real(                                                    \
                    numbers, load_line(query + (i * ratio + j) * LINE), products);                 \
            }                                                                                      \
        }                                                                                          \
        return (Sums_##real){FOLDED(squares, real), FOLDED(products, real)};                       \
    }

#define SCORES(keys, sums_of, real, all, most)                                                     \
    GROUP(keys, real, 2, 1)                                                                        \
    GROUP(keys, real, 4, 2)                                                                        \
    GROUP(keys, real, 8, 4)                                                                        \
    GROUP(keys, real, 16, 8)                                                                       \
    BLOCK(keys, sums_of, real, 1)                                                                  \
    BLOCK(keys, sums_of, real, 2)                                                                  \
    BLOCK(keys, sums_of, real, 4)                                                                  \
    BLOCK(keys, sums_of, real, 8)                                                                  \
    BLOCK(keys, sums_of, real, 16)                                                                 \
    ALWAYS_INLINE void run_##keys(Parts parts, ptrdiff_t n, const char *queries,                   \
        ptrdiff_t n_queries, real *out, int lines, int keep)                                       \
    {                                                                                              \
        ptrdiff_t at = 0;                                                                          \
        for (; at + COUNT_##real <= n; at += COUNT_##real) {                                       \
            block_##keys##_##all(parts, queries, n_queries, n, out + at, lines, keep);             \
            parts.first += COUNT_##real * parts.step;                                              \
            parts.second += COUNT_##real * parts.step;                                             \
        }                                                                                          \
        IF_REST(keys, real, 8)                                                                     \
        IF_REST(keys, real, 4)                                                                     \
        IF_REST(keys, real, 2)                                                                     \
        IF_REST(keys, real, 1)                                                                     \
    }                                                                                              \
    static void score_##keys(Parts parts, ptrdiff_t n, const char *queries, ptrdiff_t n_queries,   \
        void *out, int lines)                                                                      \
    {                                                                                              \
        if (lines != most)                                                                         \
            run_##keys(parts, n, queries, n_queries, out, lines, 1);                               \
        else if (n_queries == 1)                                                                   \
            run_##keys(parts, n, queries, 1, out, most, 0);                                        \
        else                                                                                       \
            run_##keys(parts, n, queries, n_queries, out, most, 1);                                \
    }

#define COMBINE(keys)                                                                              \
    static void combine_##keys(char *out, const char *a, const char *b, ptrdiff_t size)            \
    {                                                                                              \
        for (ptrdiff_t i = 0; i < size; i += LINE)                                                 \
            store_line(out + i, larger_##keys(load_line(a + i), load_line(b + i)));                \
    }

/* What cells hold: numbers; or keys, bits of the dtype in the order of the values. */
#define larger_floats larger_numbers_float
#define larger_doubles larger_numbers_double
#define larger_halves larger_16
#define larger_brains larger_16
#define larger_int8s larger_8
#define numbers_floats(line, i) (line)
#define numbers_doubles(line, i) (line)

ALWAYS_INLINE Line larger_uint8s(Line a, Line b)
{
    typedef uint8_t Values __attribute__((vector_size(REGISTER)));
    UNROLLED for (int i = 0; i < PARTS; i++) {
        Values x = (Values)a.part[i], y = (Values)b.part[i];
        for (int j = 0; j < REGISTER; j++)
            x[j] = y[j] > x[j] ? y[j] : x[j];
        a.part[i] = (Register)x;
    }
    return a;
}

#if REGISTER == 64
ALWAYS_INLINE __m256i half_of(Line line, int i)
{
    const __m512i keys = (__m512i)line.part[0];
    return i ? _mm512_extracti64x4_epi64(keys, 1) : _mm512_castsi512_si256(keys);
}

ALWAYS_INLINE __m128i quarter_of(Line line, int i)
{
    const __m256i keys = half_of(line, i / 2);
    return i % 2 ? _mm256_extracti128_si256(keys, 1) : _mm256_castsi256_si128(keys);
}

#define LINE_OF_FLOATS(numbers) ((Line){{(Register)(numbers)}})
#define numbers_halves(line, i)                                                                    \
    LINE_OF_FLOATS(_mm512_cvtph_ps(half_of(decode_line_16(line, 0), i)))
#define numbers_brains(line, i)                                                                    \
    LINE_OF_FLOATS(                                                                                \
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(half_of(decode_line_16(line, 0), i)), 16))
#define numbers_uint8s(line, i)                                                                    \
    LINE_OF_FLOATS(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(quarter_of(line, i))))
#define numbers_int8s(line, i)                                                                     \
    LINE_OF_FLOATS(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(quarter_of(line, i))))
#else
/* Widens the keys of a line from the 16 * i-th on. */
#define WIDENED(keys, key_t, decoded)                                                              \
    ALWAYS_INLINE Line numbers_##keys(Line line, int i)                                            \
    {                                                                                              \
        key_t keys[LINE / sizeof(key_t)];                                                          \
        float numbers[LINE / sizeof(float)];                                                       \
        memcpy(keys, &line, LINE);                                                                 \
        for (int j = 0; j < 16; j++) {                                                             \
            const key_t key = keys[16 * i + j];                                                    \
            numbers[j] = decoded;                                                                  \
        }                                                                                          \
        return load_line(numbers);                                                                 \
    }

WIDENED(halves, int16_t, number_of_half((uint16_t)ENCODED(key, 16, INT16_MAX, 0)))
WIDENED(brains, int16_t, number_of_bits((uint32_t)(uint16_t)ENCODED(key, 16, INT16_MAX, 0) << 16))
WIDENED(uint8s, uint8_t, key)
WIDENED(int8s, int8_t, key)
#endif

#define query_size_float(lines) ((lines) * LINE)
#define query_size_double(lines) ((lines) * LINE)
#define scaled_float(products, query, lines) (products)
#define scaled_double(products, query, lines) (products)

#if REGISTER == 64
#define SCORES_OF_FLOATS(keys, sums_of, most) SCORES(keys, sums_of, float, 16, most)
#define SCORES_OF_DOUBLES(keys, most) SCORES(keys, double, double, 8, most)
#elif REGISTER == 32
#define SCORES_OF_FLOATS(keys, sums_of, most) SCORES(keys, sums_of, float, 8, most)
#define SCORES_OF_DOUBLES(keys, most) SCORES(keys, double, double, 4, most)
#else
#define SCORES_OF_FLOATS(keys, sums_of, most) SCORES(keys, sums_of, float, 4, most)
#define SCORES_OF_DOUBLES(keys, most) SCORES(keys, double, double, 2, most)
#endif
#define SCORES_OF_WIDENED(keys, ratio)                                                             \
    WIDENED_SUMS(keys, float, ratio)                                                               \
    SCORES_OF_FLOATS(keys, float, MOST_LINES)                                                      \
    COMBINE(keys)

SCORES_OF_WIDENED(floats, 1)
SCORES_OF_WIDENED(halves, 2)
SCORES_OF_WIDENED(brains, 2)
SCORES_OF_WIDENED(uint8s, 4)
SCORES_OF_WIDENED(int8s, 4)
WIDENED_SUMS(doubles, double, 1)
SCORES_OF_DOUBLES(doubles, MOST_LINES)
COMBINE(doubles)

/* Products of bytes, in integers. An element of a query is DIGITS signed bytes, the highest first,
   of which each has a line for each line of keys. A last line begins with what products are
   multiplied by, a power of 2. */
#define DIGITS 3
#define DIGIT_LINES 4 /* of keys in a cell, at most */

#if REGISTER == 64
static int rmac_has_byte_products(void)
{
    __builtin_cpu_init();
    return !!__builtin_cpu_supports("avx512vnni");
}

/* Adds the products of 4 neighbouring bytes, of a without and of b with a sign. */
ALWAYS_INLINE __m512i add_byte_products(__m512i sums, __m512i a, __m512i b)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums) : "v"(a), "v"(b));
    return sums;
}

ALWAYS_INLINE Numbers_float sum_of_digits(const __m512i *digits)
{
    const __m512i high = _mm512_add_epi32(_mm512_slli_epi32(digits[0], 8), digits[1]);
    const __m512 scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(256));
    return (Numbers_float)_mm512_add_ps(scaled, _mm512_cvtepi32_ps(digits[2]));
}

ALWAYS_INLINE Numbers_float products_digits_1(const char *kept, const char *query, int lines)
{
    __m512i digits[DIGITS] = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
    UNROLLED for (int i = 0; i < lines; i++)
        UNROLLED for (int j = 0; j < DIGITS; j++)
            digits[j] = add_byte_products(digits[j], _mm512_loadu_si512(kept + i * LINE),
                _mm512_loadu_si512(query + (j * lines + i) * LINE));
    return sum_of_digits(digits);
}

/* A square is value * (value - 128) + 128 * value, as one factor must be a signed byte. */
ALWAYS_INLINE Sums_float group_digits_1(Parts parts, const char *query, char *kept, int lines)
{
    const __m512i zero = _mm512_setzero_si512(), ones = _mm512_set1_epi8(1);
    const __m512i sign = _mm512_set1_epi8(-128);
    __m512i squares = zero, values = zero, digits[DIGITS] = {zero, zero, zero};
    UNROLLED for (int i = 0; i < lines; i++) {
        const __m512i maxima = _mm512_max_epu8(_mm512_loadu_si512(parts.first + i * LINE),
            _mm512_loadu_si512(parts.second + i * LINE));
        if (kept)
            _mm512_storeu_si512(kept + i * LINE, maxima);
        squares = add_byte_products(squares, maxima, _mm512_xor_si512(maxima, sign));
        values = add_byte_products(values, maxima, ones);
        UNROLLED for (int j = 0; j < DIGITS; j++)
            digits[j] = add_byte_products(
                digits[j], maxima, _mm512_loadu_si512(query + (j * lines + i) * LINE));
    }
    squares = _mm512_add_epi32(squares, _mm512_slli_epi32(values, 7));
    return (Sums_float){(Numbers_float)_mm512_cvtepi32_ps(squares), sum_of_digits(digits)};
}

ALWAYS_INLINE Numbers_float scaled_digits(Numbers_float products, const char *query, int lines)
{
    float scale;
    memcpy(&scale, query + DIGITS * lines * LINE, sizeof(scale));
    return products * scale;
}

#define query_size_digits(lines) ((DIGITS * (lines) + 1) * LINE)
PRODUCTS(digits, float, 2, 1)
PRODUCTS(digits, float, 4, 2)
PRODUCTS(digits, float, 8, 4)
PRODUCTS(digits, float, 16, 8)
SCORES_OF_FLOATS(digits, digits, DIGIT_LINES)
#else
#define score_digits score_uint8s /* never called */
static int rmac_has_byte_products(void) { return 0; }
#endif

/* What the cells of a table hold, and the functions for it. */
typedef void CombineCells(char *out, const char *a, const char *b, ptrdiff_t size);
typedef void ScoreBoxes(Parts parts, ptrdiff_t n, const char *queries, ptrdiff_t n_queries,
    void *out, int lines);
typedef struct {
    CombineCells *combine;
    ScoreBoxes *score;
} Cells;

static const Cells cells_of_floats = {combine_floats, score_floats};
static const Cells cells_of_doubles = {combine_doubles, score_doubles};
static const Cells cells_of_digits = {combine_uint8s, score_digits}; /* uint8s by digits of queries */
/* By the number of the dtype, see tables.pxd. */
static const Cells cells_of_kind[] = {
    [1] = {combine_uint8s, score_uint8s},
    [2] = {combine_int8s, score_int8s},
    [3] = {combine_halves, score_halves},
    [4] = {combine_brains, score_brains},
    [5] = {combine_floats, score_floats},
    [6] = {combine_doubles, score_doubles},
};

/* Adds the sums of n boxes over all tiles, `stride` numbers apart, one tile after the other. */
#define TOTAL(real)                                                                                \
    static void total_##real(                                                                      \
        double *totals, const real *sums, ptrdiff_t stride, ptrdiff_t tiles, ptrdiff_t n)          \
    {                                                                                              \
        memset(totals, 0, n * sizeof(double));                                                     \
        for (ptrdiff_t tile = 0; tile < tiles; tile++)                                             \
            for (ptrdiff_t i = 0; i < n; i++)                                                      \
                totals[i] += sums[tile * stride + i];                                              \
    }

TOTAL(float)
TOTAL(double)

/* Turns sums of squares into lengths. */
static void find_lengths(double *squares, ptrdiff_t n)
{
    for (ptrdiff_t i = 0; i < n; i++)
        squares[i] = sqrt(squares[i]);
}

/* Turns products into scores, -inf where a box has none; returns the largest. */
static double find_scores(const double *lengths, double *products, ptrdiff_t n, int rounded)
{
    double best = -INFINITY;
    for (ptrdiff_t i = 0; i < n; i++) {
        double score = lengths[i] > 0 ? products[i] / lengths[i] : 0.0;
        score = rounded ? (float)score : score;
        products[i] = lengths[i] < INFINITY ? score : -INFINITY;
    }
    for (ptrdiff_t i = 0; i < n; i++)
        best = products[i] > best ? products[i] : best;
    return best;
}

/* Sums have the type of the last argument. */
#define total_sums(totals, sums, stride, tiles, n, like)                                           \
    _Generic((like), float: total_float, double: total_double)(totals, sums, stride, tiles, n)
