/* A line is as many keys as a vector register holds, as one value, which compilers then keep in
   such a register. The last argument of what is done to it tells the type of the keys. */

#include <stdint.h>
#include <string.h>

#if defined(__AVX512BW__)
#define LINE 64
#elif defined(__AVX2__)
#define LINE 32
#else
#define LINE 16
#endif

#if defined(__GNUC__)
typedef int64_t Line __attribute__((vector_size(LINE), aligned(1), may_alias));
#define prefetch_line(data) __builtin_prefetch(data, 0, 2)
#else
typedef struct { char bytes[LINE]; } Line;
#define prefetch_line(data)
#endif

#define load_line(keys) (*(const Line *)(keys))
#define store_line(keys, line) (*(Line *)(keys) = (line))

#define KEYED(call, like)                                                                          \
    _Generic((like), int8_t: call##_8, int16_t: call##_16, int32_t: call##_32, int64_t: call##_64)
#define larger(a, b, like) KEYED(larger, like)(a, b)
#define encode_line(bits, shift) KEYED(encode_line, shift)(bits, shift)
#define decode_line(keys, shift) KEYED(decode_line, shift)(keys, shift)
#define encode(bits, shift) KEYED(encode, shift)(bits, shift)

/* `turned` has the bits that put negative floats in order; integers, here of 8 bits, have none. */
#define ENCODED(value, bits, turned, shift)                                                        \
    (((value) ^ (((value) >> (bits - 1)) & (turned))) - (shift))
#define DECODED(key, bits, turned, shift)                                                          \
    (((key) + (shift)) ^ ((((key) + (shift)) >> (bits - 1)) & (turned)))

/* gcc makes one instruction of a maximum that is a loop over keys, where there is such a one, and
   two of vector expressions; clang makes one of those. */
#if defined(__GNUC__) && !defined(__clang__)
#define MAXIMUM_LOOPS(bits) (bits < 64 || LINE == 64)
#else
#define MAXIMUM_LOOPS(bits) 0
#endif

#if defined(__GNUC__)
#define LINE_OF(bits, key_t, turned)                                                               \
    typedef key_t Keys_##bits __attribute__((vector_size(LINE)));                                  \
    static inline Line encode_line_##bits(Line line, key_t shift)                                  \
    {                                                                                              \
        return (Line)ENCODED((Keys_##bits)line, bits, (key_t)turned, shift);                       \
    }                                                                                              \
    static inline Line decode_line_##bits(Line line, key_t shift)                                  \
    {                                                                                              \
        return (Line)DECODED((Keys_##bits)line, bits, (key_t)turned, shift);                       \
    }                                                                                              \
    static inline Line larger_##bits(Line a, Line b)                                               \
    {                                                                                              \
        Keys_##bits x = (Keys_##bits)a, y = (Keys_##bits)b;                                        \
        if (MAXIMUM_LOOPS(bits)) {                                                                 \
            for (int i = 0; i < LINE * 8 / bits; i++)                                              \
                x[i] = y[i] > x[i] ? y[i] : x[i];                                                  \
            return (Line)x;                                                                        \
        }                                                                                          \
        Keys_##bits first = (Keys_##bits)(x > y);                                                  \
        return (Line)((x & first) | (y & ~first));                                                 \
    }
#else
#define LINE_OF(bits, key_t, turned)                                                               \
    typedef struct { key_t at[LINE * 8 / bits]; } Keys_##bits;                                     \
    static inline Line encode_line_##bits(Line line, key_t shift)                                  \
    {                                                                                              \
        Keys_##bits keys;                                                                          \
        memcpy(&keys, &line, LINE);                                                                \
        for (int i = 0; i < LINE * 8 / bits; i++)                                                  \
            keys.at[i] = (key_t)ENCODED(keys.at[i], bits, turned, shift);                          \
        memcpy(&line, &keys, LINE);                                                                \
        return line;                                                                               \
    }                                                                                              \
    static inline Line decode_line_##bits(Line line, key_t shift)                                  \
    {                                                                                              \
        Keys_##bits keys;                                                                          \
        memcpy(&keys, &line, LINE);                                                                \
        for (int i = 0; i < LINE * 8 / bits; i++)                                                  \
            {                                                                                          \
            key_t value = (key_t)(keys.at[i] + shift);                                             \
            keys.at[i] = (key_t)(value ^ ((value >> (bits - 1)) & turned));                        \
        }                                                                                          \
        memcpy(&line, &keys, LINE);                                                                \
        return line;                                                                               \
    }                                                                                              \
    static inline Line larger_##bits(Line a, Line b)                                               \
    {                                                                                              \
        Keys_##bits x, y;                                                                          \
        memcpy(&x, &a, LINE);                                                                      \
        memcpy(&y, &b, LINE);                                                                      \
        for (int i = 0; i < LINE * 8 / bits; i++)                                                  \
            x.at[i] = y.at[i] > x.at[i] ? y.at[i] : x.at[i];                                       \
        memcpy(&a, &x, LINE);                                                                      \
        return a;                                                                                  \
    }
#endif

#define SCALAR_OF(bits, key_t, turned)                                                             \
    static inline key_t encode_##bits(key_t value, key_t shift)                                    \
    {                                                                                              \
        return (key_t)ENCODED(value, bits, turned, shift);                                         \
    }                                                                                              \
    LINE_OF(bits, key_t, turned)

SCALAR_OF(8, int8_t, 0)
SCALAR_OF(16, int16_t, INT16_MAX)
SCALAR_OF(32, int32_t, INT32_MAX)
SCALAR_OF(64, int64_t, INT64_MAX)
