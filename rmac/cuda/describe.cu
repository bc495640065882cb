/* Descriptors of images from their regional vectors.

   Accumulation
       The squares of QUAD neighbouring channels are summed in `Real`, the type of the descriptor.
       These sums are added in float64: in each group of NORM_GROUP channels, then over the groups.
       Regional vectors are added in `Real`. The order of additions depends on the shape alone, not
       on the kernel. CuPy compiles float32 arithmetic to take subnormals as 0. So a vector whose
       norm is near these is scaled first, see normalize_scaled().
   NaN
       A NaN in a regional vector makes its norm NaN, and so all elements of the vector.
   Memory layout
       Regional vectors are (image, region, channel), contiguous, and are overwritten. Sums of
       squares are (image, region, group).
   Thread mapping
       To sum squares, 4 threads take a group. This is done by the blocks that pool, each for its
       channels, or by the blocks of `describe`. Then one block describes an image: the last block
       that pools channels of the image, or a block of `describe`. In it, a warp takes the norm of a
       region; then a thread takes a channel. */

/* Values that a thread loads before it uses the first, because a block that describes waits for
   memory most of the time. The time with other numbers is not recorded. */
template <typename Real> constexpr int VALUES_AT_ONCE = 64 / sizeof(Real);

/* The same for values that are also written. More would need many registers. */
const int QUOTIENTS_AT_ONCE = 4;
const int QUAD = 4;       /* channels that a thread squares with one load */
const int DIVISORS = 256; /* one for each region, that a block holds at once; not measured */

struct DescribeLaunch {
    Index first_image;
    int most_regions; /* of an image; each has memory for so many vectors */
    int channels;
    AggregationOptions options;
    void *vectors;
    double *squares;
    int are_squared;    /* whether the squares of the regional vectors are summed already */
    int same_count;     /* the regions of each image if all have as many, else 0 */
    int counts[COUNTS]; /* the regions of each image if they differ */
};

__device__ inline int groups_of(int channels) { return (channels + NORM_GROUP - 1) / NORM_GROUP; }

/* The regional vectors of an image, and the sums of their squares. Addresses are computed at each
   use, since that takes fewer registers. */
template <typename Real> struct ImageVectors {
    Real *first_image;
    double *squares_of_first;
    int image;
    int vectors, sums; /* how many regions of each image have memory: for vectors, for sums */
    int regions, channels;

    __device__ Real *vector(int region) const
    {
        return first_image + ((Index)image * vectors + region) * channels;
    }

    __device__ double *squares(int region) const
    {
        return squares_of_first + ((Index)image * sums + region) * groups_of(channels);
    }
};

/* What a regional vector is divided by, and its inverse. */
template <typename Real> struct Divisor {
    Real value, inverse;
};

static_assert(
    DIVISORS * sizeof(Divisor<double>) + sizeof(int) <= DESCRIBE_SHARED,
    "shared memory to describe");

/* Return how many warps of the block have all their threads. */
__device__ inline int whole_warps() { return threads_of_block() / WARP; }

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

/* Return the sum of many values to all threads of the warp that computes it. */
__device__ inline double sum_by_warp(const double *values, Index n)
{
    double sum = 0;
#pragma unroll 1
    for (Index i = thread_of_block() % WARP; i < n; i += VALUES_AT_ONCE<double> * WARP) {
        double loaded[VALUES_AT_ONCE<double>];
#pragma unroll
        for (int j = 0; j < VALUES_AT_ONCE<double>; j++)
            loaded[j] = i + j * WARP < n ? values[i + j * WARP] : 0;
#pragma unroll
        for (int j = 0; j < VALUES_AT_ONCE<double>; j++)
            sum += loaded[j];
    }
    return sum_of_warp(sum);
}

/* Sum the squares of the first QUAD values, or of all `count` if these are fewer. If they are
   aligned, one load takes QUAD of them. */
