/* Keys: integers in the same order as the values.

   Accumulation
       Maxima of keys. They do not round: decode() gives back the bits of one of the values.
   NaN
       The keys of NaN, of either sign, are above that of +inf, so a region with a NaN gives a NaN.
       +0 is greater than -0.
   Memory layout
       A key has 64 bits for float64 and 32 for other dtypes. Keys order as on the CPU, so CPU and
       GPU give the same bits.
   Thread mapping
       None: each function is for one thread.

   The .cu files are one source. rmac/cuda/source.py puts the definitions that they share with
   Python first: constants, enum Kind, enum Aggregate and struct Dtype. This file is next. */

typedef long long Index;

template <Kind kind> using BitsOf = typename Dtype<kind>::Bits;
template <Kind kind> using KeyOf = typename Dtype<kind>::Key;
template <Kind kind> using RealOf = typename Dtype<kind>::Real;

/* Elements that one load takes. */
template <typename Bits, int count> struct alignas(count * sizeof(Bits)) Vector {
    Bits at[count];
};

/* Flip all bits of a negative float but the sign: a negative float with greater bits is less. A
   second call undoes the first. */
template <Kind kind> __device__ BitsOf<kind> flip_negative(BitsOf<kind> bits)
{
    const int top = 8 * sizeof(bits) - 1;
    const BitsOf<kind> all_but_sign = (BitsOf<kind>)~((unsigned long long)1 << top);
    return (BitsOf<kind>)(bits ^ ((bits >> top) & all_but_sign));
}

/* The subtraction wraps around: it moves negative NaNs from the least keys to the greatest.
   Integers have no NaN: they are their own keys. */
template <Kind kind> __device__ KeyOf<kind> encode(BitsOf<kind> bits)
{
    if constexpr (!Dtype<kind>::is_float)
        return bits;
    else
        return (BitsOf<kind>)((unsigned long long)flip_negative<kind>(bits)
                              - (unsigned long long)Dtype<kind>::key_shift);
}

template <Kind kind> __device__ BitsOf<kind> decode(KeyOf<kind> key)
{
    if constexpr (!Dtype<kind>::is_float)
        return (BitsOf<kind>)key;
    else
        return flip_negative<kind>((BitsOf<kind>)((unsigned long long)key
                                                  + (unsigned long long)Dtype<kind>::key_shift));
}

/* The identity of the maximum. */
template <Kind kind> __device__ KeyOf<kind> least_key()
{
    return (KeyOf<kind>)((unsigned long long)1 << (8 * sizeof(KeyOf<kind>) - 1));
}

/* Return four bytes that the hexadecimal digits of a selector choose. Digit i is byte i of a word;
   4 is a zero byte; 8 + i is the sign bit of byte i, repeated 8 times. __byte_perm() cannot do the
   last. */
__device__ inline unsigned int choose_bytes(unsigned int word, unsigned int selector)
{
    unsigned int chosen;
#ifdef __CUDA_ARCH__
    asm("prmt.b32 %0, %1, 0, %2;" : "=r"(chosen) : "r"(word), "r"(selector));
#else
    chosen = prmt(word, 0, selector);
#endif
    return chosen;
}

/* Return a pair of values as keys of 16 bits, but without the subtraction of encode(). The values
   are floats of 16 bits or integers of 8 bits. */
template <Kind kind> __device__ unsigned int order_pair(unsigned int bits)
{
    if constexpr (kind == UINT8)
        return choose_bytes(bits, 0x4140);
    else if constexpr (kind == INT8)
        return choose_bytes(bits, 0x9180);
    else {
        static_assert(Dtype<kind>::is_float, "a dtype that is not in order in pairs yet");
        return bits ^ (choose_bytes(bits, 0xBB99) & 0x7FFF7FFF);
    }
}

/* The running maximum of each element of vectors, as keys. */
template <Kind kind, int count, bool in_pairs = sizeof(BitsOf<kind>) <= 2 && count % 2 == 0>
struct Maxima {
    KeyOf<kind> key[count];

