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

/* Loads of a thread in flight. With vectors of 8 elements, or float64, 8 loads do not fit in registers. */
template <Kind kind, int count>
constexpr int BATCH = count <= 4 && sizeof(BitsOf<kind>) < 8 ? 8 : 4;

/* The tiles of a channel block lie so far apart that neighbouring channels and tiles are in
   different banks. */
const int TILE_PITCH = CHANNEL_BLOCK + 1;

template <typename Key> __device__ void fill(Key *tiles, Key value, int count)
{
    for (int i = thread_of_block(); i < count; i += blockDim.x * blockDim.y)
        tiles[i] = value;
}

template <typename Key, int count> __device__ void fill(Key (&values)[count], Key value)
{
#pragma unroll
    for (int k = 0; k < count; k++)
        values[k] = value;
}

/* Take the elements of one vector into their maxima. */
template <Kind kind, int count>
__device__ void take_maxima(KeyOf<kind> (&most)[count], const Vector<BitsOf<kind>, count> &bits)
{
#pragma unroll
    for (int k = 0; k < count; k++)
        most[k] = max(most[k], encode<kind>(bits.at[k]));
}

/* Return the maximum of a region from the tiles of one channel, `pitch` keys apart. */
template <Kind kind>
__device__ KeyOf<kind> max_of_region(
    const Task &task, int region, const KeyOf<kind> *tiles, int pitch)
{
    const RegionSpan span = span_of(task, region);
    KeyOf<kind> most = least_key<kind>();
    for (int band = span.top; band <= span.bottom; band++) {
        const KeyOf<kind> *tile = tiles + (band * task.segments + span.left) * pitch;
        for (int segment = span.left; segment <= span.right; segment++, tile += pitch)
            most = max(most, *tile);
    }
    return most;
}

/* Write the maxima of all regions. The tiles are `pitch` keys apart; vectors of `count` channels
   lie as (channel in the vector, vector), with `vectors` of them. */
template <Kind kind, int count, typename Out>
__device__ void write_regions(
    const PoolLaunch &launch, const Task &task, const KeyOf<kind> *tiles, int pitch, int vectors,
    Out *out)
{
    const int threads = blockDim.x * blockDim.y, thread = thread_of_block();
    const int across = min(threads, task.channels), groups = threads / across;
    if (thread >= across * groups)
        return;
    for (int channel = thread % across; channel < task.channels; channel += across) {
        const KeyOf<kind> *of_channel = tiles + channel % count * vectors + channel / count;
        for (int region = thread / across; region < task.regions; region += groups)
            store<kind>(
                out + output_index(launch, task, region, channel),
                max_of_region<kind>(task, region, of_channel, pitch), launch.zero_point);
    }
}

/* Find the first tile of each of `count` columns, from column x on; -1 if it is in no segment. */
template <int count> __device__ void find_tiles(const Task &task, int x, int (&tile)[count])
{
    int segment = 0;
#pragma unroll
    for (int k = 0; k < count; k++) {
        while (segment < task.segments && task.segment[2 * segment + 1] <= x + k)
            segment++;
        const bool inside = segment < task.segments && task.segment[2 * segment] <= x + k;
        tile[k] = inside ? segment * TILE_PITCH : -1;
    }
}

/* Combine the maxima of columns with their tiles: neighbours in one tile first. */
template <typename Key, int count>
__device__ void add_to_tiles(Key *tiles, const Key (&columns)[count], const int (&tile)[count])
{
    Key most = columns[0];
#pragma unroll
    for (int k = 0; k < count; k++) {
        most = k && tile[k] == tile[k - 1] ? max(most, columns[k]) : columns[k];
        if (tile[k] >= 0 && (k + 1 == count || tile[k + 1] != tile[k]))
            atomicMax(tiles + tile[k], most);
    }
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
    KeyOf<kind> most[count];
    fill(most, least_key<kind>());
    for (int y = top; y <= last; y = max(y + BATCH<kind, count>, top)) {
        Vector<BitsOf<kind>, count> rows[BATCH<kind, count>];
#pragma unroll
        for (int j = 0; j < BATCH<kind, count>; j++)
            rows[j] = *(const Vector<BitsOf<kind>, count> *)(column + min(y + j, last) * step);
#pragma unroll
        for (int j = 0; j < BATCH<kind, count>; j++) {
            if (y + j >= top)
                take_maxima<kind, count>(most, rows[j]);
            if (y + j + 1 != bottom)
                continue;
            add_to_tiles(tiles, most, tile);
            fill(most, least_key<kind>());
            tiles += task.segments * TILE_PITCH;
            if (++band < task.bands)
                top = task.band[2 * band], bottom = task.band[2 * band + 1];
        }
    }
}

