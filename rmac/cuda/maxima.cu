/* Regional maxima, in one pass over the map.

   Accumulation
       Maxima of keys: 64 bits for float64, 32 for other dtypes. Their order does not matter, so the
       results have the same bits in any order of threads. The atomics are on integers.
   NaN
       A region with a NaN gives a NaN.
   Memory layout
       pool_rows: contiguous rows; or rows of any strides, one element at a time.
       pool_channels: contiguous channels.
   Thread mapping
       pool_rows: threadIdx.x is along a row, one vector of elements each; threadIdx.y is over
       channels and bands.
       pool_channels: threadIdx.x is over vectors of channels; threadIdx.y is over tiles. If there
       are fewer tiles than threads, several threads share the rows of a tile. */

template <typename Key> __device__ void fill(Key *tiles, Key value, int count)
{
    for (int i = thread_of_block(); i < count; i += blockDim.x * blockDim.y)
        tiles[i] = value;
}

/* Write the maxima of all regions, from tiles with room for `channel_block` channels each. */
template <Kind kind, typename Out>
__device__ void write_regions(
    const PoolLaunch &launch, const Task &task, const KeyOf<kind> *tiles, int channel_block,
    Out *out)
{
    const int count = task.regions * channel_block;
    for (int i = thread_of_block(); i < count; i += blockDim.x * blockDim.y) {
        const int channel = i % channel_block, region = i / channel_block;
        if (channel >= task.channels)
            continue;
        const RegionSpan span = span_of(task, region);
        KeyOf<kind> most = least_key<kind>();
        for (int band = span.top; band <= span.bottom; band++)
            for (int segment = span.left; segment <= span.right; segment++)
                most = max(
                    most, tiles[(band * task.segments + segment) * channel_block + channel]);
        store<kind>(
            out + output_index(launch, task, region, channel), most, launch.zero_point);
    }
}

/* Take `steps` vectors, `stride` bytes apart, into the maxima of their elements. */
template <Kind kind, int count>
__device__ void take_maxima(KeyOf<kind> (&most)[count], const char *data, int steps, Index stride)
{
    typedef Vector<BitsOf<kind>, count> Bits;
#pragma unroll 4
    for (int i = 0; i < steps; i++, data += stride) {
        const Bits bits = *(const Bits *)data;
#pragma unroll
        for (int k = 0; k < count; k++)
            most[k] = max(most[k], encode<kind>(bits.at[k]));
    }
}

/* Combine the maxima of `count` columns, from column x on, with the tiles of their band and
   channel. `segment` is the first one that stops after x. */
template <typename Key, int count>
__device__ void add_to_tiles(const Task &task, const Key *columns, int x, int segment, Key *tiles)
{
    Key most = columns[0];
    bool some = false; /* whether `most` is that of the segment so far */
#pragma unroll
    for (int k = 0; k < count; k++) {
        if (segment < task.segments && x + k >= task.segment[2 * segment + 1]) {
            if (some)
                atomicMax(tiles + segment * CHANNEL_BLOCK, most);
            some = false;
            segment++;
        }
        if (segment < task.segments && x + k >= task.segment[2 * segment]) {
            most = some ? max(most, columns[k]) : columns[k];
            some = true;
        }
    }
    if (some)
        atomicMax(tiles + segment * CHANNEL_BLOCK, most);
}

template <Kind kind, int count, typename Out>
__global__ void pool_rows(const PoolLaunch launch, Out *out)
{
    typedef KeyOf<kind> Key;
    Key *tiles = (Key *)shared_memory;
    const Task task = task_of_block(launch, CHANNEL_BLOCK);
    const Strides &strides = task.batch->strides;

    fill(tiles, least_key<kind>(), task.bands * task.segments * CHANNEL_BLOCK);
    __syncthreads();
    for (int x = threadIdx.x * count; x < task.batch->width; x += blockDim.x * count) {
        int segment = 0;
        while (segment < task.segments && task.segment[2 * segment + 1] <= x)
            segment++;
        for (int i = threadIdx.y; i < task.channels * task.bands; i += blockDim.y) {
            const int channel = i / task.bands, band = i % task.bands;
            const int top = task.band[2 * band], bottom = task.band[2 * band + 1];
            Key most[count];
#pragma unroll
            for (int k = 0; k < count; k++)
                most[k] = least_key<kind>();
            take_maxima<kind, count>(
                most, channel_data(task, channel) + top * strides.row + x * strides.pixel,
                bottom - top, strides.row);
            add_to_tiles<Key, count>(
                task, most, x, segment, tiles + band * task.segments * CHANNEL_BLOCK + channel);
        }
    }
    __syncthreads();
    write_regions<kind>(launch, task, tiles, CHANNEL_BLOCK, out);
}

template <Kind kind, int count, typename Out>
__global__ void pool_channels(const PoolLaunch launch, Out *out)
{
    typedef KeyOf<kind> Key;
    Key *tiles = (Key *)shared_memory;
    const int channel_block = blockDim.x * count, channel = threadIdx.x * count;
    const Task task = task_of_block(launch, channel_block);
    const Strides &strides = task.batch->strides;
    const int tile_count = task.bands * task.segments;
    const int parts = max(1, (int)blockDim.y / tile_count); /* threads that share a tile's rows */

    fill(tiles, least_key<kind>(), tile_count * channel_block);
    __syncthreads();
    for (int i = threadIdx.y; i < tile_count * parts; i += blockDim.y) {
        if (channel >= task.channels)
            continue;
        const int tile = i % tile_count, part = i / tile_count;
        const int *band = task.band + 2 * (tile / task.segments);
        const int *segment = task.segment + 2 * (tile % task.segments);
        const char *data = channel_data(task, channel) + segment[0] * strides.pixel;
        Key most[count];
#pragma unroll
        for (int k = 0; k < count; k++)
            most[k] = least_key<kind>();
        for (int y = band[0] + part; y < band[1]; y += parts)
            take_maxima<kind, count>(
                most, data + y * strides.row, segment[1] - segment[0], strides.pixel);
        Key *of_tile = tiles + tile * channel_block + channel;
#pragma unroll
        for (int k = 0; k < count; k++)
            if (parts == 1)
                of_tile[k] = most[k];
            else
                atomicMax(of_tile + k, most[k]);
    }
    __syncthreads();
    write_regions<kind>(launch, task, tiles, channel_block, out);
}
