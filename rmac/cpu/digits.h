/* Sums of bytes, in integers: squares, and products with queries whose elements are split into bytes.
   Part of scores.h. */

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

/* An element of a query is split into DIGITS signed bytes. The lines of a query hold the highest byte of
   all elements, then the next byte of all, then the lowest. A last line begins with the number that
   products are multiplied by, a power of 2. */
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

ALWAYS_INLINE void add_digits(__m512i *digits, __m512i maxima, const char *query, int lines)
{
    UNROLLED for (int i = 0; i < DIGITS; i++)
        digits[i] = add_byte_products(
            digits[i], maxima, _mm512_loadu_si512(query + i * lines * LINE));
}

/* A square is value * (value - 128) + 128 * value, as one factor must be a signed byte. */
ALWAYS_INLINE void sum_box_digits(const char *first, const char *second, const char *query,
    char *kept, int lines, Numbers_float *square, Numbers_float *product)
{
    const __m512i sign = _mm512_set1_epi8(-128), ones = _mm512_set1_epi8(1);
    __m512i squares = {0}, values = {0}, digits[DIGITS] = {{0}};
    UNROLLED for (int i = 0; i < lines; i++) {
        const __m512i maxima = _mm512_max_epu8(
            _mm512_loadu_si512(first + i * LINE), _mm512_loadu_si512(second + i * LINE));
        if (kept)
            _mm512_storeu_si512(kept + i * LINE, maxima);
        squares = add_byte_products(squares, maxima, _mm512_xor_si512(maxima, sign));
        values = add_byte_products(values, maxima, ones);
        add_digits(digits, maxima, query + i * LINE, lines);
    }
    squares = _mm512_add_epi32(squares, _mm512_slli_epi32(values, 7));
    *square = (Numbers_float)_mm512_cvtepi32_ps(squares);
    *product = sum_of_digits(digits);
}

ALWAYS_INLINE void multiply_boxes_digits(
    const char *kept, const char *query, int lines, int boxes, Numbers_float *sums)
{
    __m512i digits[AT_ONCE][DIGITS] = {{{0}}};
    UNROLLED for (int i = 0; i < lines; i++)
        UNROLLED for (int j = 0; j < boxes; j++)
            add_digits(digits[j], _mm512_loadu_si512(kept + (j * lines + i) * LINE),
                query + i * LINE, lines);
    UNROLLED for (int j = 0; j < boxes; j++)
        sums[j] = sum_of_digits(digits[j]);
}

ALWAYS_INLINE void scale_digits(float *products, int k, const char *query, int lines)
{
    float scale;
    memcpy(&scale, query + DIGITS * lines * LINE, sizeof(scale));
    for (int i = 0; i < k; i++)
        products[i] *= scale;
}

#define query_size_digits(lines) ((DIGITS * (lines) + 1) * LINE)
SCORES(digits, float, DIGIT_LINES)
#else
#define score_digits score_floats /* never called */
static int rmac_has_byte_products(void) { return 0; }
#endif