template <typename Real>
__device__ Real squares_of_quad(const Real *values, int count, bool aligned)
{
    Vector<Real, QUAD> quad;
    if (aligned && count >= QUAD)
        quad = *(const Vector<Real, QUAD> *)values;
    else
        for (int k = 0; k < QUAD; k++)
            quad.at[k] = k < count ? values[k] : 0;
    Real sum = quad.at[0] * quad.at[0];
#pragma unroll
    for (int k = 1; k < QUAD; k++)
        sum = fma(quad.at[k], quad.at[k], sum);
    return sum;
}

/* Sum the squares of `count` channels in groups, for all regions. A group begins at `first`. */
template <typename Real>
__device__ void sum_squares(const ImageVectors<Real> &image, int first, int count)
{
    const int threads = NORM_GROUP / QUAD; /* of a group */
    const int lane = thread_of_block() % WARP, warp = thread_of_block() / WARP;
    const int groups = groups_of(count), place = lane % threads * QUAD;
    const bool aligned = (size_t)image.first_image % sizeof(Vector<Real, QUAD>) == 0
                         && image.channels % QUAD == 0;
    const unsigned int sums = warp < whole_warps() ? (unsigned int)image.regions * groups : 0;
#pragma unroll 1
    for (unsigned int i = warp * (WARP / threads); i < sums;
         i += whole_warps() * (WARP / threads)) {
        const unsigned int at = min(i + lane / threads, sums - 1);
        const int region = at / groups, group = at % groups;
        const int channel = group * NORM_GROUP + place;
        double sum = squares_of_quad(
            image.vector(region) + first + channel, count - channel, aligned);
        for (int distance = 1; distance < threads; distance *= 2)
            sum += __shfl_xor_sync(0xFFFFFFFF, sum, distance);
        if (place == 0)
            image.squares(region)[first / NORM_GROUP + group] = sum;
    }
}

/* Return whether a norm, its square and their inverses are far from overflow and underflow. If the
   square of a value overflows, or all squares underflow, `squares` is infinite, NaN or 0: these are
   out of range. */
template <typename Real> __device__ bool is_in_range(double squares, double eps)
{
    const double least = sizeof(Real) == sizeof(float) ? 1e-20 : 1e-60;
    return squares > least && squares < 1e60 && eps < 1e30;
}

__device__ inline double power_of_two(int exponent)
{
    const long long bits = (long long)(1023 + exponent) << 52;
    double power;
    memcpy(&power, &bits, sizeof(power));
    return power;
}

/* Divide a vector by its norm plus eps, whatever its values. A whole warp does it. The vector and
   eps are scaled first, so that the largest value is near 1. That takes two powers of two, since
   their product may be out of range. */
template <typename Real> __device__ void normalize_scaled(Real *values, Index n, double eps)
{
    const Real *const stop = values + n;
    values += thread_of_block() % WARP;
    double peak = 0, squares = 0;
#pragma unroll 1
    for (const Real *at = values; at < stop; at += WARP)
        peak = fmax(peak, fabs(to_double(*at)));
    peak = max_of_warp(peak);
    long long bits;
    memcpy(&bits, &peak, sizeof(bits));
    const int exponent = (int)(bits >> 52) - 1023;
    const double scale = power_of_two(-exponent / 2);
    const double rest = power_of_two(-exponent - -exponent / 2);
#pragma unroll 1
    for (const Real *at = values; at < stop; at += WARP) {
        const double value = to_double(*at) * scale * rest;
        squares = fma(value, value, squares);
    }
    double divisor = sqrt(sum_of_warp(squares)) + eps * scale * rest;
    if (divisor == 0)
        divisor = 1;
#pragma unroll 1
    for (Real *at = values; at < stop; at += WARP)
        *at = (Real)(to_double(*at) * scale * rest / divisor);
}

/* Find the divisors of `count` regional vectors from `first` on: norms plus eps, or 1 if vectors
   are not normalised. A vector whose norm is not in range is divided here, and has the divisor 1.
   All threads of a warp write the same divisors. */
