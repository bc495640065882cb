/* A line is as many keys as a vector register holds, as one value, which compilers then keep in
   such a register. What is done to it is written as loops over its keys, a constant number, which
   they turn into vector instructions. `like` and `shift` tell the type of the keys. */

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
#define decode(key, shift) KEYED(decode, shift)(key, shift)

/* `turned` has the bits that put negative floats in order; integers, here of 8 bits, have none. */
#define LINE_OF(bits, key_t, turned)                                                               \
    static inline key_t encode_##bits(key_t value, key_t shift)                                    \
    {                                                                                              \
        return (key_t)((value ^ ((value >> (bits - 1)) & turned)) - shift);                        \
    }                                                                                              \
    static inline key_t decode_##bits(key_t key, key_t shift)                                      \
    {                                                                                              \
        key_t value = (key_t)(key + shift);                                                        \
        return (key_t)(value ^ ((value >> (bits - 1)) & turned));                                  \
    }                                                                                              \
    static inline Line encode_line_##bits(Line line, key_t shift)                                  \
    {                                                                                              \
        key_t keys[LINE / sizeof(key_t)];                                                          \
        memcpy(keys, &line, LINE);                                                                 \
        for (int i = 0; i < (int)(LINE / sizeof(key_t)); i++)                                      \
            keys[i] = encode_##bits(keys[i], shift);                                               \
        memcpy(&line, keys, LINE);                                                                 \
        return line;                                                                               \
    }                                                                                              \
    static inline Line decode_line_##bits(Line line, key_t shift)                                  \
    {                                                                                              \
        key_t keys[LINE / sizeof(key_t)];                                                          \
        memcpy(keys, &line, LINE);                                                                 \
        for (int i = 0; i < (int)(LINE / sizeof(key_t)); i++)                                      \
            keys[i] = decode_##bits(keys[i], shift);                                               \
        memcpy(&line, keys, LINE);                                                                 \
        return line;                                                                               \
    }                                                                                              \
    static inline Line larger_##bits(Line a, Line b)                                               \
    {                                                                                              \
        key_t keys[LINE / sizeof(key_t)], other[LINE / sizeof(key_t)];                             \
        memcpy(keys, &a, LINE);                                                                    \
        memcpy(other, &b, LINE);                                                                   \
        for (int i = 0; i < (int)(LINE / sizeof(key_t)); i++)                                      \
            keys[i] = other[i] > keys[i] ? other[i] : keys[i];                                     \
        memcpy(&a, keys, LINE);                                                                    \
        return a;                                                                                  \
    }

LINE_OF(8, int8_t, 0)
LINE_OF(16, int16_t, INT16_MAX)
LINE_OF(32, int32_t, INT32_MAX)
LINE_OF(64, int64_t, INT64_MAX)
