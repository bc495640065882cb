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
       A thread starts BATCH loads before it uses the first, so that many bytes are on their way.
       Bands and segments end at the same places for all threads of a warp.
       pool_rows: threadIdx.x is along a row, one vector of elements each; threadIdx.y is over
       channels. A thread goes down its columns, from band to band.
       pool_channels: threadIdx.x is over vectors of channels; threadIdx.y is over rows. A thread
       goes along its row, from segment to segment. */

/* Loads of a thread in flight. 8 of float64 do not fit in registers. */
template <Kind kind> constexpr int BATCH = sizeof(BitsOf<kind>) < 8 ? 8 : 4;

/* Blocks for which a multiprocessor has registers. With one more, loads in flight would spill. On an
   H100, 4 blocks of pool_channels take 0.9 to 1.0 of the time of 3. */
#define ROWS_BLOCKS (__CUDA_ARCH__ < 1200 ? 3 : 2)
#define CHANNELS_BLOCKS (__CUDA_ARCH__ / 100 == 9 || __CUDA_ARCH__ / 100 == 10 ? 4 : 3)

/* The tiles of a channel block lie so far apart that neighbouring channels and tiles are in
   different banks. */
const int TILE_PITCH = CHANNEL_BLOCK + 1;

template <typename Key> __device__ void fill(Key *tiles, Key value, int count)
{
    for (int i = thread_of_block(); i < count; i += threads_of_block())
        tiles[i] = value;
}

/* Where the tiles of a block are, in keys: (band, segment, place in a vector, lane). */
struct Tiles {
    int band, segment, place; /* from one to the next */
};

/* What a thread writes at the end of a kernel: a vector of channels, `first`, `first` + `step` and so
   on, of each `groups`th region, from `group` on. */
struct Share {
    int lane, first, step, group, groups;
};

/* Find the maxima of a region in a vector of channels, whose tiles begin at `key`. */
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
                most[k] = max(most[k], tile[k * tiles.place]);
    }
}

/* Write the maxima of all regions. */
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

/* Find the tiles of `count` columns in a band, from column x on. Columns in no segment have a tile
   after those of the segments, which nobody reads. */
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

/* Combine the maxima of columns with their tiles. Neighbours in one tile are not combined first: it
   would take as many instructions, since neighbouring threads differ in which they are. */
template <Kind kind, int count>
__device__ void add_to_tiles(
    KeyOf<kind> *tiles, const Maxima<kind, count> &columns, const int (&tile)[count])
{
#pragma unroll
    for (int k = 0; k < count; k++)
        atomicMax(tiles + tile[k], columns.at(k));
}

/* Go down `count` columns of one channel, whose tiles begin at `tiles`. Rows after the last band
   are its last row again: they are loaded, but not used. */
template <Kind kind, int count>
__device__ void pool_columns(
    const Task &task, const char *column, const int (&tile)[count], KeyOf<kind> *tiles)
{
    const Index step = task.batch->strides.row;
    const int last = task.band[2 * task.bands - 1] - 1;
    int band = 0, top = task.band[0], bottom = task.band[1];
    Maxima<kind, count> most;
    most.reset();
    for (int y = top; y <= last; y = max(y + BATCH<kind>, top)) {
        Vector<BitsOf<kind>, count> rows[BATCH<kind>];
#pragma unroll
        for (int j = 0; j < BATCH<kind>; j++)
            rows[j] = *(const Vector<BitsOf<kind>, count> *)(column + min(y + j, last) * step);
#pragma unroll
        for (int j = 0; j < BATCH<kind>; j++) {
            if (y + j >= top)
                most.take(rows[j]);
            if (y + j + 1 != bottom)
                continue;
            add_to_tiles<kind>(tiles, most, tile);
            most.reset();
            tiles += (task.segments + 1) * TILE_PITCH;
            if (++band < task.bands)
                top = task.band[2 * band], bottom = task.band[2 * band + 1];
        }
    }
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
    if (channel < task.channels && group < groups)
        write_regions<kind, 1>(launch, task, keys, tiles, {channel, channel, 1, group, groups}, out);
    describe_pooled<kind>(launch, task, CHANNEL_BLOCK, out);
}

/* Go along a row of `count` channels, whose tiles in this band begin at `tiles`. Pixels after the
   last segment are its last pixel again. */
template <Kind kind, int count>
__device__ void pool_pixels(const Task &task, const char *row, KeyOf<kind> *tiles)
{
    const Index step = task.batch->strides.pixel;
    const int last = task.segment[2 * task.segments - 1] - 1, pitch = blockDim.x * count;
    int segment = 0, left = task.segment[0], right = task.segment[1];
    Maxima<kind, count> most;
    most.reset();
    for (int x = left; x <= last; x = max(x + BATCH<kind>, left)) {
        Vector<BitsOf<kind>, count> pixels[BATCH<kind>];
#pragma unroll
        for (int j = 0; j < BATCH<kind>; j++)
            pixels[j] = *(const Vector<BitsOf<kind>, count> *)(row + min(x + j, last) * step);
#pragma unroll
        for (int j = 0; j < BATCH<kind>; j++) {
            if (x + j >= left)
                most.take(pixels[j]);
            if (x + j + 1 != right)
                continue;
#pragma unroll
            for (int k = 0; k < count; k++)
                atomicMax(tiles + k * blockDim.x, most.at(k));
            most.reset();
            tiles += pitch;
            if (++segment < task.segments)
                left = task.segment[2 * segment], right = task.segment[2 * segment + 1];
        }
    }
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
