/* Sums of the numbers inside registers, as many registers at a time as one has numbers. Part of
   scores.h.

   The numbers of a line are added in a tree of fixed shape, whatever the registers: first those half
   a line apart, then a quarter, and so on, down to neighbours. */

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* A fold adds numbers `d` apart, and makes one register of two. Where d is 16 bytes or more, the sums
   of the first register come first, then those of the other; below, they alternate within 16 bytes,
   as one instruction does that. LOWER lists the numbers of two registers of n that are the lower half
   of a group of twice d for o = 0, and the upper half for o = d. */
#define FOLD(real, bits, d, LOWER, n)                                                              \
    ALWAYS_INLINE void fold_##real##_##d(Numbers_##real *sums)                                     \
    {                                                                                              \
        UNROLLED for (int i = 0; i < d; i++)                                                       \
            sums[i] = SHUFFLED(sums[2 * i], sums[2 * i + 1], Keys_##bits, LOWER(n, 0))             \
                + SHUFFLED(sums[2 * i], sums[2 * i + 1], Keys_##bits, LOWER(n, d));                \
    }

/* Lists of indices: of runs, of parts of whole registers, and of parts of each 16 bytes. */
#define RUN_2(i) (i), (i) + 1
#define RUN_4(i) RUN_2(i), RUN_2((i) + 2)
#define RUN_8(i) RUN_4(i), RUN_4((i) + 4)
#define WHOLE_REGISTER_2(n, o) RUN_2(o), RUN_2(n + o)
#define WHOLE_REGISTER_4(n, o) RUN_4(o), RUN_4(n + o)
#define WHOLE_REGISTER_8(n, o) RUN_8(o), RUN_8(n + o)
#define QUARTERS_2(n, o) RUN_2(o), RUN_2(4 + o), RUN_2(n + o), RUN_2(n + 4 + o)
#define QUARTERS_4(n, o) RUN_4(o), RUN_4(8 + o), RUN_4(n + o), RUN_4(n + 8 + o)
#define FLOATS_2(n, i) RUN_2(i), RUN_2(n + (i))
#define FLOATS_1(n, i) (i), (i) + 2, n + (i), n + (i) + 2
#define DOUBLES_1(n, i) (i), n + (i)
#define TWICE(PART, n, step, i) PART(n, i), PART(n, (i) + step)
#define FLOATS_2_OF_8(n, o) TWICE(FLOATS_2, n, 4, o)
#define FLOATS_1_OF_8(n, o) TWICE(FLOATS_1, n, 4, o)
#define FLOATS_2_OF_16(n, o) FLOATS_2_OF_8(n, o), FLOATS_2_OF_8(n, 8 + o)
#define FLOATS_1_OF_16(n, o) FLOATS_1_OF_8(n, o), FLOATS_1_OF_8(n, 8 + o)
#define DOUBLES_1_OF_4(n, o) TWICE(DOUBLES_1, n, 2, o)
#define DOUBLES_1_OF_8(n, o) DOUBLES_1_OF_4(n, o), DOUBLES_1_OF_4(n, 4 + o)

#if REGISTER == 64
#define FOLDED(line, real) ((Numbers_##real)line.part[0])
FOLD(float, 32, 8, WHOLE_REGISTER_8, 16)
FOLD(float, 32, 4, QUARTERS_4, 16)
FOLD(float, 32, 2, FLOATS_2_OF_16, 16)
FOLD(float, 32, 1, FLOATS_1_OF_16, 16)
FOLD(double, 64, 4, WHOLE_REGISTER_4, 8)
FOLD(double, 64, 2, QUARTERS_2, 8)
FOLD(double, 64, 1, DOUBLES_1_OF_8, 8)
#elif REGISTER == 32
#define FOLDED(line, real) ((Numbers_##real)line.part[0] + (Numbers_##real)line.part[1])
FOLD(float, 32, 4, WHOLE_REGISTER_4, 8)
FOLD(float, 32, 2, FLOATS_2_OF_8, 8)
FOLD(float, 32, 1, FLOATS_1_OF_8, 8)
FOLD(double, 64, 2, WHOLE_REGISTER_2, 4)
FOLD(double, 64, 1, DOUBLES_1_OF_4, 4)
#else
#define FOLDED(line, real)                                                                         \
    (((Numbers_##real)line.part[0] + (Numbers_##real)line.part[2])                                 \
        + ((Numbers_##real)line.part[1] + (Numbers_##real)line.part[3]))
FOLD(float, 32, 2, FLOATS_2, 4)
FOLD(float, 32, 1, FLOATS_1, 4)
FOLD(double, 64, 1, DOUBLES_1, 2)
#endif

ALWAYS_INLINE void fold_float(Numbers_float *sums)
{
#if REGISTER == 64
    fold_float_8(sums);
#endif
#if REGISTER >= 32
    fold_float_4(sums);
#endif
    fold_float_2(sums);
    fold_float_1(sums);
}

ALWAYS_INLINE void fold_double(Numbers_double *sums)
{
#if REGISTER == 64
    fold_double_4(sums);
#endif
#if REGISTER >= 32
    fold_double_2(sums);
#endif
    fold_double_1(sums);
}

/* Which register, of as many as one has numbers, gives the i-th sum. Of 8 registers of 8 floats, those
   of boxes 0, 4, 1, 5, 2, 6, 3, 7: the fold by 4 makes four registers 0 0 0 0 4 4 4 4, 1 1 1 1 5 5 5 5
   and so on, the fold by 2 makes 0 0 1 1 4 4 5 5 and 2 2 3 3 6 6 7 7, the fold by 1 all in order. */
#define PIECES (REGISTER / 16)
#define PLACE(i, count)                                                                            \
    ((unsigned)(i) % ((count) / PIECES) * PIECES + (unsigned)(i) / ((count) / PIECES))
