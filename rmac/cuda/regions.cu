/* Regions pooled by an operation, in one pass over the map.

   Accumulation, NaN
       See operations.cu.
   Memory layout
       pool_rows: contiguous rows; or rows of any strides, one element at a time.
       pool_channels: contiguous channels.
   Thread mapping
       pool_rows: threadIdx.x is along a row; threadIdx.y is over channels. A thread goes down its
       columns, from band to band, with one vector of columns at a time.
       pool_channels: threadIdx.x is over vectors of channels. threadIdx.y is over rows, and a
       thread goes along its row, from segment to segment. If a tile belongs to one thread,
       threadIdx.y is over shares of columns, and a thread goes down these.
       Bands and segments end at the same place for all threads of a warp. */

/* Vectors that a thread loads before it uses the first, so that many bytes are on their way. 8 of
   float64 do not fit in registers. The time with fewer is not recorded. */
template <typename Operation>
constexpr int VECTORS_AT_ONCE = sizeof(BitsOf<Operation::kind>) < 8 ? 8 : 4;

/* Blocks for whose registers a multiprocessor has room. With one more, loads in flight would spill.
   On an H100, pool_channels with 4 blocks takes 0.9 to 1.0 of its time with 3. */
#define SUMS_BLOCKS \
    (count == 8 || sizeof(typename Operation::Tile) == 8 || __CUDA_ARCH__ >= 1200 ? 2 : 3)
#define ROWS_BLOCKS (Operation::in_order ? SUMS_BLOCKS : __CUDA_ARCH__ < 1200 ? 3 : 2)
#define MAXIMA_BLOCKS (__CUDA_ARCH__ / 100 == 9 || __CUDA_ARCH__ / 100 == 10 ? 4 : 3)
#define CHANNELS_BLOCKS (Operation::in_order ? SUMS_BLOCKS : MAXIMA_BLOCKS)

/* Channels from one tile of pool_rows to the next: an odd number, so that neighbouring tiles of one
   channel are in different banks. */
const int TILE_PITCH = CHANNEL_BLOCK + 1;

template <typename Tile> __device__ void fill(Tile *tiles, Tile value, int count)
{
    for (int i = thread_of_block(); i < count; i += threads_of_block())
        tiles[i] = value;
}

/* The layout of the tiles of a block: (band, segment, element of a vector, lane). */
struct Tiles {
    int band, segment, element; /* how far the next is, in values of tiles */
};

/* What a thread writes at the end of a kernel: a vector of channels, of each `groups`th region from
   `group` on. The channels are `first`, `first` + `step` and so on. */
struct Share {
    int lane; /* where its channels begin in each tile */
    int first, step;
    int group, groups;
};

/* Combine the tiles of a region for a vector of channels, which begin at `tile`. */
template <typename Operation, int many, typename Tile>
__device__ void combine_tiles(
    const RegionSpan &span, const Tile *tile, const Tiles &tiles, Tile (&all)[many])
{
    tile += span.top * tiles.band + span.left * tiles.segment;
    for (int band = span.top; band <= span.bottom; band++, tile += tiles.band) {
        const Tile *next = tile;
#pragma unroll 2
        for (int segment = span.left; segment <= span.right; segment++, next += tiles.segment)
#pragma unroll
            for (int k = 0; k < many; k++)
                all[k] = Operation::combine(all[k], next[k * tiles.element]);
    }
}

