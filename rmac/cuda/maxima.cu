/* Regional maxima, in one pass over the map.

   Accumulation
       Maxima of keys: 64 bits for float64, 32 for other dtypes. The order in which they are taken
       does not matter, so atomics on these integers give the same bits in any order of threads.
   NaN
       A region with a NaN gives a NaN.
   Memory layout
       pool_rows: contiguous rows; or rows of any strides, one element at a time.
       pool_channels: contiguous channels.
   Thread mapping
       pool_rows: threadIdx.x is along a row, one vector of elements each; threadIdx.y is over
       channels. A thread goes down its columns, from band to band.
       pool_channels: threadIdx.x is over vectors of channels; threadIdx.y is over rows. A thread
       goes along its row, from segment to segment.
       Bands and segments end at the same place for all threads of a warp. */

/* Vectors that a thread loads before it uses the first, so that many bytes are on their way. 8 of
   float64 do not fit in registers. The time with fewer is not recorded. */
template <Kind kind> constexpr int VECTORS_AT_ONCE = sizeof(BitsOf<kind>) < 8 ? 8 : 4;

/* Blocks for whose registers a multiprocessor has room. With one more, loads in flight would spill.
   On an H100, pool_channels with 4 blocks takes 0.9 to 1.0 of its time with 3. */
#define ROWS_BLOCKS (__CUDA_ARCH__ < 1200 ? 3 : 2)
#define CHANNELS_BLOCKS (__CUDA_ARCH__ / 100 == 9 || __CUDA_ARCH__ / 100 == 10 ? 4 : 3)

/* Keys from one tile of pool_rows to the next: an odd number, so that neighbouring tiles of one
   channel are in different banks. */
const int TILE_PITCH = CHANNEL_BLOCK + 1;

template <typename Key> __device__ void fill(Key *tiles, Key value, int count)
{
    for (int i = thread_of_block(); i < count; i += threads_of_block())
        tiles[i] = value;
}

/* The layout of the tiles of a block: (band, segment, element of a vector, lane). */
struct Tiles {
    int band, segment, element; /* keys from one to the next */
};

/* What a thread writes at the end of a kernel: a vector of channels, of each `groups`th region from
   `group` on. The channels are `first`, `first` + `step` and so on. */
struct Share {
    int lane; /* where its keys begin in each tile */
    int first, step;
    int group, groups;
};

/* Find the maxima of a region for a vector of channels, whose keys begin at `key`. */
template <typename Key, int many>
__device__ void find_maxima(
    const RegionSpan &span, const Key *key, const Tiles &tiles, Key (&most)[many])
{
    key += span.top * tiles.band + span.left * tiles.segment;
    for (int band = span.top; band <= span.bottom; band++, key += tiles.band) {
        const Key *tile = key;
#pragma unroll 2
        for (int segment = span.left; segment <= span.right; segment++, tile += tiles.segment)
#pragma unroll
            for (int k = 0; k < many; k++)
                most[k] = max(most[k], tile[k * tiles.element]);
    }
}

/* Write a thread's share of the maxima of all regions. */
template <Kind kind, int many, typename Out>
__device__ void write_regions(
    const PoolLaunch &launch, const Task &task, const KeyOf<kind> *keys, const Tiles &tiles,
    const Share &share, Out *out)
{
    typedef Vector<Out, many> Results;
    const bool whole = share.step == 1 && (size_t)out % sizeof(Results) == 0;
    for (int region = share.group; region < task.regions; region += share.groups) {
        KeyOf<kind> most[many];
#pragma unroll
        for (int k = 0; k < many; k++)
            most[k] = least_key<kind>();
        find_maxima(span_of(task, region), keys + share.lane, tiles, most);
        Out *to = out + output_index(launch, task, region, share.first);
        Results results;
#pragma unroll
        for (int k = 0; k < many; k++)
            store<kind>(&results.at[k], most[k], launch.zero_point);
        if (whole) {
            *(Results *)to = results;
            continue;
        }
#pragma unroll
        for (int k = 0; k < many; k++)
            if (share.first + k * share.step < task.channels)
                to[k * share.step] = results.at[k];
    }
}

/* Find where the tiles of `count` columns begin in a band, from column x on. Columns in no segment
   have the spare tile after those of the segments, which is not read. */
template <int count> __device__ void find_tiles(const Task &task, int x, int (&tile)[count])
{
    int segment = 0;
#pragma unroll
    for (int k = 0; k < count; k++) {
        while (segment < task.segments && task.segment[2 * segment + 1] <= x + k)
            segment++;
        const bool inside = segment < task.segments && task.segment[2 * segment] <= x + k;
        tile[k] = (inside ? segment : task.segments) * TILE_PITCH;
    }
}

/* Combine the maxima of columns with their tiles. To combine neighbouring columns of one tile first
   would save nothing: these are other columns in each thread of a warp, so the warp would still run
   the instructions of each column. */
template <Kind kind, int count>
__device__ void add_to_tiles(
    KeyOf<kind> *tiles, const Maxima<kind, count> &columns, const int (&tile)[count])
{
#pragma unroll
    for (int k = 0; k < count; k++)
        atomicMax(tiles + tile[k], columns.at(k));
}

