/* Descriptors of images from their regional vectors.

   Accumulation
       Norms in float64. Sums over regions in the type of the descriptor, `Real`. The order of
       additions depends on the shape alone. CuPy compiles float32 arithmetic to take subnormals as
       0; sums over regions do so, norms do not.
   NaN
       A NaN in a regional vector makes its norm NaN, and so all elements of the vector.
   Memory layout
       Regional vectors are (image, region, channel), contiguous, and are overwritten.
   Thread mapping
       A block for each image. A warp takes a part of a region's norm; then a thread takes a channel.
       Threads start LOADS loads before they use the first, as one block has its multiprocessor to
       itself, and waits for the memory most of the time. */

const int LOADS = 8;

struct AggregationOptions {
    int normalize_regions;
    Aggregate aggregate;
    int in_place; /* whether the regional vectors are the descriptors */
    int normalize;
    double eps;
};

struct DescribeLaunch {
    Index first_image;
    int most_regions; /* of an image; all have room for so many vectors */
    int channels;
    AggregationOptions options;
    int same_count;     /* the number of regions if all images have the same, else 0 */
    int counts[COUNTS]; /* each image's own number, if they differ */
};

/* What a regional vector is divided by, and its inverse. */
template <typename Real> struct Divisor {
    Real value, inverse;
};

/* Return a number in float64, even if it is subnormal in float32. */
__device__ inline double to_double(double value) { return value; }

__device__ inline double to_double(float value)
{
    double wide;
#ifdef __CUDA_ARCH__
    asm("cvt.f64.f32 %0, %1;" : "=d"(wide) : "f"(value)); /* a cast would take subnormals as 0 */
#else
    wide = widen_exactly(value);
#endif
    return wide;
}

/* Return the sum of a warp's values to all its threads. */
__device__ inline double sum_of_warp(double value)
{
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        value += __shfl_xor_sync(0xFFFFFFFF, value, distance);
    return value;
}

/* Return the maximum of a warp's values to all its threads. */
__device__ inline double max_of_warp(double value)
{
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        value = fmax(value, __shfl_xor_sync(0xFFFFFFFF, value, distance));
    return value;
}

/* Sum the squares of every `threads`th value, from `thread` on; after division by `peak` if `scaled`. */
template <bool scaled, typename Real>
__device__ double part_of_squares(const Real *values, Index n, int thread, int threads, double peak)
{
    double sum = 0;
    for (const Real *at = values + thread; n > 0; n -= LOADS * threads, at += LOADS * threads) {
        const int left = (int)min(n, (Index)(LOADS * threads));
        Real loaded[LOADS];
#pragma unroll
        for (int j = 0; j < LOADS; j++)
            loaded[j] = thread + j * threads < left ? at[j * threads] : 0;
#pragma unroll
        for (int j = 0; j < LOADS; j++) {
            const double value = scaled ? to_double(loaded[j]) / peak : to_double(loaded[j]);
            sum += value * value;
        }
    }
    return sum;
}

/* Return the sum of squares to a whole warp. */
template <typename Real> __device__ double squares_by_warp(const Real *values, Index n)
{
    return sum_of_warp(part_of_squares<false>(values, n, threadIdx.x % WARP, WARP, 1.0));
}

/* Return the sum of squares to a whole block. A thread reads only values that it wrote itself. */
template <typename Real> __device__ double squares_by_block(const Real *values, Index n)
{
    double *parts = (double *)shared_memory;
    const double part =
        sum_of_warp(part_of_squares<false>(values, n, threadIdx.x, blockDim.x, 1.0));
    if (threadIdx.x % WARP == 0)
        parts[threadIdx.x / WARP] = part;
    __syncthreads();
    double squares = 0;
    for (int i = 0; i < (int)blockDim.x / WARP; i++)
        squares += parts[i];
    return squares;
}

/* Return whether a norm, its square and their inverses are far from overflow and underflow. */
__device__ inline bool is_in_range(double squares, double eps)
{
    return squares > 1e-60 && squares < 1e60 && eps < 1e30;
}

/* Divide a vector by its norm plus eps, by a whole warp, where the norm is not in range. The vector
   and eps are divided by the largest magnitude first. */
template <typename Real> __device__ void normalize_scaled(Real *values, Index n, double eps)
{
    double peak = 0;
    for (Index i = threadIdx.x % WARP; i < n; i += WARP)
        peak = fmax(peak, fabs(to_double(values[i])));
    peak = max_of_warp(peak);
    if (peak == 0 || peak > 1.7976931348623157e308)
        peak = 1;
    const double squares =
        sum_of_warp(part_of_squares<true>(values, n, threadIdx.x % WARP, WARP, peak));
    double divisor = sqrt(squares) + eps / peak;
    if (divisor == 0)
        divisor = 1;
    for (Index i = threadIdx.x % WARP; i < n; i += WARP)
        values[i] = (Real)(to_double(values[i]) / peak / divisor);
}

/* Find the divisor of a regional vector: its norm plus eps. A vector whose norm is not in range is
   divided here, and its divisor is 1. */
template <typename Real>
__device__ void find_divisor(
    const DescribeLaunch &launch, Real *vector, double squares, Divisor<Real> *divisor)
{
    const double eps = launch.options.eps;
    Real found = 1;
    if (is_in_range(squares, eps))
        found = (Real)(sqrt(squares) + eps);
    else
        normalize_scaled(vector, launch.channels, eps);
    if (threadIdx.x % WARP == 0)
        *divisor = {found, 1 / found};
}

