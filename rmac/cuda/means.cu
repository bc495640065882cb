/* Regional means, plain and generalised, in one pass over the map.

   Accumulation
       In `Sum`, which is float32 or float64. There are no atomics, and the order of additions
       depends on the shape alone. CuPy compiles float32 arithmetic to take subnormals as 0.
   NaN
       A region with a NaN gives a NaN.
   Memory layout
       Maps have any strides.
   Thread mapping
       A thread sums one tile of one channel. If there are fewer tiles than threads, several threads
       share the rows of a tile. Then a thread adds the tiles of one region and channel.
       Neighbouring threads take neighbouring channels if these are contiguous (`by_channels`), else
       neighbouring segments of a row. */

const double LEAST_BASE = 1e-6; /* the generalised mean replaces values below this */
const int MOST_FACTORS = 6;     /* whole powers up to this one are products; not measured */

template <typename Sum> __device__ Sum apply_power(Sum value, double p)
{
    if (p == 0)
        return value;
    value = value < (Sum)LEAST_BASE ? (Sum)LEAST_BASE : value;
    if (p > MOST_FACTORS || p != (int)p)
        return pow(value, (Sum)p);
    Sum power = value;
    for (int i = 1; i < (int)p; i++)
        power *= value;
    return power;
}

/* Sum a segment of every `step`th row of a band, from row y on. */
template <Kind kind, typename Sum>
__device__ Sum sum_of_rows(
    const Strides &strides, const char *data, const int *segment, int y, int bottom, int step,
    double p, int zero_point)
{
    Sum sum = 0;
    for (; y < bottom; y += step) {
        const char *pixel = data + y * strides.row + segment[0] * strides.pixel;
#pragma unroll 4
        for (int x = segment[0]; x < segment[1]; x++, pixel += strides.pixel)
            sum += apply_power((Sum)widen<kind>(*(const BitsOf<kind> *)pixel, zero_point), p);
    }
    return sum;
}

/* Return the mean of a region of one channel. Each of its tiles has `parts` sums. */
template <typename Sum>
__device__ Sum mean_of_region(const Task &task, int region, const Sum *sums, int parts, double p)
{
    const RegionSpan span = span_of(task, region);
    const int part_size = task.bands * task.segments * CHANNEL_BLOCK;
    Sum sum = 0;
    for (int band = span.top; band <= span.bottom; band++)
        for (int segment = span.left; segment <= span.right; segment++)
            for (int part = 0; part < parts; part++)
                sum += sums[part * part_size + (band * task.segments + segment) * CHANNEL_BLOCK];
    const Index height = task.band[2 * span.bottom + 1] - task.band[2 * span.top];
    const Index width = task.segment[2 * span.right + 1] - task.segment[2 * span.left];
    const Sum mean = sum / (Sum)(height * width);
    return p == 0 || p == 1 ? mean : pow(mean, (Sum)(1 / p));
}

/* Sum all tiles: (part, band, segment, channel). */
template <Kind kind, typename Sum>
__device__ void sum_tiles(
    const PoolLaunch &launch, const Task &task, Sum *sums, int parts)
{
    const int size = task.bands * task.segments * CHANNEL_BLOCK;
    for (int i = threadIdx.x; i < parts * size; i += blockDim.x) {
        const int j = i % size, part = i / size;
        const int channel =
            launch.by_channels ? j % CHANNEL_BLOCK : j / task.segments % CHANNEL_BLOCK;
        const int segment = (launch.by_channels ? j / CHANNEL_BLOCK : j) % task.segments;
        const int band = j / (task.segments * CHANNEL_BLOCK);
        if (channel >= task.channels)
            continue;
        sums[part * size + (band * task.segments + segment) * CHANNEL_BLOCK + channel] =
            sum_of_rows<kind, Sum>(
                task.batch->strides, channel_data(task, channel), task.segment + 2 * segment,
                task.band[2 * band] + part, task.band[2 * band + 1], parts, launch.p,
                launch.zero_point);
    }
}

template <Kind kind, typename Sum, typename Out>
__global__ void pool_means(const PoolLaunch launch, Out *out)
{
    Sum *sums = (Sum *)shared_memory;
    const Task task = task_of_block(launch, CHANNEL_BLOCK);
    const int size = task.bands * task.segments * CHANNEL_BLOCK;
    const int parts = max(1, (int)blockDim.x / size); /* threads that share a tile's rows */

    sum_tiles<kind>(launch, task, sums, parts);
    __syncthreads();
    for (int i = threadIdx.x; i < task.regions * CHANNEL_BLOCK; i += blockDim.x) {
        const int channel = i % CHANNEL_BLOCK, region = i / CHANNEL_BLOCK;
        if (channel < task.channels)
            out[output_index(launch, task, region, channel)] =
                (Out)mean_of_region(task, region, sums + channel, parts, launch.p);
    }
    describe_pooled<kind>(launch, task, CHANNEL_BLOCK, out);
}
