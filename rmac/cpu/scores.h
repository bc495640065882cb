/* Maxima of boxes, and their sums of squares and of products with queries.

   A cell is a few lines of numbers, one for each channel of a tile. No number is a NaN: packing made
   them infinite. The numbers of a line are summed in a tree of fixed shape, whatever the registers,
   so that a sum depends on its numbers alone. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "widen.h"

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

#include "folds.h"

/* Makes compilers load a value once where it is used more often: loads are what limits products.
   Without this, gcc with AVX2 loads the query for each box, and 16 queries of 2048x24x32 take 1.3
   times as long. */
#if REGISTER == 64
#define KEPT_IN_REGISTER(value) __asm__("" : "+v"(value))
#elif defined(__x86_64__)
#define KEPT_IN_REGISTER(value) __asm__("" : "+x"(value))
#elif defined(__aarch64__)
#define KEPT_IN_REGISTER(value) __asm__("" : "+w"(value))
#else
#define KEPT_IN_REGISTER(value) (void)0
#endif

/* Boxes are `step` bytes apart in each of the two parts that they are combined from. */
typedef struct {
    const char *first, *second;
    ptrdiff_t step;
} Parts;

#define MOST_LINES 8 /* of numbers, in a cell */
#define AT_ONCE 4    /* boxes whose kept maxima are multiplied by a query together */