template <typename Real>
__device__ void find_divisors(
    const AggregationOptions &options, const ImageVectors<Real> &image, int first, int count)
{
    Divisor<Real> *divisors = (Divisor<Real> *)shared_memory;
    const int warp = thread_of_block() / WARP;
    const int end = warp < whole_warps() ? count : 0;
#pragma unroll 1
    for (int i = warp; i < end; i += whole_warps()) {
        Real divisor = 1;
        if (options.normalize_regions) {
            const double squares =
                sum_by_warp(image.squares(first + i), groups_of(image.channels));
            const bool in_range = is_in_range<Real>(squares, options.eps);
            divisor = in_range ? (Real)(sqrt(squares) + options.eps) : 0;
        }
        divisors[i] = {divisor, 1 / divisor};
    }
#pragma unroll 1
    for (int i = warp; i < end; i += whole_warps())
        if (divisors[i].value == 0) {
            normalize_scaled(image.vector(first + i), image.channels, options.eps);
            divisors[i] = {1, 1};
        }
    __syncthreads();
}

/* Divide every `step`th value from `first` on. The product with the inverse is corrected by the
   remainder: mostly the same bits as a division, in a third of its instructions. */
template <typename Real>
__device__ void divide_values(
    Real *values, Index n, int first, int step, const Divisor<Real> &divisor)
{
#pragma unroll 1
    for (Index i = first; i < n; i += QUOTIENTS_AT_ONCE * step) {
        Real loaded[QUOTIENTS_AT_ONCE];
#pragma unroll
        for (int j = 0; j < QUOTIENTS_AT_ONCE; j++)
            loaded[j] = i + j * step < n ? values[i + j * step] : 0;
#pragma unroll
        for (int j = 0; j < QUOTIENTS_AT_ONCE; j++) {
            const Real quotient = loaded[j] * divisor.inverse;
            const Real remainder = fma(-quotient, divisor.value, loaded[j]);
            if (i + j * step < n)
                values[i + j * step] = fma(remainder, divisor.inverse, quotient);
        }
    }
}

/* Divide `count` regional vectors from `first` on. */
template <typename Real>
__device__ void divide_vectors(const ImageVectors<Real> &image, int first, int count)
{
    const Divisor<Real> *divisors = (Divisor<Real> *)shared_memory;
#pragma unroll 1
    for (int i = 0; i < count; i++)
        divide_values(
            image.vector(first + i), image.channels, thread_of_block(), threads_of_block(),
            divisors[i]);
}

/* Divide `count` regional vectors from `first` on, and add them to the descriptor. It is 0 before
   region 0 is added. A mean is divided by the number of regions after the last is added. */
template <typename Real>
__device__ void add_vectors(
    const ImageVectors<Real> &image, int first, int count, bool is_mean,
    const ImageVectors<Real> &descriptor)
{
    const Divisor<Real> *divisors = (Divisor<Real> *)shared_memory;
#pragma unroll 1
    for (int channel = thread_of_block(); channel < image.channels; channel += threads_of_block()) {
        const Real *at = image.vector(first) + channel;
        Real sum = first ? descriptor.vector(0)[channel] : 0;
#pragma unroll 1
        for (int i = 0; i < count; i += VALUES_AT_ONCE<Real>) {
            Real loaded[VALUES_AT_ONCE<Real>];
#pragma unroll
            for (int j = 0; j < VALUES_AT_ONCE<Real>; j++, at += i + j < count ? image.channels : 0)
                loaded[j] = *at;
#pragma unroll
            for (int j = 0; j < VALUES_AT_ONCE<Real>; j++)
                if (i + j < count)
                    sum = fma(loaded[j], divisors[i + j].inverse, sum);
        }
        const bool complete = first + count == image.regions;
        descriptor.vector(0)[channel] = complete && is_mean ? sum / image.regions : sum;
    }
}