/* Write a thread's share of the results of all regions. */
template <typename Operation, int many, typename Out>
__device__ void write_regions(
    const PoolLaunch &launch, const Task &task, const typename Operation::Tile *reduced,
    const Tiles &tiles, const Share &share, Out *out)
{
    typedef Vector<Out, many> Results;
    const bool whole = share.step == 1 && (size_t)out % sizeof(Results) == 0;
    for (int region = share.group; region < task.regions; region += share.groups) {
        typename Operation::Tile all[many];
#pragma unroll
        for (int k = 0; k < many; k++)
            all[k] = Operation::start();
        const RegionSpan span = span_of(task, region);
        combine_tiles<Operation>(span, reduced + share.lane, tiles, all);
        const int height = task.band[2 * span.bottom + 1] - task.band[2 * span.top];
        const int width = task.segment[2 * span.right + 1] - task.segment[2 * span.left];
        Out *to = out + output_index(launch, task, region, share.first);
        Results results;
#pragma unroll
        for (int k = 0; k < many; k++)
            Operation::store(launch, &results.at[k], all[k], height, width);
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

/* Reduce vectors that are `step` bytes apart to bands or segments, whose starts and stops are at
   `segment`. Call finish() with what each is reduced to, in turn. In place of vectors after the
   last segment, its last vector is loaded again, and not used. If tiles belong to threads, no
   vectors are between segments: a condition would delay loads. */
template <typename Operation, int count, typename Finish>
__device__ void reduce_segments(
    const PoolLaunch &launch, const char *data, Index step, const int *segment, int segments,
    Finish finish)
{
    typedef Vector<BitsOf<Operation::kind>, count> Values;
    const int last = segment[2 * segments - 1] - 1, at_once = VECTORS_AT_ONCE<Operation>;
    int i = 0, start = segment[0], stop = segment[1];
    typename Operation::template Running<count> running;
    running.reset();
    for (int at = start; at <= last; at = max(at + at_once, start)) {
        Values vectors[at_once];
#pragma unroll
        for (int j = 0; j < at_once; j++)
            vectors[j] = *(const Values *)(data + min(at + j, last) * step);
#pragma unroll
        for (int j = 0; j < at_once; j++) {
            if (Operation::in_order || at + j >= start)
                Operation::take(launch, vectors[j], running);
            if (at + j + 1 != stop)
                continue;
            finish(running);
            running.reset();
            if (++i < segments)
                start = segment[2 * i], stop = segment[2 * i + 1];
        }
    }
}

/* Return the tiles of a band for columns in no segment. If tiles belong to threads, all columns are
   in segments. */
template <typename Operation> __device__ constexpr int spare_tiles()
{
    return Operation::in_order ? 0 : 1;
}

/* Go down `count` columns of one channel, whose tiles begin at `tiles`. */
template <typename Operation, int count>
__device__ void pool_columns(
    const PoolLaunch &launch, const Task &task, const char *column, const int (&tile)[count],
    typename Operation::Tile *tiles)
{
    const int pitch = (task.segments + spare_tiles<Operation>()) * TILE_PITCH;
    reduce_segments<Operation, count>(
        launch, column, task.batch->strides.row, task.band, task.bands,
        [&](const typename Operation::template Running<count> &running) {
            Operation::add_columns(tiles, tile, running);
            tiles += pitch;
        });
}

template <typename Operation, int count, typename Out>
__global__ void __launch_bounds__(THREADS, ROWS_BLOCKS) pool_rows(
    const PoolLaunch launch, Out *out)
{
    typedef typename Operation::Tile Tile;
    Tile *reduced = (Tile *)shared_memory;
    const Task task = task_of_block(launch, CHANNEL_BLOCK);
    const Tiles tiles = {(task.segments + spare_tiles<Operation>()) * TILE_PITCH, TILE_PITCH, 0};

    fill(reduced, Operation::start(), task.bands * tiles.band);
    __syncthreads();
    const int share = Operation::in_order ? max(task.batch->share, count) : count;
    for (int x = threadIdx.x * share; x < task.batch->width;) {
        int tile[count];
        find_tiles(task, x, tile);
        for (int channel = threadIdx.y; channel < task.channels; channel += blockDim.y)
            pool_columns<Operation, count>(
                launch, task, channel_data(task, channel) + x * task.batch->strides.pixel, tile,
                reduced + channel);
        x += count;
        if (!Operation::in_order || x % share == 0) {
            const int others = (blockDim.x - 1) * share;
            if (Operation::in_order && others >= task.batch->width - x)
                break; /* before x overflows */
            x += others;
        }
    }
    __syncthreads();
    const int thread = thread_of_block(), groups = threads_of_block() / CHANNEL_BLOCK;
    const int channel = thread % CHANNEL_BLOCK, group = thread / CHANNEL_BLOCK;
    const Share written = {channel, channel, 1, group, groups};
    if (channel < task.channels && group < groups)
        write_regions<Operation, 1>(launch, task, reduced, tiles, written, out);
    if constexpr (Operation::describes)
        describe_pooled<Operation::kind>(launch, task, CHANNEL_BLOCK, out);
}

/* The bands or the segments of a map. */
struct Axis {
    const int *part; /* start and stop of each */
    int parts;
    Index step; /* bytes from one row or column to the next */
    int pitch;  /* from the tiles of one part to those of the next */
};

/* Go along rows or columns of `count` channels. A thread takes a share of neighbours, and then each
   `blockDim.y`th share. */
template <typename Operation, int count>
__device__ void pool_lines(
    const PoolLaunch &launch, const char *data, const Axis &lines, const Axis &line, int share,
    typename Operation::Tile *tiles)
{
    int part = 0;
    const int stop = lines.part[2 * lines.parts - 1];
    for (int first = lines.part[0] + threadIdx.y * share; first < stop;
         first += blockDim.y * share) {
        for (int i = first; i < first + min(share, stop - first); i++) {
            while (lines.part[2 * part + 1] <= i)
                part++;
            if (i < lines.part[2 * part])
                continue;
            typename Operation::Tile *tile = tiles + part * lines.pitch;
            reduce_segments<Operation, count>(
                launch, data + i * lines.step, line.step, line.part, line.parts,
                [&](const typename Operation::template Running<count> &running) {
                    Operation::add_to_tiles(tile, blockDim.x, running);
                    tile += line.pitch;
                });
        }
        if (Operation::in_order && blockDim.y * share >= (unsigned int)(stop - first))
            break; /* before `first` overflows */
    }
}

template <typename Operation, int count, typename Out>
__global__ void __launch_bounds__(THREADS, CHANNELS_BLOCKS) pool_channels(
    const PoolLaunch launch, Out *out)
{
    typedef typename Operation::Tile Tile;
    Tile *reduced = (Tile *)shared_memory;
    const int lane = threadIdx.x, lanes = blockDim.x, channel = lane * count;
    const Task task = task_of_block(launch, lanes * count);
    const Tiles tiles = {task.segments * lanes * count, lanes * count, lanes};
    const Strides &strides = task.batch->strides;
    const Axis down = {task.band, task.bands, strides.row, tiles.band};
    const Axis along = {task.segment, task.segments, strides.pixel, tiles.segment};

    fill(reduced, Operation::start(), task.bands * tiles.band);
    __syncthreads();
    if (channel < task.channels) {
        const char *data = channel_data(task, channel);
        if constexpr (Operation::in_order)
            pool_lines<Operation, count>(
                launch, data, along, down, task.batch->share, reduced + lane);
        else
            pool_lines<Operation, count>(launch, data, down, along, 1, reduced + lane);
    }
    __syncthreads();
    const Share written = {lane, channel, 1, (int)threadIdx.y, (int)blockDim.y};
    if (channel < task.channels)
        write_regions<Operation, count>(launch, task, reduced, tiles, written, out);
    if constexpr (Operation::describes)
        describe_pooled<Operation::kind>(launch, task, lanes * count, out);
}