#define SUMS(real)                                                                                 \
    enum { COUNT_##real = REGISTER / sizeof(real) }; /* boxes of a block */                        \
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
    /* Writes the sums of k boxes. Each has a register of numbers that are still to be added. */   \
    ALWAYS_INLINE void write_sums_##real(real *out, Numbers_##real *sums, int k)                   \
    {                                                                                              \
        for (int i = k; i < COUNT_##real; i++)                                                     \
            sums[PLACE(i, COUNT_##real)] = (Numbers_##real){0};                                    \
        fold_##real(sums);                                                                         \
        if (k == COUNT_##real)                                                                     \
            memcpy(out, sums, REGISTER);                                                           \
        int at = 0;                                                                                \
        STORE_PART(real, 8)                                                                        \
        STORE_PART(real, 4)                                                                        \
        STORE_PART(real, 2)                                                                        \
        STORE_PART(real, 1)                                                                        \
    }

/* In parts of fixed size: a copy of any size is a call, which takes longer than the sums of a box. */
#define STORE_PART(real, size)                                                                     \
    if (COUNT_##real > size && (k & size)) {                                                       \
        memcpy(out + at, (const real *)sums + at, size * sizeof(real));                            \
        at += size;                                                                                \
    }

SUMS(float)
SUMS(double)

/* Of one box, the sums of squares and of products with a query. The maxima are kept, if they are
   multiplied by more queries. */
#define SUM_BOX(keys, real)                                                                        \
    ALWAYS_INLINE void sum_box_##keys(const char *first, const char *second, const char *query,    \
        char *kept, int lines, Numbers_##real *square, Numbers_##real *product)                    \
    {                                                                                              \
        Line squares = {{{0}}}, products = {{{0}}};                                                \
        UNROLLED for (int i = 0; i < lines; i++) {                                                 \
            const Line maxima =                                                                    \
                larger_numbers_##real(load_line(first + i * LINE), load_line(second + i * LINE));  \
            if (kept)                                                                              \
                store_line(kept + i * LINE, maxima);                                               \
            squares = add_products_##real(maxima, maxima, squares);                                \
            products = add_products_##real(maxima, load_line(query + i * LINE), products);         \
        }                                                                                          \
        *square = FOLDED(squares, real);                                                           \
        *product = FOLDED(products, real);                                                         \
    }

/* Of some boxes, the sums of products of the kept maxima with a query. */
#define MULTIPLY_BOXES(keys, real)                                                                 \
    ALWAYS_INLINE void multiply_boxes_##keys(                                                      \
        const char *kept, const char *query, int lines, int boxes, Numbers_##real *sums)           \
    {                                                                                              \
        Line products[AT_ONCE];                                                                    \
        UNROLLED for (int i = 0; i < PARTS; i++) {                                                 \
            Numbers_##real part[AT_ONCE] = {{0}};                                                  \
            UNROLLED for (int at = i * REGISTER; at < lines * LINE; at += LINE) {                  \
                Register factor = *(const Register *)(query + at);                                 \
                KEPT_IN_REGISTER(factor);                                                          \
                UNROLLED for (int j = 0; j < boxes; j++)                                           \
                    part[j] = FMA_##real(                                                          \
                        (Numbers_##real)*(const Register *)(kept + j * lines * LINE + at),         \
                        (Numbers_##real)factor, part[j]);                                          \
            }                                                                                      \
            UNROLLED for (int j = 0; j < boxes; j++)                                               \
                products[j].part[i] = (Register)part[j];                                           \
        }                                                                                          \
        UNROLLED for (int j = 0; j < boxes; j++)                                                   \
            sums[j] = FOLDED(products[j], real);                                                   \
    }

/* Writes the sums of n boxes: of squares, and `n` numbers further of products, for each query. A
   block of boxes at a time fills a register when its numbers are added. `keys` names what cells
   hold. */
#define SCORES(keys, real, most)                                                                   \
    ALWAYS_INLINE void multiply_block_##keys(                                                      \
        const char *kept, int k, const char *query, real *out, int lines)                          \
    {                                                                                              \
        Numbers_##real sums[COUNT_##real], some[AT_ONCE];                                          \
        int i = 0;                                                                                 \
        for (; i + AT_ONCE <= k; i += AT_ONCE) {                                                   \
            multiply_boxes_##keys(kept + i * lines * LINE, query, lines, AT_ONCE, some);           \
            for (int j = 0; j < AT_ONCE; j++)                                                      \
                sums[PLACE(i + j, COUNT_##real)] = some[j];                                        \
        }                                                                                          \
        for (; i < k; i++)                                                                         \
            multiply_boxes_##keys(                                                                 \
                kept + i * lines * LINE, query, lines, 1, sums + PLACE(i, COUNT_##real));          \
        write_sums_##real(out, sums, k);                                                           \
        scale_##keys(out, k, query, lines);                                                        \
    }                                                                                              \
    ALWAYS_INLINE void run_##keys(Parts parts, ptrdiff_t n, const char *queries,                   \
        ptrdiff_t n_queries, real *out, int lines, int keep)                                       \
    {                                                                                              \
        char kept[COUNT_##real * MOST_LINES * LINE] __attribute__((aligned(LINE)));                \
        Numbers_##real squares[COUNT_##real], products[COUNT_##real];                              \
        for (ptrdiff_t at = 0; at < n; at += COUNT_##real) {                                       \
            const int k = n - at < COUNT_##real ? n - at : COUNT_##real;                           \
            for (int i = 0; i < k; i++) {                                                          \
                const int place = PLACE(i, COUNT_##real);                                          \
                sum_box_##keys(parts.first, parts.second, queries,                                 \
                    keep ? kept + i * lines * LINE : NULL, lines, squares + place,                 \
                    products + place);                                                             \
                parts.first += parts.step;                                                         \
                parts.second += parts.step;                                                        \
            }                                                                                      \
            write_sums_##real(out + at, squares, k);                                               \
            write_sums_##real(out + n + at, products, k);                                          \
            scale_##keys(out + n + at, k, queries, lines);                                         \
            for (ptrdiff_t i = 1; keep && i < n_queries; i++)                                      \
                multiply_block_##keys(kept, k, queries + i * query_size_##keys(lines),             \
                    out + (i + 1) * n + at, lines);                                                \
        }                                                                                          \
    }                                                                                              \
    static void score_##keys(Parts parts, ptrdiff_t n, const char *queries, ptrdiff_t n_queries,   \
        void *out, int lines)                                                                      \
    {                                                                                              \
        if (lines != most)                                                                         \
            run_##keys(parts, n, queries, n_queries, out, lines, n_queries > 1);                   \
        else if (n_queries == 1)                                                                   \
            run_##keys(parts, n, queries, 1, out, most, 0);                                        \
        else                                                                                       \
            run_##keys(parts, n, queries, n_queries, out, most, 1);                                \
    }

#define query_size_floats(lines) ((lines) * LINE)
#define query_size_doubles(lines) ((lines) * LINE)
#define scale_floats(products, k, query, lines) (void)0
#define scale_doubles(products, k, query, lines) (void)0
#define SCORES_OF_NUMBERS(keys, real)                                                              \
    SUM_BOX(keys, real)                                                                            \
    MULTIPLY_BOXES(keys, real)                                                                     \
    SCORES(keys, real, MOST_LINES)

SCORES_OF_NUMBERS(floats, float)
SCORES_OF_NUMBERS(doubles, double)

#include "digits.h"
#include "tiles.h"

/* The sums of boxes of doubles of any size. A cell holds all channels, so that the maxima of a box can
   have a common scale: a power of 2, which changes neither digits nor scores. This takes longer than
   `score_doubles`, and is for the few maps that need it. */
ALWAYS_INLINE double wide_maximum(const char *first, const char *second, ptrdiff_t i)
{
    const double a = ((const double *)first)[i], b = ((const double *)second)[i];
    return a > b ? a : b;
}

ALWAYS_INLINE double scale_of_box(const char *first, const char *second, ptrdiff_t lanes)
{
    double peak = 0;
    for (ptrdiff_t i = 0; i < lanes; i++) {
        const double size = fabs(wide_maximum(first, second, i));
        peak = size > peak ? size : peak;
    }
    return peak < 0x1p-450 ? 0x1p600 : peak > 0x1p450 ? 0x1p-600 : 1;
}

static void score_wide_doubles(Parts parts, ptrdiff_t n, const char *queries, ptrdiff_t n_queries,
    void *out, int lines)
{
    const ptrdiff_t lanes = (ptrdiff_t)lines * (LINE / sizeof(double));
    double *sums = out;
    for (ptrdiff_t box = 0; box < n; box++) {
        const double scale = scale_of_box(parts.first, parts.second, lanes);
        double squares = 0;
        for (ptrdiff_t i = 0; i < lanes; i++) {
            const double number = wide_maximum(parts.first, parts.second, i) * scale;
            squares += number * number;
        }
        sums[box] = squares;
        for (ptrdiff_t k = 0; k < n_queries; k++) {
            const double *query = (const double *)queries + k * lanes;
            double products = 0;
            for (ptrdiff_t i = 0; i < lanes; i++)
                products += wide_maximum(parts.first, parts.second, i) * scale * query[i];
            sums[(1 + k) * n + box] = products;
        }
        parts.first += parts.step;
        parts.second += parts.step;
    }
}

/* The larger of two rows of cells. */
#define COMBINE(keys, larger_keys)                                                                 \
    static void combine_##keys(char *out, const char *a, const char *b, ptrdiff_t size)            \
    {                                                                                              \
        for (ptrdiff_t i = 0; i < size; i += LINE)                                                 \
            store_line(out + i, larger_keys(load_line(a + i), load_line(b + i)));                  \
    }

COMBINE(floats, larger_numbers_float)
COMBINE(doubles, larger_numbers_double)
COMBINE(halves, larger_16) /* bfloat16 too */
COMBINE(int8s, larger_8)
COMBINE(uint8s, larger_uint8s)

/* The larger of two rows of cells, as floats. Cells of a row are in several boxes: to make floats of
   a row takes less time than of the maxima of each box. */
#define WIDEN(keys, key_t, larger_keys, decoded, widen)                                            \
    static void widen_row_of_##keys(char *out, const char *a, const char *b, ptrdiff_t size)       \
    {                                                                                              \
        enum { COUNT = LINE / sizeof(key_t) };                                                     \
        key_t values[COUNT] __attribute__((aligned(LINE)));                                        \
        for (ptrdiff_t i = 0; i < size; i += LINE) {                                               \
            store_line(values, decoded(larger_keys(load_line(a + i), load_line(b + i))));          \
            hide_source(values);                                                                   \
            widen(values, (float *)(out + i * (sizeof(float) / sizeof(key_t))), COUNT, 0);         \
        }                                                                                          \
    }

#define decoded_halves(line) decode_line_16(line, 0)
#define as_they_are(line) (line)
WIDEN(halves, uint16_t, larger_16, decoded_halves, widen_halves)
WIDEN(brains, uint16_t, larger_16, decoded_halves, widen_brains)
WIDEN(uint8s, uint8_t, larger_uint8s, as_they_are, widen_uint8s)
WIDEN(int8s, int8_t, larger_8, as_they_are, widen_int8s)

/* What the cells of a table hold, and the functions for it: to make packed cells ready, to combine
   rows of the table, a row with another as floats (NULL: cells stay what they are), parts of a row,
   and boxes. */
typedef int MakeReady(void *cells, ptrdiff_t n);
typedef void CombineCells(char *out, const char *a, const char *b, ptrdiff_t size);
typedef void ScoreBoxes(Parts parts, ptrdiff_t n, const char *queries, ptrdiff_t n_queries,
    void *out, int lines);
typedef struct {
    MakeReady *make_ready;
    CombineCells *combine, *widen, *combine_row;
    ScoreBoxes *score;
} Cells;

static const Cells cells_of_floats = {
    make_ready_floats, combine_floats, NULL, combine_floats, score_floats};
static const Cells cells_of_wide_doubles = {make_ready_wide_doubles, combine_doubles, NULL,
    combine_doubles, score_wide_doubles};
/* uint8s by digits of queries */
static const Cells cells_of_digits = {
    make_ready_integers, combine_uint8s, NULL, combine_uint8s, score_digits};
/* By the number of the dtype, see tables.pxd. */
static const Cells cells_of_kind[] = {
    [1] = {make_ready_integers, combine_uint8s, widen_row_of_uint8s, combine_floats, score_floats},
    [2] = {make_ready_integers, combine_int8s, widen_row_of_int8s, combine_floats, score_floats},
    [3] = {make_ready_halves, combine_halves, widen_row_of_halves, combine_floats, score_floats},
    [4] = {make_ready_brains, combine_halves, widen_row_of_brains, combine_floats, score_floats},
    [5] = {make_ready_floats, combine_floats, NULL, combine_floats, score_floats},
    [6] = {make_ready_doubles, combine_doubles, NULL, combine_doubles, score_doubles},
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
