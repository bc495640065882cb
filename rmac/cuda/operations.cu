/* Operations: how the values of a region become one.

   Accumulation
       Maximum: keys, which do not round; 64 bits for float64, 32 for other dtypes.
       Mean, PowerMean: sums in `Real`, which is float32 or float64. A column of a band is summed
       first, from top to bottom; then the columns of a tile, then the partials of a region. So the
       order of additions depends on the shape and the regions alone, not on the kernel or the
       width of its loads. CuPy compiles float32 arithmetic to take subnormals as 0.
   NaN
       A region with a NaN gives a NaN.
   Memory layout
       None: values come in vectors. Neighbours in a vector are channels or columns.
   Thread mapping
       Each function is for one thread. Several threads may add to a partial that is a maximum, by
       atomics on integers: any order of threads gives the same bits. One thread adds to a partial
       that is a sum.

   An operation has `kind`, and these:
       in_order           whether one thread sums a tile
       describes          whether the blocks that pool also describe; if not, less is compiled
       Partial, start()   what a tile is reduced to; the partial of no values
       Running, take()    what vectors are reduced to in registers; adds a vector to it
       Apart              Running for values that are not neighbours in memory
       combine()          makes one partial of two
       add_to_partials()  adds each element of a vector to a partial of its own
       add_columns()      adds neighbouring columns to the partials of their tiles
       store()            writes the result of a region */

const double LEAST_BASE = 1e-6; /* the generalised mean replaces values below this */

template <Kind of> struct Maximum {
    static constexpr Kind kind = of;
    static constexpr bool in_order = false, describes = true;
    typedef KeyOf<kind> Partial;
    template <int count> using Running = Maxima<kind, count>;
    template <int count> using Apart = Maxima<kind, count, false>;

    __device__ static Partial start() { return least_key<kind>(); }

    template <int count, bool in_pairs>
    __device__ static void take(
        const PoolLaunch &, const Vector<BitsOf<kind>, count> &values,
        Maxima<kind, count, in_pairs> &most)
    {
        most.take(values);
    }

    __device__ static Partial combine(Partial one, Partial other) { return max(one, other); }

    template <int count>
    __device__ static void add_to_partials(
        Partial *partials, int step, const Maxima<kind, count> &most)
    {
#pragma unroll
        for (int k = 0; k < count; k++)
            atomicMax(partials + k * step, most.at(k));
    }

    /* It would save nothing to combine the columns of one tile first. Each thread of a warp has
       other columns, so the warp would still run the instructions of each column. */
    template <int count>
    __device__ static void add_columns(
        Partial *partials, const int (&offset)[count], const Maxima<kind, count> &most)
    {
#pragma unroll
        for (int k = 0; k < count; k++)
            atomicMax(partials + offset[k], most.at(k));
    }

    template <typename Out>
    __device__ static void store(const PoolLaunch &launch, Out *out, Partial most, int, int)
    {
        ::store<kind>(out, most, launch.zero_point);
    }
};

/* The running sum of each element of vectors. */
template <typename Real, int count> struct Sums {
    Real sum[count];

    __device__ void reset()
    {
#pragma unroll
        for (int k = 0; k < count; k++)
            sum[k] = 0;
    }

    __device__ Real at(int k) const { return sum[k]; }
};

/* Like widen(), but the bits of a NaN may change. For float16 it is one instruction. */
template <Kind kind> __device__ RealOf<kind> widen_to_sum(BitsOf<kind> bits, int zero_point)
{
#ifdef __CUDA_ARCH__
    if constexpr (kind == FLOAT16) {
        float value;
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits)); /* subnormals are right too */
        return value;
    }
#endif
    return widen<kind>(bits, zero_point);
}

/* Return the greater of a value and the least base, or NaN for a NaN. */
__device__ inline float clip_base(float value)
{
#if __CUDA_ARCH__ >= 800
    float clipped;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(clipped) : "f"(value), "f"((float)LEAST_BASE));
    return clipped;
#else
    return value < (float)LEAST_BASE ? (float)LEAST_BASE : value;
#endif
}

__device__ inline double clip_base(double value) { return value < LEAST_BASE ? LEAST_BASE : value; }