template <Kind kind, int count, typename Out>
__global__ void __launch_bounds__(THREADS, 3) pool_rows(const PoolLaunch launch, Out *out)
{
    KeyOf<kind> *tiles = (KeyOf<kind> *)shared_memory;
    const Task task = task_of_block(launch, CHANNEL_BLOCK);

    fill(tiles, least_key<kind>(), task.bands * task.segments * TILE_PITCH);
    __syncthreads();
    for (int x = threadIdx.x * count; x < task.batch->width; x += blockDim.x * count) {
        int tile[count];
        find_tiles(task, x, tile);
        for (int channel = threadIdx.y; channel < task.channels; channel += blockDim.y)
            pool_columns<kind, count>(
                task, channel_data(task, channel) + x * task.batch->strides.pixel, tile,
                tiles + channel);
    }
    __syncthreads();
    write_regions<kind, 1>(launch, task, tiles, TILE_PITCH, 0, out);
}

/* Go along a row of `count` channels, whose tiles in this band begin at `tiles`. Pixels after the
   last segment are its last pixel again. */
template <Kind kind, int count>
__device__ void pool_pixels(const Task &task, const char *row, KeyOf<kind> *tiles)
{
    const Index step = task.batch->strides.pixel;
    const int last = task.segment[2 * task.segments - 1] - 1, pitch = blockDim.x * count;
    int segment = 0, left = task.segment[0], right = task.segment[1];
    KeyOf<kind> most[count];
    fill(most, least_key<kind>());
    for (int x = left; x <= last; x = max(x + BATCH<kind, count>, left)) {
        Vector<BitsOf<kind>, count> pixels[BATCH<kind, count>];
#pragma unroll
        for (int j = 0; j < BATCH<kind, count>; j++)
            pixels[j] = *(const Vector<BitsOf<kind>, count> *)(row + min(x + j, last) * step);
#pragma unroll
        for (int j = 0; j < BATCH<kind, count>; j++) {
            if (x + j >= left)
                take_maxima<kind, count>(most, pixels[j]);
            if (x + j + 1 != right)
                continue;
#pragma unroll
            for (int k = 0; k < count; k++)
                atomicMax(tiles + k * blockDim.x, most[k]);
            fill(most, least_key<kind>());
            tiles += pitch;
            if (++segment < task.segments)
                left = task.segment[2 * segment], right = task.segment[2 * segment + 1];
        }
    }
}

template <Kind kind, int count, typename Out>
__global__ void __launch_bounds__(THREADS, 3) pool_channels(const PoolLaunch launch, Out *out)
{
    KeyOf<kind> *tiles = (KeyOf<kind> *)shared_memory;
    const int channel_block = blockDim.x * count, channel = threadIdx.x * count;
    const Task task = task_of_block(launch, channel_block);
    const Strides &strides = task.batch->strides;

    fill(tiles, least_key<kind>(), task.bands * task.segments * channel_block);
    __syncthreads();
    int band = 0;
    const int bottom = channel < task.channels ? task.band[2 * task.bands - 1] : 0;
    for (int y = task.band[0] + threadIdx.y; y < bottom; y += blockDim.y) {
        while (task.band[2 * band + 1] <= y)
            band++;
        if (y >= task.band[2 * band])
            pool_pixels<kind, count>(
                task, channel_data(task, channel) + y * strides.row,
                tiles + band * task.segments * channel_block + threadIdx.x);
    }
    __syncthreads();
    write_regions<kind, count>(launch, task, tiles, channel_block, blockDim.x, out);
}
