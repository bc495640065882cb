/* The instructions of AVX-512 that searches of boxes use, in C: so their code runs on any machine. */

#include <stdint.h>
#include <string.h>

#define REGISTER_OF(type) __attribute__((vector_size(64), may_alias)) type
typedef float REGISTER_OF(__m512);
typedef double REGISTER_OF(__m512d);
typedef long long REGISTER_OF(__m512i);
typedef int REGISTER_OF(Ints);
typedef uint8_t REGISTER_OF(Bytes);
typedef int8_t REGISTER_OF(SignedBytes);
typedef float Half __attribute__((vector_size(32)));

#define EACH(n) for (int i = 0; i < n; i++)
#define BINARY(name, type, as, n, expression)                                                      \
    static inline type name(type a, type b)                                                        \
    {                                                                                              \
        as x = (as)a, y = (as)b;                                                                   \
        EACH(n) x[i] = expression;                                                                 \
        return (type)x;                                                                            \
    }

BINARY(_mm512_max_ps, __m512, __m512, 16, x[i] > y[i] ? x[i] : y[i])
BINARY(_mm512_max_pd, __m512d, __m512d, 8, x[i] > y[i] ? x[i] : y[i])
BINARY(_mm512_max_epu8, __m512i, Bytes, 64, x[i] > y[i] ? x[i] : y[i])
BINARY(_mm512_add_epi32, __m512i, Ints, 16, x[i] + y[i])
BINARY(_mm512_xor_si512, __m512i, __m512i, 8, x[i] ^ y[i])
BINARY(_mm512_add_ps, __m512, __m512, 16, x[i] + y[i])
BINARY(_mm512_mul_ps, __m512, __m512, 16, x[i] * y[i])

static inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) { return a * b + c; }
static inline __m512d _mm512_fmadd_pd(__m512d a, __m512d b, __m512d c) { return a * b + c; }
static inline __m512i _mm512_slli_epi32(__m512i a, int bits) { return (__m512i)((Ints)a << bits); }

static inline __m512 _mm512_cvtepi32_ps(__m512i a)
{
    __m512 out;
    EACH(16) out[i] = ((Ints)a)[i];
    return out;
}

static inline Half _mm256_loadu_ps(const void *values)
{
    Half out;
    memcpy(&out, values, sizeof(out));
    return out;
}

static inline __m512d _mm512_cvtps_pd(Half a)
{
    __m512d out;
    EACH(8) out[i] = a[i];
    return out;
}

static inline __m512 _mm512_set1_ps(float value) { return value - (__m512){0}; }

static inline __m512i _mm512_set1_epi8(char value)
{
    __m512i out;
    memset(&out, value, sizeof(out));
    return out;
}

static inline __m512i _mm512_loadu_si512(const void *bytes)
{
    __m512i out;
    memcpy(&out, bytes, sizeof(out));
    return out;
}

static inline void _mm512_storeu_si512(void *bytes, __m512i a) { memcpy(bytes, &a, sizeof(a)); }

/* vpdpbusd */
static inline __m512i add_products_of_bytes(__m512i sums, __m512i a, __m512i b)
{
    Ints out = (Ints)sums;
    EACH(64) out[i / 4] += ((Bytes)a)[i] * ((SignedBytes)b)[i];
    return (__m512i)out;
}