    __device__ void reset()
    {
#pragma unroll
        for (int k = 0; k < count; k++)
            key[k] = least_key<kind>();
    }

    __device__ void take(const Vector<BitsOf<kind>, count> &bits)
    {
#pragma unroll
        for (int k = 0; k < count; k++)
            key[k] = max(key[k], encode<kind>(bits.at[k]));
    }

    __device__ KeyOf<kind> at(int k) const { return key[k]; }
};

/* Two keys of 16 bits in a word: half the registers, and a third of the instructions. */
template <Kind kind, int count> struct Maxima<kind, count, true> {
    unsigned int pair[count / 2];

    __device__ void reset()
    {
#pragma unroll
        for (int k = 0; k < count / 2; k++)
            pair[k] = 0x80008000;
    }

    __device__ void take(const Vector<BitsOf<kind>, count> &bits)
    {
        const int addend = Dtype<kind>::is_float ? -Dtype<kind>::key_shift : 0;
        const unsigned int addends = (unsigned short)addend * 0x10001u;
#pragma unroll
        for (int k = 0; k < count / 2; k++) {
            const int bytes = 2 * k * sizeof(BitsOf<kind>);
            unsigned int word = 0;
            memcpy(&word, (const char *)&bits + bytes, 2 * sizeof(BitsOf<kind>));
            pair[k] = __viaddmax_s16x2(order_pair<kind>(word), addends, pair[k]);
        }
    }

    __device__ KeyOf<kind> at(int k) const { return (short)(pair[k / 2] >> 16 * (k % 2)); }
};

/* Return the bits of a float16 in float32. The only arithmetic is on float32 numbers that are not
   subnormal, because CuPy compiles float32 arithmetic to take subnormals as 0. */
__device__ inline unsigned int widen_float16(unsigned short bits)
{
    const unsigned int sign = (unsigned int)(bits & 0x8000) << 16;
    const unsigned int magnitude = bits & 0x7FFF, exponent = magnitude >> 10;
    unsigned int wide = (magnitude << 13) + ((127 - 15) << 23); /* the exponents' biases */
    if (exponent == 31)
        wide |= 0x7F800000;
    if (exponent == 0) {
        const float subnormal = magnitude * 5.9604644775390625e-8f; /* 2**-24 */
        memcpy(&wide, &subnormal, sizeof(wide));
    }
    return sign | wide;
}

/* Return a value as a float32, or a float64 as it is. An integer becomes the number that it stands
   for. */
template <Kind kind> __device__ RealOf<kind> widen(BitsOf<kind> bits, int zero_point)
{
    if constexpr (!Dtype<kind>::is_float) {
        return (RealOf<kind>)((int)bits - zero_point);
    } else if constexpr (sizeof(BitsOf<kind>) == sizeof(RealOf<kind>)) {
        RealOf<kind> value;
        memcpy(&value, &bits, sizeof(value));
        return value;
    } else {
        static_assert(kind == FLOAT16 || kind == BFLOAT16, "a dtype that cannot be widened yet");
        const unsigned int wide = kind == FLOAT16 ? widen_float16((unsigned short)bits)
                                                  : (unsigned int)(unsigned short)bits << 16;
        float value;
        memcpy(&value, &wide, sizeof(value));
        return value;
    }
}

/* Write a maximum as an element of the map's dtype. */
template <Kind kind> __device__ void store(BitsOf<kind> *out, KeyOf<kind> key, int)
{
    *out = decode<kind>(key);
}

/* Write a maximum as an element of a descriptor. */
template <Kind kind> __device__ void store(RealOf<kind> *out, KeyOf<kind> key, int zero_point)
{
    *out = widen<kind>(decode<kind>(key), zero_point);
}

extern __shared__ __align__(16) Index shared_memory[]; /* some copies take 16 bytes at once */
