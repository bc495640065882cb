/* Transposition of keys in vector registers. A register holds 16-byte pieces of one or more rows.
   Rounds of zipping turn rows into columns: each zips two registers, piece by piece. */

#include <stddef.h>

#define PIECE 16 /* bytes; wider registers zip only within pieces of this size */

#if REGISTER > PIECE
#include <immintrin.h>
#endif

/* Pieces of as many rows as a register has room for. */
static inline Register load_pieces(const char *piece, ptrdiff_t stride)
{
#define LOAD(i) _mm_loadu_si128((const __m128i *)(piece + (i) * stride))
#if REGISTER == 64
    __m512i pieces = _mm512_castsi128_si512(LOAD(0));
    pieces = _mm512_inserti32x4(pieces, LOAD(1), 1);
    pieces = _mm512_inserti32x4(pieces, LOAD(2), 2);
    return (Register)_mm512_inserti32x4(pieces, LOAD(3), 3);
#elif REGISTER == 32
    return (Register)_mm256_inserti128_si256(_mm256_castsi128_si256(LOAD(0)), LOAD(1), 1);
#else
    (void)stride;
    return *(const Register *)piece;
#endif
#undef LOAD
}

/* How to write a shuffle so that it becomes one instruction: gcc needs the builtin, clang a loop.
   */
#if defined(__GNUC__) && !defined(__clang__)
#define TAKE(a, b, keys, i, from) keys[i] = (from) + (i) % 2 * (int)(REGISTER / sizeof(keys[0]))
#define TAKEN(a, b, keys) __builtin_shuffle(a, b, keys)
#else
#define TAKE(a, b, keys, i, from) keys[i] = (i) % 2 ? b[from] : a[from]
#define TAKEN(a, b, keys) (keys)
#endif

/* `zip` takes the lower or the upper half of each piece: one key of a, one key of b, and so on.
   `transpose` reads contiguous rows, as many as a line has keys, and writes each column as a line,
   `stride` keys apart. If the last piece would pass the end of a row, it starts earlier. */
#define TRANSPOSITION(bits, key_t)                                                                 \
    static inline Register zip_##bits(Register a, Register b, int upper)                           \
    {                                                                                              \
        enum { KEYS = PIECE / sizeof(key_t) };                                                     \
        Keys_##bits keys;                                                                          \
        for (int i = 0; i < (int)(REGISTER / sizeof(key_t)); i++)                                  \
            TAKE(((Keys_##bits)a), ((Keys_##bits)b), keys, i,                                      \
                 i / KEYS * KEYS + upper * KEYS / 2 + i % KEYS / 2);                               \
        return (Register)TAKEN((Keys_##bits)a, (Keys_##bits)b, keys);                              \
    }                                                                                              \
    static inline __attribute__((always_inline)) void transpose_piece_##bits(                      \
        const key_t *rows, key_t *out, ptrdiff_t columns, ptrdiff_t stride)                        \
    {                                                                                              \
        enum { KEYS = PIECE / sizeof(key_t) };                                                     \
        Register from[KEYS], to[KEYS];                                                             \
        for (int i = 0; i < KEYS; i++)                                                             \
            to[i] = load_pieces((const char *)(rows + i * columns), KEYS * columns * sizeof(key_t)); \
        for (int round = 1; round < KEYS; round *= 2) {                                            \
            for (int i = 0; i < KEYS; i++)                                                         \
                from[i] = to[i];                                                                   \
            for (int i = 0; i < KEYS / 2; i++) {                                                   \
                to[2 * i] = zip_##bits(from[i], from[i + KEYS / 2], 0);                            \
                to[2 * i + 1] = zip_##bits(from[i], from[i + KEYS / 2], 1);                        \
            }                                                                                      \
        }                                                                                          \
        for (int i = 0; i < KEYS; i++)                                                             \
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