/* Reduce vectors that are `step` bytes apart to the maxima of bands or segments, whose starts and
   stops are at `segment`. Call finish() with the maxima of each in turn. In place of vectors after
   the last segment, its last vector is loaded again, and not used. */
template <Kind kind, int count, typename Finish>
__device__ void reduce_segments(
    const char *data, Index step, const int *segment, int segments, Finish finish)
{
    const int last = segment[2 * segments - 1] - 1;
    int i = 0, start = segment[0], stop = segment[1];
    Maxima<kind, count> most;
    most.reset();
    for (int at = start; at <= last; at = max(at + VECTORS_AT_ONCE<kind>, start)) {
        Vector<BitsOf<kind>, count> vectors[VECTORS_AT_ONCE<kind>];
#pragma unroll
        for (int j = 0; j < VECTORS_AT_ONCE<kind>; j++)
            vectors[j] = *(const Vector<BitsOf<kind>, count> *)(data + min(at + j, last) * step);
#pragma unroll
        for (int j = 0; j < VECTORS_AT_ONCE<kind>; j++) {
            if (at + j >= start)
                most.take(vectors[j]);
            if (at + j + 1 != stop)
                continue;
            finish(most);
            most.reset();
            if (++i < segments)
                start = segment[2 * i], stop = segment[2 * i + 1];
        }
    }
}

/* Go down `count` columns of one channel, whose tiles begin at `tiles`. */
template <Kind kind, int count>
__device__ void pool_columns(
    const Task &task, const char *column, const int (&tile)[count], KeyOf<kind> *tiles)
{
    const int pitch = (task.segments + 1) * TILE_PITCH;
    reduce_segments<kind, count>(
        column, task.batch->strides.row, task.band, task.bands,
        [&](const Maxima<kind, count> &most) {
            add_to_tiles<kind>(tiles, most, tile);
            tiles += pitch;
        });
}

template <Kind kind, int count, typename Out>
__global__ void __launch_bounds__(THREADS, ROWS_BLOCKS) pool_rows(
    const PoolLaunch launch, Out *out)
{
    KeyOf<kind> *keys = (KeyOf<kind> *)shared_memory;
    const Task task = task_of_block(launch, CHANNEL_BLOCK);
    const Tiles tiles = {(task.segments + 1) * TILE_PITCH, TILE_PITCH, 0};

    fill(keys, least_key<kind>(), task.bands * tiles.band);
    __syncthreads();
    for (int x = threadIdx.x * count; x < task.batch->width; x += blockDim.x * count) {
        int tile[count];
        find_tiles(task, x, tile);
        for (int channel = threadIdx.y; channel < task.channels; channel += blockDim.y)
            pool_columns<kind, count>(
                task, channel_data(task, channel) + x * task.batch->strides.pixel, tile,
                keys + channel);
    }
    __syncthreads();
    const int thread = thread_of_block(), groups = threads_of_block() / CHANNEL_BLOCK;
    const int channel = thread % CHANNEL_BLOCK, group = thread / CHANNEL_BLOCK;
    const Share share = {channel, channel, 1, group, groups};
    if (channel < task.channels && group < groups)
        write_regions<kind, 1>(launch, task, keys, tiles, share, out);
    describe_pooled<kind>(launch, task, CHANNEL_BLOCK, out);
}

/* Go along a row of `count` channels, whose tiles in this band begin at `tiles`. */
template <Kind kind, int count>
__device__ void pool_pixels(const Task &task, const char *row, KeyOf<kind> *tiles)
{
    const int pitch = blockDim.x * count;
    reduce_segments<kind, count>(
        row, task.batch->strides.pixel, task.segment, task.segments,
        [&](const Maxima<kind, count> &most) {
#pragma unroll
            for (int k = 0; k < count; k++)
                atomicMax(tiles + k * blockDim.x, most.at(k));
            tiles += pitch;
        });
}

template <Kind kind, int count, typename Out>
__global__ void __launch_bounds__(THREADS, CHANNELS_BLOCKS) pool_channels(
    const PoolLaunch launch, Out *out)
{
    KeyOf<kind> *keys = (KeyOf<kind> *)shared_memory;
    const int lane = threadIdx.x, lanes = blockDim.x, channel = lane * count;
    const Task task = task_of_block(launch, lanes * count);
    const Tiles tiles = {task.segments * lanes * count, lanes * count, lanes};

    fill(keys, least_key<kind>(), task.bands * tiles.band);
    __syncthreads();
    int band = 0;
    const int bottom = channel < task.channels ? task.band[2 * task.bands - 1] : 0;
    for (int y = task.band[0] + threadIdx.y; y < bottom; y += blockDim.y) {
        while (task.band[2 * band + 1] <= y)
            band++;
        if (y >= task.band[2 * band])
            pool_pixels<kind, count>(
                task, channel_data(task, channel) + y * task.batch->strides.row,
                keys + band * tiles.band + lane);
    }
    __syncthreads();
    const Share share = {lane, channel, 1, (int)threadIdx.y, (int)blockDim.y};
    if (channel < task.channels)
        write_regions<kind, count>(launch, task, keys, tiles, share, out);
    describe_pooled<kind>(launch, task, lanes * count, out);
}
