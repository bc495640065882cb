/* Keys: integers that order as the values do, as in rmac/cpu/kernels.pyx, so that the results have the
   same bits; of 8 and 16 bits, widened to 32. A NaN of either sign is above +inf, so that a region
   which holds one gives NaN. +0 > -0. Maxima do not round.

   The files are one source: rmac/cuda/__init__.py puts the constants that it shares with
   them first, then this one. */

enum Kind { UINT8 = 1, INT8, FLOAT16, BFLOAT16, FLOAT32, FLOAT64 };

typedef long long Index;

template <int kind> struct Dtype;
template <> struct Dtype<UINT8> { typedef unsigned char Bits; typedef int Key; typedef float Real; };
template <> struct Dtype<INT8> { typedef signed char Bits; typedef int Key; typedef float Real; };
template <> struct Dtype<FLOAT16> { typedef short Bits; typedef int Key; typedef float Real; };
template <> struct Dtype<BFLOAT16> { typedef short Bits; typedef int Key; typedef float Real; };
template <> struct Dtype<FLOAT32> { typedef int Bits; typedef int Key; typedef float Real; };
template <> struct Dtype<FLOAT64> { typedef Index Bits; typedef Index Key; typedef double Real; };

template <int kind> __device__ typename Dtype<kind>::Bits shift_of()
{
    return kind == FLOAT16    ? (typename Dtype<kind>::Bits)0x3FF
           : kind == BFLOAT16 ? (typename Dtype<kind>::Bits)0x7F
           : kind == FLOAT32  ? (typename Dtype<kind>::Bits)0x7FFFFF
                              : (typename Dtype<kind>::Bits)0xFFFFFFFFFFFFFLL;
}

template <int kind> __device__ typename Dtype<kind>::Bits in_order(typename Dtype<kind>::Bits bits)
{
    typedef typename Dtype<kind>::Bits Bits;
    const int top = 8 * sizeof(Bits) - 1;
    return (Bits)(bits ^ ((bits >> top) & (Bits)~((unsigned long long)1 << top)));
}

template <int kind> __device__ typename Dtype<kind>::Key encode(typename Dtype<kind>::Bits bits)
{
    typedef typename Dtype<kind>::Bits Bits;
    if (kind == UINT8 || kind == INT8)
        return bits;
    return (Bits)((unsigned long long)in_order<kind>(bits) - (unsigned long long)shift_of<kind>());
}

template <int kind> __device__ typename Dtype<kind>::Bits decode(typename Dtype<kind>::Key key)
{
    typedef typename Dtype<kind>::Bits Bits;
    if (kind == UINT8 || kind == INT8)
        return (Bits)key;
    return in_order<kind>((Bits)((unsigned long long)key + (unsigned long long)shift_of<kind>()));
}

template <int kind> __device__ typename Dtype<kind>::Key least_key()
{
    typedef typename Dtype<kind>::Key Key;
    return (Key)((unsigned long long)1 << (8 * sizeof(Key) - 1));
}

/* The same number in float32, or in float64 if it is one. No arithmetic on float32 subnormals:
   CuPy has them taken as 0. */
template <int kind> __device__ typename Dtype<kind>::Real widen(typename Dtype<kind>::Bits bits)
{
    typename Dtype<kind>::Real value;
    if (kind == UINT8 || kind == INT8)
        return (typename Dtype<kind>::Real)bits;
    if (kind == FLOAT32 || kind == FLOAT64) {
        memcpy(&value, &bits, sizeof(value));
        return value;
    }
    unsigned int wide = (unsigned int)(unsigned short)bits << 16;
    if (kind == FLOAT16) {
        const unsigned int magnitude = bits & 0x7FFF, exponent = magnitude >> 10;
        const float subnormal = magnitude * 5.9604644775390625e-8f; /* times 2**-24 */
        unsigned int result = (magnitude << 13) + (112 << 23); /* what exponents differ by */
        if (exponent == 31)
            result |= 0x7F800000;
        if (exponent == 0)
            memcpy(&result, &subnormal, sizeof(result));
        wide = (wide & 0x80000000) | result;
    }
    memcpy(&value, &wide, sizeof(wide));
    return value;
}

/* A maximum as its bits, or as the number that they mean. */
template <int kind>
__device__ void store(typename Dtype<kind>::Bits *out, typename Dtype<kind>::Key key)
{
    *out = decode<kind>(key);
}

template <int kind>
__device__ void store(typename Dtype<kind>::Real *out, typename Dtype<kind>::Key key)
{
    *out = widen<kind>(decode<kind>(key));
}

template <typename Bits, int count> struct alignas(count * sizeof(Bits)) Vector {
    Bits at[count];
};

extern __shared__ Index shared_memory[];
