/* Regional means, plain and generalised, in one pass over the map.

   Memory
       Cells, tables and launches are those of regions.cu. A block takes PLANES channels of one
       image, of any strides.
   Accumulation
       In `Sum`, float32 or float64, without atomics, in an order that depends on the shape alone: a
       thread sums a cell of one channel or some of its rows, then one sums the cells of a region.
       NaN stays NaN. CuPy has float32 arithmetic take subnormals as 0.
   Threads
       Neighbours take channels that lie side by side in memory, or else segments of a row. */

const double LEAST = 1e-6; /* to which values are raised before their power is taken */
const int MOST_FACTORS = 6; /* of a power that is taken by multiplication */

template <typename Sum> __device__ Sum raised(Sum value, double p)
{
    if (p == 0)
        return value;
    value = value < (Sum)LEAST ? (Sum)LEAST : value;
    if (p > MOST_FACTORS || p != (int)p)
        return pow(value, (Sum)p);
    Sum power = value;
    for (int i = 1; i < (int)p; i++)
        power *= value;
    return power;
}

/* Sum every `step`th row of a cell, from row y on. */
template <int kind, typename Sum>
__device__ Sum sum_of_rows(
    const Map &map, const char *plane, const int *segment, int y, int bottom, int step, double p)
{
    typedef typename Dtype<kind>::Bits Bits;
    Sum sum = 0;
    for (; y < bottom; y += step) {
        const char *pixel = plane + y * map.row_stride + segment[0] * map.pixel_stride;
#pragma unroll 4
        for (int x = segment[0]; x < segment[1]; x++, pixel += map.pixel_stride)
            sum += raised((Sum)widen<kind>(*(const Bits *)pixel), p);
    }
    return sum;
}

template <typename Sum>
__device__ Sum mean_of_region(
    const Work &work, const int *region, const Sum *sums, int parts, double p)
{
    const int top = region[0] & 255, bottom = region[0] >> 8 & 255;
    const int left = region[0] >> 16 & 255, right = region[0] >> 24 & 255;
    const int part_size = work.bands * work.segments * PLANES;
    Sum sum = 0;
    for (int band = top; band <= bottom; band++)
        for (int segment = left; segment <= right; segment++)
            for (int part = 0; part < parts; part++)
                sum += sums[part * part_size + (band * work.segments + segment) * PLANES];
    const Index high = work.band[2 * bottom + 1] - work.band[2 * top];
    const Index wide = work.segment[2 * right + 1] - work.segment[2 * left];
    const Sum mean = sum / (Sum)(high * wide);
    return p == 0 || p == 1 ? mean : pow(mean, (Sum)(1 / p));
}

template <int kind, typename Sum, typename Out>
__global__ void pool_means(const Launch launch, double p, int by_channels, Out *out)
{
    Sum *sums = (Sum *)shared_memory;
    const Work work = work_of_block(launch, PLANES);
    const Map &map = *work.map;
    const int channels = min(PLANES, launch.channels - work.first);
    const int cells = work.bands * work.segments;
    const int parts = max(1, (int)blockDim.x / (cells * PLANES)); /* of a cell's rows */

    for (int i = threadIdx.x; i < parts * cells * PLANES; i += blockDim.x) {
        const int j = i % (cells * PLANES), part = i / (cells * PLANES);
        const int channel = by_channels ? j % PLANES : j / work.segments % PLANES;
        const int segment = (by_channels ? j / PLANES : j) % work.segments;
        const int band = j / (work.segments * PLANES);
        if (channel >= channels)
            continue;
        const char *plane = work.data + (work.first + channel) * map.channel_stride;
        sums[part * cells * PLANES + (band * work.segments + segment) * PLANES + channel] =
            sum_of_rows<kind, Sum>(
                map, plane, work.segment + 2 * segment, work.band[2 * band] + part,
                work.band[2 * band + 1], parts, p);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < work.regions * PLANES; i += blockDim.x) {
        const int channel = i % PLANES;
        const int *region = work.region + 2 * (i / PLANES);
        if (channel < channels)
            out[(work.image * launch.regions + region[1]) * launch.channels + work.first + channel] =
                (Out)mean_of_region(work, region, sums + channel, parts, p);
    }
}