/* Not inlined: its code is long, and each element of a vector needs it. */
template <typename Real> __device__ __noinline__ Real power_of(Real base, Real p)
{
    return pow(base, p);
}

/* Return a product that the compiler does not fuse with a sum. A fused sum rounds once less, and
   some kernels might have it and others not. */
__device__ inline float product(float a, float b)
{
#ifdef __CUDA_ARCH__
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
}

__device__ inline double product(double a, double b)
{
#ifdef __CUDA_ARCH__
    return __dmul_rn(a, b);
#else
    return a * b;
#endif
}

/* Raise values to a power that is a product of so many factors. */
template <typename Real, int count> __device__ void multiply(Real (&power)[count], int factors)
{
    Real base[count];
#pragma unroll
    for (int k = 0; k < count; k++)
        power[k] = base[k] = clip_base(power[k]);
#pragma unroll 1
    for (int i = 1; i < factors; i++)
#pragma unroll
        for (int k = 0; k < count; k++)
            power[k] = product(power[k], base[k]);
}

/* The mean, or the generalised mean if the power is a product. */
template <Kind of, typename Real> struct Mean {
    static constexpr Kind kind = of;
    static constexpr bool in_order = true, describes = true;
    typedef Real Partial;
    template <int count> using Running = Sums<Real, count>;
    template <int count> using Apart = Sums<Real, count>;

    __device__ static Partial start() { return 0; }

    template <int count>
    __device__ static void take(
        const PoolLaunch &launch, const Vector<BitsOf<kind>, count> &values,
        Sums<Real, count> &sums)
    {
        const int some = count < 4 ? count : 4; /* all at once would need many registers */
#pragma unroll
        for (int first = 0; first < count; first += some) {
            Real power[some];
#pragma unroll
            for (int k = 0; k < some; k++)
                power[k] = (Real)widen_to_sum<kind>(values.at[first + k], launch.zero_point);
            if (launch.factors > 0)
                multiply(power, launch.factors);
#pragma unroll
            for (int k = 0; k < some; k++)
                sums.sum[first + k] += power[k];
        }
    }

    __device__ static Partial combine(Partial one, Partial other) { return one + other; }

    /* All partials are loaded before the first is stored: the compiler does not know that they are
       at different addresses. */
    template <int count>
    __device__ static void add_to_partials(
        Partial *partials, int step, const Sums<Real, count> &sums)
    {
        Partial loaded[count];
#pragma unroll
        for (int k = 0; k < count; k++)
            loaded[k] = partials[k * step];
#pragma unroll
        for (int k = 0; k < count; k++)
            partials[k * step] = loaded[k] + sums.at(k);
    }

    /* Columns of one tile are neighbours. */
    template <int count>
    __device__ static void add_columns(
        Partial *partials, const int (&offset)[count], const Sums<Real, count> &sums)
    {
        Partial sum = partials[offset[0]] + sums.at(0);
#pragma unroll
        for (int k = 1; k < count; k++) {
            if (offset[k] != offset[k - 1]) {
                partials[offset[k - 1]] = sum;
                sum = partials[offset[k]];
            }
            sum += sums.at(k);
        }
        partials[offset[count - 1]] = sum;
    }

    template <typename Out>
    __device__ static void store(
        const PoolLaunch &launch, Out *out, Partial sum, int height, int width)
    {
        const Real mean = sum / (Real)((Index)height * width);
        *out = (Out)(launch.p == 0 || launch.p == 1 ? mean : power_of(mean, (Real)(1 / launch.p)));
    }
};

/* The generalised mean of any power. */
template <Kind of, typename Real> struct PowerMean : Mean<of, Real> {
    using Mean<of, Real>::kind;
    static constexpr bool describes = false;

    template <int count>
    __device__ static void take(
        const PoolLaunch &launch, const Vector<BitsOf<kind>, count> &values,
        Sums<Real, count> &sums)
    {
#pragma unroll
        for (int k = 0; k < count; k++) {
            const Real value = (Real)widen_to_sum<kind>(values.at[k], launch.zero_point);
            sums.sum[k] += power_of(clip_base(value), (Real)launch.p);
        }
    }
};