/* Return into how many parts norms are cut, as a power of 2: so many that a thread has no more loads
   than it starts at once, if there is room for the sums of all parts. It depends on the shape
   alone. */
__device__ inline int power_of_parts(int regions, int channels)
{
    int power = 0;
    while (1 << power < WARP && regions << (power + 1) <= NORM_PARTS
           && channels > LOADS * WARP << power)
        power++;
    return power;
}

/* Find the divisors of all regional vectors. */
template <typename Real>
__device__ void find_divisors(
    const DescribeLaunch &launch, Real *vectors, Divisor<Real> *divisors, int regions)
{
    double *sums = (double *)shared_memory; /* (region, part) */
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    const int power = power_of_parts(regions, launch.channels), parts = 1 << power;
    const int size = (launch.channels + parts - 1) >> power, most = NORM_PARTS >> power;
    for (int first = 0; first < regions; first += most) {
        const int some = min(regions - first, most);
        for (int i = warp; i < some << power; i += warps) {
            const int start = min((i & (parts - 1)) * size, launch.channels);
            const Real *vector = vectors + (Index)(first + (i >> power)) * launch.channels;
            const double sum =
                squares_by_warp(vector + start, min(size, launch.channels - start));
            if (lane == 0)
                sums[i] = sum;
        }
        __syncthreads();
        for (int region = warp; region < some; region += warps) {
            const double sum = lane < parts ? sums[(region << power) + lane] : 0;
            find_divisor(
                launch, vectors + (Index)(first + region) * launch.channels, sum_of_warp(sum),
                divisors + first + region);
        }
        __syncthreads();
    }
}

/* Return the quotient, corrected by what is left of the dividend: mostly the same bits as a division,
   in a third of its instructions. */
template <typename Real> __device__ Real divide(Real value, const Divisor<Real> &divisor)
{
    const Real quotient = value * divisor.inverse;
    return fma(fma(-quotient, divisor.value, value), divisor.inverse, quotient);
}

template <typename Real>
__device__ void divide_in_place(
    const DescribeLaunch &launch, Real *vectors, const Divisor<Real> *divisors, int regions)
{
    for (Index i = threadIdx.x; i < (Index)regions * launch.channels; i += blockDim.x)
        vectors[i] = divide(vectors[i], divisors[i / launch.channels]);
}

/* Sum or average the regional vectors, divided if they are to be normalised. */
template <typename Real>
__device__ void aggregate_regions(
    const DescribeLaunch &launch, const Real *vectors, const Divisor<Real> *divisors, int regions,
    Real *descriptor)
{
    for (int channel = threadIdx.x; channel < launch.channels; channel += blockDim.x) {
        const Real *at = vectors + channel;
        Real sum = 0;
        for (int first = 0; first < regions; first += LOADS, at += (Index)LOADS * launch.channels) {
            Real loaded[LOADS];
#pragma unroll
            for (int j = 0; j < LOADS; j++)
                loaded[j] = first + j < regions ? at[(Index)j * launch.channels] : 0;
#pragma unroll
            for (int j = 0; j < LOADS; j++)
                if (first + j < regions)
                    sum += launch.options.normalize_regions ? divide(loaded[j], divisors[first + j])
                                                            : loaded[j];
        }
        descriptor[channel] = launch.options.aggregate == MEAN ? sum / regions : sum;
    }
}

/* Divide a descriptor by its norm plus eps, by a whole block. Thread i wrote the elements i,
   i + blockDim.x, ... itself. */
template <typename Real>
__device__ void normalize_descriptor(Real *descriptor, Index size, double eps)
{
    const double squares = squares_by_block(descriptor, size);
    if (is_in_range(squares, eps)) {
        const Real divisor = (Real)(sqrt(squares) + eps);
        for (Index i = threadIdx.x; i < size; i += blockDim.x)
            descriptor[i] /= divisor;
    } else if (threadIdx.x < WARP) {
        normalize_scaled(descriptor, size, eps);
    }
}

/* Turn regional vectors (image, most_regions, channels) into descriptors: in place, or in `out`
   (image, channels). `divisors` (image, most_regions) is memory for the blocks. */
template <typename Real>
__global__ void __launch_bounds__(DESCRIBE_THREADS) describe(
    const DescribeLaunch launch, Real *vectors, Divisor<Real> *divisors, Real *out)
{
    const AggregationOptions &options = launch.options;
    const int regions = launch.same_count ? launch.same_count : launch.counts[blockIdx.x];
    const Index image = launch.first_image + blockIdx.x;
    vectors += image * launch.most_regions * launch.channels;
    divisors += image * launch.most_regions;
    Real *descriptor = options.in_place ? vectors : out + image * launch.channels;

    if (options.normalize_regions)
        find_divisors(launch, vectors, divisors, regions);
    if (!options.in_place)
        aggregate_regions(launch, vectors, divisors, regions, descriptor);
    else if (options.normalize_regions)
        divide_in_place(launch, vectors, divisors, regions);
    if (options.normalize) {
        const Index size = (Index)(options.in_place ? regions : 1) * launch.channels;
        normalize_descriptor(descriptor, size, options.eps);
    }
}
