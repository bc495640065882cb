/* From an image's regional maxima to its descriptor: a block for each image, a warp for each region's
   norm.

   Norms are summed in float64, regional vectors in the type of the descriptor, both in an order that
   depends on the shape alone. CuPy has float32 arithmetic take subnormals as 0: so do sums over
   regions; norms are kept from it. */

enum Aggregate { NONE, SUM, MEAN, CONCAT };

const int WARP = 32;

/* A number in float64, subnormals too. */
__device__ inline double wide(double value) { return value; }

__device__ inline double wide(float value)
{
    unsigned int bits;
    memcpy(&bits, &value, sizeof(bits));
    if (bits & 0x7F800000)
        return value;
    const double magnitude = (bits & 0x7FFFFF) * 1.401298464324817e-45; /* times 2**-149 */
    return bits >> 31 ? -magnitude : magnitude;
}

/* The sum of a warp's values, the same in all its lanes. */
__device__ inline double sum_of_warp(double value)
{
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        value += __shfl_xor_sync(0xFFFFFFFF, value, distance);
    return value;
}

__device__ inline double peak_of_warp(double value)
{
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        value = fmax(value, __shfl_xor_sync(0xFFFFFFFF, value, distance));
    return value;
}

/* What each of `threads` threads adds to the sum of squares of values divided by `peak`. */
template <typename Real>
__device__ double part_of_squares(const Real *values, Index n, int thread, int threads, double peak)
{
    double sum = 0;
#pragma unroll 4
    for (Index i = thread; i < n; i += threads) {
        const double value = peak == 1 ? wide(values[i]) : wide(values[i]) / peak;
        sum += value * value;
    }
    return sum;
}

__device__ inline bool in_range(double squares, double eps)
{
    return squares > 1e-60 && squares < 1e60 && eps < 1e30;
}

/* Return, to a whole warp, what a vector is to be divided by: its norm plus eps. Where that, its
   inverse or its square could be out of range, the vector is divided here, and 1 remains to do. */
template <typename Real> __device__ Real norm_of(Real *values, Index n, double eps)
{
    const int lane = threadIdx.x % WARP;
    const double squares = sum_of_warp(part_of_squares(values, n, lane, WARP, 1.0));
    if (in_range(squares, eps))
        return (Real)(sqrt(squares) + eps);
    double peak = 0;
    for (Index i = lane; i < n; i += WARP)
        peak = fmax(peak, fabs(wide(values[i])));
    peak = peak_of_warp(peak);
    if (peak == 0 || peak > 1.7976931348623157e308)
        peak = 1;
    double length = sqrt(sum_of_warp(part_of_squares(values, n, lane, WARP, peak))) + eps / peak;
    if (length == 0)
        length = 1;
    for (Index i = lane; i < n; i += WARP)
        values[i] = (Real)(wide(values[i]) / peak / length);
    return 1;
}

/* How many regions images have: all the same number, or each of a launch's its own. */
struct Counts {
    int same, of_image[COUNTED];
};

/* Turn regional maxima (N, most, C), which are overwritten, into descriptors: (N, C), or in place
   if regions are neither summed nor averaged. `norms` is (N, most), for the block's use. */
template <typename Real>
__global__ void describe(
    Real *maxima, Real *norms, Real *out, Index first, int most, int channels, const Counts counts,
    int normalize_regions, int aggregate, int normalize, double eps)
{
    const int warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const int regions = counts.same ? counts.same : counts.of_image[blockIdx.x];
    const Index image = first + blockIdx.x;
    const bool in_place = aggregate == NONE || aggregate == CONCAT;
    const Index size = in_place ? (Index)regions * channels : channels;
    Real *vectors = maxima + image * most * channels;
    Real *norm = norms + image * most;
    Real *descriptor = in_place ? vectors : out + image * channels;

    if (normalize_regions)
        for (int region = warp; region < regions; region += warps) {
            const Real length = norm_of(vectors + (Index)region * channels, channels, eps);
            if (threadIdx.x % WARP == 0)
                norm[region] = length;
        }
    __syncthreads();
    for (Index i = threadIdx.x; i < size; i += blockDim.x) {
        if (in_place) {
            if (normalize_regions)
                vectors[i] /= norm[i / channels];
            continue;
        }
        Real sum = 0;
#pragma unroll 4
        for (int region = 0; region < regions; region++) {
            const Real value = vectors[(Index)region * channels + i];
            sum += normalize_regions ? value / norm[region] : value;
        }
        descriptor[i] = aggregate == MEAN ? sum / regions : sum;
    }
    if (!normalize)
        return;
    /* A thread sums the squares of what it wrote itself. */
    double *parts = (double *)shared_memory; /* of each warp */
    double squares =
        sum_of_warp(part_of_squares(descriptor, size, threadIdx.x, blockDim.x, 1.0));
    if (threadIdx.x % WARP == 0)
        parts[warp] = squares;
    __syncthreads();
    squares = 0;
    for (int i = 0; i < warps; i++)
        squares += parts[i];
    if (!in_range(squares, eps)) {
        if (warp == 0)
            norm_of(descriptor, size, eps);
        return;
    }
    const Real length = (Real)(sqrt(squares) + eps);
    for (Index i = threadIdx.x; i < size; i += blockDim.x)
        descriptor[i] /= length;
}