/* Divide all vectors of an image, as one long vector, by its norm plus eps. */
template <typename Real>
__device__ void normalize_as_one(const ImageVectors<Real> &image, double eps)
{
    const Index size = (Index)image.regions * image.channels;
    sum_squares(image, 0, image.channels);
    __syncthreads();
    if (thread_of_block() / WARP >= whole_warps())
        return;
    const double squares =
        sum_by_warp(image.squares(0), (Index)image.regions * groups_of(image.channels));
    if (is_in_range<Real>(squares, eps)) {
        const Real divisor = (Real)(sqrt(squares) + eps);
        divide_values(
            image.vector(0), size, thread_of_block(), whole_warps() * WARP,
            Divisor<Real>{divisor, 1 / divisor});
    } else if (thread_of_block() < WARP) {
        normalize_scaled(image.vector(0), size, eps);
    }
}

/* Turn the regional vectors of an image into its descriptor: in place, or in `descriptors`. The
   sums of their squares are known already. */
template <typename Real>
__device__ void describe_image(
    const AggregationOptions &options, bool in_place, const ImageVectors<Real> &image,
    Real *descriptors)
{
    const ImageVectors<Real> result = {
        in_place ? image.first_image : descriptors, image.squares_of_first, image.image,
        in_place ? image.vectors : 1, image.sums, in_place ? image.regions : 1, image.channels};
#pragma unroll 1
    for (int first = 0; first == 0 || first < image.regions; first += DIVISORS) {
        const int count = min(image.regions - first, DIVISORS);
        find_divisors(options, image, first, count);
        if (!in_place)
            add_vectors(image, first, count, options.aggregate == MEAN, result);
        else if (options.normalize_regions)
            divide_vectors(image, first, count);
        __syncthreads();
    }
    if (options.normalize)
        normalize_as_one(result, options.eps);
}

/* Return to all threads of a block whether it is the last of the image to get here. The last block
   sees what the others have written. The counter is 0 before the first and after the last. */
__device__ inline bool is_last_block(unsigned int *finished, int blocks)
{
    int *is_last = (int *)((Divisor<double> *)shared_memory + DIVISORS); /* behind the divisors */
    __syncthreads();
    if (thread_of_block() == 0) {
        __threadfence();
        *is_last = atomicInc(finished, blocks - 1) == (unsigned int)blocks - 1;
        __threadfence();
    }
    __syncthreads();
    return *is_last;
}

/* Sum the squares of what a block has pooled; the last block of an image also describes it. */
template <Kind kind, typename Out>
__device__ void describe_pooled(
    const PoolLaunch &launch, const Task &task, int channel_block, Out *vectors)
{
    typedef RealOf<kind> Real;
    const Description &description = launch.description;
    if constexpr (sizeof(Out) == sizeof(Real)) { /* other results are not for descriptors */
        if (!description.squares)
            return;
        const int most = launch.regions;
        const ImageVectors<Real> image = {
            (Real *)vectors, description.squares, (int)task.image, most, most, task.regions,
            launch.channels};
        __syncthreads();
        if (description.options.normalize_regions)
            sum_squares(image, task.first_channel, task.channels);
        const int blocks = (launch.channels + channel_block - 1) / channel_block;
        if (description.finished && is_last_block(description.finished + task.image, blocks))
            describe_image(description.options, false, image, (Real *)description.descriptors);
    }
}

template <typename Real>
__global__ void __launch_bounds__(DESCRIBE_THREADS) describe(
    const DescribeLaunch launch, Real *out)
{
    const int most = launch.most_regions;
    const Index first = launch.first_image * most;
    const ImageVectors<Real> image = {
        (Real *)launch.vectors + first * launch.channels,
        launch.squares + first * groups_of(launch.channels), (int)blockIdx.x, most, most,
        launch.same_count ? launch.same_count : launch.counts[blockIdx.x], launch.channels};
    if (launch.options.normalize_regions && !launch.are_squared) {
        sum_squares(image, 0, image.channels);
        __syncthreads();
    }
    describe_image(
        launch.options, launch.options.in_place, image,
        out + launch.first_image * launch.channels);
}
