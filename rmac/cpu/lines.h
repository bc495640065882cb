/* A line is LINE bytes of keys, or of numbers to be added. It is one value, so that compilers keep
   it in vector registers. Where an operation depends on the type of the keys, its last argument has
   that type. */

#ifndef RMAC_LINES_H
#define RMAC_LINES_H

#include <stdint.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define LINE 64
#if defined(__AVX512BW__)
#define REGISTER 64
#elif defined(__AVX2__)
#define REGISTER 32
#else
#define REGISTER 16
#endif
#define PARTS (LINE / REGISTER)

#if !defined(__GNUC__) && !defined(__clang__)
#error "the kernels need a compiler with vector types: gcc or clang"
#endif

/* A loop over the registers of a line. Only if it is unrolled do they stay in registers, as an array
   would be in memory. gcc unrolls these loops without being told. */
#if defined(__clang__)
#define UNROLLED _Pragma("clang loop unroll(full)")
#else
#define UNROLLED
#endif

/* A loop over numbers, such as one that makes floats of bytes: with gcc, it takes 0.8 of the time
   unrolled. clang unrolls it without being told. */
#if defined(__clang__)
#define UNROLLED_BY_4
#else
#define UNROLLED_BY_4 _Pragma("GCC unroll 4")
#endif

/* The numbers of two registers that are listed. */
#if defined(__clang__)
#define SHUFFLED(a, b, Keys, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLED(a, b, Keys, ...) __builtin_shuffle(a, b, (Keys){__VA_ARGS__})
#endif

typedef int64_t Register __attribute__((vector_size(REGISTER), aligned(1), may_alias));
typedef struct { Register part[PARTS]; } Line;

static inline Line load_line(const void *keys)
{
    Line line;
    UNROLLED for (int i = 0; i < PARTS; i++)
        line.part[i] = ((const Register *)keys)[i];
    return line;
}

static inline void store_line(void *keys, Line line)
{
    UNROLLED for (int i = 0; i < PARTS; i++)
        ((Register *)keys)[i] = line.part[i];
}

/* Hides which function a pointer has. Compilers then call the function and do not inline it, so that
   loops inside and around it keep their registers. Without this, gcc with AVX-512 takes 1.1 times as
   long for 16x2048x14x14 NHWC of float16, and 1.4 times for the norms of regions. */
#define hide_target(function) __asm__("" : "+r"(function))

/* Hides the counter of a loop, so that clang does not unroll it: a loop of few rounds gets slower. */
#if defined(__clang__)
#define hide_counter(i) __asm__("" : "+r"(i))
#else
#define hide_counter(i) (void)0
#endif

/* Hides that the keys in memory were just stored from a register. Else clang takes the first of them
   from there, and makes scalar code of a loop that reads all of them. */
#if defined(__clang__)
#define hide_source(keys) __asm__("" : : "r"(keys) : "memory")
#else
#define hide_source(keys) (void)0
#endif

#define prefetch_line(data) __builtin_prefetch(data, 0, 2)

