/* Transposition of keys in vector registers. A register holds 16-byte pieces of one or more rows.
   Rounds of zipping turn rows into columns: each zips two registers, piece by piece. */

#include <stddef.h>

#define PIECE 16 /* bytes; wider registers zip only within pieces of this size */

#if REGISTER > PIECE
#include <immintrin.h>
#endif

/* Pieces of as many rows as a register has room for. Four become two halves first: one after the
   other, each would wait for the last, and maps of NCHW take 1.05 times as long with gcc. */
static inline Register load_pieces(const char *piece, ptrdiff_t stride)
{
#define LOAD(i) _mm_loadu_si128((const __m128i *)(piece + (i) * stride))
#if REGISTER == 64
    const __m256i lower = _mm256_inserti128_si256(_mm256_castsi128_si256(LOAD(0)), LOAD(1), 1);
    const __m256i upper = _mm256_inserti128_si256(_mm256_castsi128_si256(LOAD(2)), LOAD(3), 1);
    return (Register)_mm512_inserti64x4(_mm512_castsi256_si512(lower), upper, 1);
#elif REGISTER == 32
    return (Register)_mm256_inserti128_si256(_mm256_castsi128_si256(LOAD(0)), LOAD(1), 1);
#else
    (void)stride;
    return *(const Register *)piece;
#endif
#undef LOAD
}

/* The indices of keys of a and b in a zip of the keys from `i` on: half a piece, or half of each piece
   of a register with `n` keys. An index of n or more is one of b. */
#define PAIRS_64(i, n) (i), (i) + (n)
#define PAIRS_32(i, n) PAIRS_64(i, n), PAIRS_64((i) + 1, n)
#define PAIRS_16(i, n) PAIRS_32(i, n), PAIRS_32((i) + 2, n)
#define PAIRS_8(i, n) PAIRS_16(i, n), PAIRS_16((i) + 4, n)
#if REGISTER == 16
#define PAIRS(bits, i, n) PAIRS_##bits(i, n)
#elif REGISTER == 32
#define PAIRS(bits, i, n) PAIRS_##bits(i, n), PAIRS_##bits((i) + n / 2, n)
#else
#define PAIRS(bits, i, n)                                                                          \
    PAIRS_##bits(i, n), PAIRS_##bits((i) + n / 4, n), PAIRS_##bits((i) + n / 2, n),                \
        PAIRS_##bits((i) + n / 4 * 3, n)
#endif

/* `zip_lower` and `zip_upper` take that half of each piece: one key of a, one key of b, and so on.
   `transpose` reads contiguous rows, as many as a line has keys, and writes each column as a line,
   `stride` keys apart. If the last piece would pass the end of a row, it starts earlier. */
#define ZIP(name, bits, first)                                                                     \
    static inline Register name##_##bits(Register a, Register b)                                   \
    {                                                                                              \
        return (Register)SHUFFLED((Keys_##bits)a, (Keys_##bits)b, Keys_##bits,                     \
            PAIRS(bits, first, REGISTER * 8 / bits));                                              \
    }

#define TRANSPOSITION(bits, key_t)                                                                 \
    ZIP(zip_lower, bits, 0)                                                                        \
    ZIP(zip_upper, bits, PIECE * 4 / bits)                                                         \
    static inline __attribute__((always_inline)) void transpose_piece_##bits(                      \
        const key_t *rows, key_t *out, ptrdiff_t columns, ptrdiff_t stride)                        \
    {                                                                                              \
        enum { KEYS = PIECE / sizeof(key_t) };                                                     \
        Register from[KEYS], to[KEYS];                                                             \
        UNROLLED for (int i = 0; i < KEYS; i++)                                                    \
            to[i] = load_pieces((const char *)(rows + i * columns), KEYS * columns * sizeof(key_t)); \
        UNROLLED for (int round = 1; round < KEYS; round *= 2) {                                   \
            UNROLLED for (int i = 0; i < KEYS; i++)                                                \
                from[i] = to[i];                                                                   \
            UNROLLED for (int i = 0; i < KEYS / 2; i++) {                                          \
                to[2 * i] = zip_lower_##bits(from[i], from[i + KEYS / 2]);                         \
                to[2 * i + 1] = zip_upper_##bits(from[i], from[i + KEYS / 2]);                     \
            }                                                                                      \
        }                                                                                          \
        UNROLLED for (int i = 0; i < KEYS; i++)                                                    \
            *(Register *)(out + i * stride) = to[i];                                               \
    }                                                                                              \
    static inline void transpose_##bits(                                                           \
        const void *rows, void *out, ptrdiff_t columns, ptrdiff_t stride)                          \
    {                                                                                              \
        enum { KEYS = PIECE / sizeof(key_t), LANES = LINE / sizeof(key_t) };                       \
        const key_t *src = rows;                                                                   \
        key_t *dst = out;                                                                          \
        if (columns < KEYS) {                                                                      \
            for (ptrdiff_t i = 0; i < columns * LANES; i++)                                        \
                dst[i / LANES * stride + i % LANES] = src[i % LANES * columns + i / LANES];        \
            return;                                                                                \
        }                                                                                          \
        for (ptrdiff_t at = 0; at < columns; at += KEYS) {                                         \
            at = at + KEYS > columns ? columns - KEYS : at;                                        \
            for (int lane = 0; lane < LANES; lane += REGISTER / sizeof(key_t))                     \
                transpose_piece_##bits(                                                            \
                    src + lane * columns + at, dst + at * stride + lane, columns, stride);         \
        }                                                                                          \
    }

TRANSPOSITION(8, int8_t)
TRANSPOSITION(16, int16_t)
TRANSPOSITION(32, int32_t)
TRANSPOSITION(64, int64_t)

#define transpose(rows, out, columns, stride, like)                                                \
    _Generic((like), int8_t: transpose_8, int16_t: transpose_16, int32_t: transpose_32,            \
        float: transpose_32, int64_t: transpose_64, double: transpose_64)(rows, out, columns, stride)