#define KEYED(call, like)                                                                          \
    _Generic((like), int8_t: call##_8, int16_t: call##_16, int32_t: call##_32, int64_t: call##_64)
#define larger(a, b, like) KEYED(larger, like)(a, b)
#define encode_line(bits, shift) KEYED(encode_line, shift)(bits, shift)
#define decode_line(keys, shift) KEYED(decode_line, shift)(keys, shift)
#define encode(bits, shift) KEYED(encode, shift)(bits, shift)
#define add_lines(a, b, like) _Generic((like), float: add_lines_float, double: add_lines_double)(a, b)
#define divide_line(line, number)                                                                  \
    _Generic((number), float: divide_line_float, double: divide_line_double)(line, number)
#define add_squares(sums, values)                                                                  \
    _Generic((values), const float *: add_squares_float, const double *: add_squares_double)(      \
        sums, values)

/* `flipped` has the bits that are flipped in negative floats, to put them in order: none for
   integers, which have 8 bits here. */
#define ENCODED(value, bits, flipped, shift)                                                       \
    (((value) ^ (((value) >> (bits - 1)) & (flipped))) - (shift))
#define DECODED(key, bits, flipped, shift)                                                         \
    (((key) + (shift)) ^ ((((key) + (shift)) >> (bits - 1)) & (flipped)))

/* Keeps a value in a register, and hides where it came from. Without this, compilers load values of
   64 bytes a second time; one that is not aligned crosses a cache line, so that two loads are slow.
   And clang makes masks of signs, which is slower than to shift them. */
#if REGISTER == 64
#define IN_REGISTER(part) __asm__("" : "+v"(part))
#else
#define IN_REGISTER(part) (void)0
#endif

/* A maximum must become one instruction, where the machine has one. For that, gcc needs a loop over
   keys, and clang needs vector expressions. */
#if defined(__GNUC__) && !defined(__clang__)
#define MAXIMUM_LOOPS(bits) (bits < 64 || REGISTER == 64)
#else
#define MAXIMUM_LOOPS(bits) 0
#endif

/* Keys whose bits all are the sign of `value`. AVX2 cannot shift 64 bits so, and gcc 11 would shift one key after
   the other: float64 would take 1.3 to 1.8 times as long. */
#if REGISTER == 32
#define SIGNS(value, bits) (bits == 64 ? (__typeof__(value))((value) < 0) : (value) >> (bits - 1))
#else
#define SIGNS(value, bits) ((value) >> (bits - 1))
#endif

#define LINE_OF(bits, key_t, flipped)                                                              \
    typedef key_t Keys_##bits __attribute__((vector_size(REGISTER)));                              \
    static inline key_t encode_##bits(key_t value, key_t shift)                                    \
    {                                                                                              \
        return (key_t)ENCODED(value, bits, flipped, shift);                                        \
    }                                                                                              \
    static inline Line encode_line_##bits(Line line, key_t shift)                                  \
    {                                                                                              \
        UNROLLED for (int i = 0; i < PARTS; i++) {                                                 \
            IN_REGISTER(line.part[i]);                                                             \
            Keys_##bits value = (Keys_##bits)line.part[i], sign = SIGNS(value, bits);              \
            IN_REGISTER(sign);                                                                     \
            line.part[i] = (Register)((value ^ (sign & (key_t)flipped)) - shift);                  \
        }                                                                                          \
        return line;                                                                               \
    }                                                                                              \
    static inline Line decode_line_##bits(Line line, key_t shift)                                  \
    {                                                                                              \
        UNROLLED for (int i = 0; i < PARTS; i++)                                                   \
            line.part[i] =                                                                         \
                (Register)DECODED((Keys_##bits)line.part[i], bits, (key_t)flipped, shift);         \
        return line;                                                                               \
    }                                                                                              \
    static inline Keys_##bits larger_keys_##bits(Keys_##bits x, Keys_##bits y)                     \
    {                                                                                              \
        if (MAXIMUM_LOOPS(bits)) {                                                                 \
            for (int i = 0; i < REGISTER * 8 / bits; i++)                                          \
                x[i] = y[i] > x[i] ? y[i] : x[i];                                                  \
            return x;                                                                              \
        }                                                                                          \
        Keys_##bits first = (Keys_##bits)(x > y);                                                  \
        return (x & first) | (y & ~first);                                                         \
    }                                                                                              \
    static inline Line larger_##bits(Line a, Line b)                                               \
    {                                                                                              \
        UNROLLED for (int i = 0; i < PARTS; i++)                                                   \
            a.part[i] = (Register)larger_keys_##bits(                                              \
                (Keys_##bits)a.part[i], (Keys_##bits)b.part[i]);                                   \
        return a;                                                                                  \
    }

LINE_OF(8, int8_t, 0)
LINE_OF(16, int16_t, INT16_MAX)
LINE_OF(32, int32_t, INT32_MAX)
LINE_OF(64, int64_t, INT64_MAX)

#define SUM_OF_LINES(real)                                                                         \
    typedef real Numbers_##real __attribute__((vector_size(REGISTER)));                            \
    static inline Line add_lines_##real(Line a, Line b)                                            \
    {                                                                                              \
        UNROLLED for (int i = 0; i < PARTS; i++)                                                   \
            a.part[i] = (Register)((Numbers_##real)a.part[i] + (Numbers_##real)b.part[i]);         \
        return a;                                                                                  \
    }                                                                                              \
    static inline Line divide_line_##real(Line line, real number)                                  \
    {                                                                                              \
        UNROLLED for (int i = 0; i < PARTS; i++)                                                   \
            line.part[i] = (Register)((Numbers_##real)line.part[i] / number);                      \
        return line;                                                                               \
    }

SUM_OF_LINES(float)
SUM_OF_LINES(double)

/* a * b + c, rounded once where the machine can. */
#if REGISTER == 64
#define FMA_float(a, b, c) (Numbers_float)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c))
#define FMA_double(a, b, c)                                                                        \
    (Numbers_double)_mm512_fmadd_pd((__m512d)(a), (__m512d)(b), (__m512d)(c))
#elif REGISTER == 32
#define FMA_float(a, b, c) (Numbers_float)_mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c))
#define FMA_double(a, b, c)                                                                        \
    (Numbers_double)_mm256_fmadd_pd((__m256d)(a), (__m256d)(b), (__m256d)(c))
#elif defined(__aarch64__)
#define FMA_float(a, b, c)                                                                         \
    (Numbers_float)vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b))
#define FMA_double(a, b, c)                                                                        \
    (Numbers_double)vfmaq_f64((float64x2_t)(c), (float64x2_t)(a), (float64x2_t)(b))
#else
#define FMA_float(a, b, c) ((a) * (b) + (c))
#define FMA_double(a, b, c) ((a) * (b) + (c))
#endif

/* As many numbers as a register has doubles, widened to double. gcc splits __builtin_convertvector
   into narrower registers. */
#if REGISTER == 64
#define WIDENED_float(values) (Numbers_double)_mm512_cvtps_pd(_mm256_loadu_ps(values))
#elif REGISTER == 32
#define WIDENED_float(values) (Numbers_double)_mm256_cvtps_pd(_mm_loadu_ps(values))
#elif defined(__aarch64__)
#define WIDENED_float(values) (Numbers_double)vcvt_f64_f32(vld1_f32(values))
#else
#define WIDENED_float(values) (Numbers_double){(values)[0], (values)[1]}
#endif
#define WIDENED_double(values) (Numbers_double)*(const Register *)(values)

/* Adds the squares of a line of doubles, or of as many floats, to as many sums. The square of a
   float is exact in double; that of a double is rounded once less where the machine can. */
#define SQUARES(real)                                                                              \
    static inline Line add_squares_##real(Line sums, const real *values)                           \
    {                                                                                              \
        UNROLLED for (int i = 0; i < PARTS; i++) {                                                 \
            Numbers_double value = WIDENED_##real(values + i * (REGISTER / sizeof(double)));       \
            sums.part[i] = (Register)FMA_double(value, value, (Numbers_double)sums.part[i]);       \
        }                                                                                          \
        return sums;                                                                               \
    }

SQUARES(float)
SQUARES(double)

#endif
