/* Regions pooled by an operation, in one pass over the map.

   Accumulation, NaN
       See operations.cu.
   Memory layout
       pool_rows: contiguous rows; or rows of any strides, one element at a time.
       pool_channels: contiguous channels.
   Thread mapping
       pool_rows: threadIdx.x is along a row; threadIdx.y is over channels. A thread goes down its
       columns, from band to band, with one vector of columns at a time.
       pool_channels, maxima: threadIdx.x is over vectors of channels, threadIdx.y over rows. A
       thread goes along its row, from segment to segment.
       pool_channels, sums: threadIdx.x is over vectors of channels, threadIdx.y over chunks of
       columns. A thread goes down its columns, from band to band.
       Bands and segments end at the same place for all threads of a warp. */

/* Vectors that a thread loads before it uses the first, so that many bytes are on their way. 8 of
   float64 do not fit in registers. The time with fewer is not recorded. */
template <typename Operation>
constexpr int VECTORS_AT_ONCE = sizeof(BitsOf<Operation::kind>) < 8 ? 8 : 4;

/* Blocks that fit in the registers of a multiprocessor. With one more, loads in flight would spill.
   On an H100, pool_channels with 4 blocks takes 0.9 to 1.0 of its time with 3. */
#define SUMS_BLOCKS \
    (count == 8 || sizeof(typename Operation::Partial) == 8 || __CUDA_ARCH__ >= 1200 ? 2 : 3)
#define ROWS_BLOCKS (Operation::in_order ? SUMS_BLOCKS : __CUDA_ARCH__ < 1200 ? 3 : 2)
#define MAXIMA_BLOCKS (__CUDA_ARCH__ / 100 == 9 || __CUDA_ARCH__ / 100 == 10 ? 4 : 3)
#define CHANNELS_BLOCKS (Operation::in_order ? SUMS_BLOCKS : MAXIMA_BLOCKS)

/* Partials from one tile of pool_rows to the next: an odd number, so that neighbouring tiles of one
   channel are in different banks. */
const int TILE_PITCH = CHANNEL_BLOCK + 1;

template <typename Partial> __device__ void fill(Partial *partials, Partial value, int count)
{
    for (int i = thread_of_block(); i < count; i += threads_of_block())
        partials[i] = value;
}

/* Partials of a block are (band, segment, element of a vector, vector of channels). */
struct PartialLayout {
    int band, segment, element; /* how far the next is, in partials */
};

/* What a thread writes at the end of a kernel: a vector of channels, for every `region_step`th
   region from `first_region` on. The channels of the vector are `channel_step` apart. */
struct ThreadOutput {
    int vector; /* where it begins in the partials of a tile */
    int channel, channel_step;
    int first_region, region_step;
};

/* Combine the partials of a region for a vector of channels, which begins at `partial`. */
template <typename Operation, int many, typename Partial>
__device__ void combine_partials(
    const RegionSpan &span, const Partial *partial, const PartialLayout &layout,
    Partial (&all)[many])
{
    partial += span.top * layout.band + span.left * layout.segment;
    for (int band = span.top; band <= span.bottom; band++, partial += layout.band) {
        const Partial *next = partial;
#pragma unroll 2
        for (int segment = span.left; segment <= span.right; segment++, next += layout.segment)
#pragma unroll
            for (int k = 0; k < many; k++)
                all[k] = Operation::combine(all[k], next[k * layout.element]);
    }
}

template <typename Operation, int many, typename Out>
__device__ void write_regions(
    const PoolLaunch &launch, const Task &task, const typename Operation::Partial *partials,
    const PartialLayout &layout, const ThreadOutput &output, Out *out)
{
    typedef Vector<Out, many> Results;
    const bool whole = output.channel_step == 1 && (size_t)out % sizeof(Results) == 0;
    for (int region = output.first_region; region < task.regions; region += output.region_step) {
        typename Operation::Partial all[many];
#pragma unroll
        for (int k = 0; k < many; k++)
            all[k] = Operation::start();
        const RegionSpan span = span_of(task, region);
        combine_partials<Operation>(span, partials + output.vector, layout, all);
        const int height = task.band[2 * span.bottom + 1] - task.band[2 * span.top];
        const int width = task.segment[2 * span.right + 1] - task.segment[2 * span.left];
        Out *to = out + output_index(launch, task, region, output.channel);
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
            if (output.channel + k * output.channel_step < task.channels)
                to[k * output.channel_step] = results.at[k];
    }
}

/* Find the tiles of `count` columns from x on: where their partials are in a band. Columns in no
   segment have the spare tile after those of the segments, which is not read. */
template <int count> __device__ void find_offsets(const Task &task, int x, int (&offset)[count])
{
    int segment = 0;
#pragma unroll
    for (int k = 0; k < count; k++) {
        while (segment < task.segments && task.segment[2 * segment + 1] <= x + k)
            segment++;
        const bool inside = segment < task.segments && task.segment[2 * segment] <= x + k;
        offset[k] = (inside ? segment : task.segments) * TILE_PITCH;
    }
}

/* Reduce vectors that are `step` bytes apart. Parts are bands or segments, and `part` has their
   starts and stops. After each part, call finish() with what its vectors are reduced to. In place
   of vectors after the last part, its last vector is loaded again, and not used. For sums, no
   vectors are between parts: a condition would delay loads. */
template <typename Operation, int count, typename Finish>
__device__ void reduce_parts(
    const PoolLaunch &launch, const char *data, Index step, const int *part, int parts,
    Finish finish)
{
    typedef Vector<BitsOf<Operation::kind>, count> Values;
    const int last = part[2 * parts - 1] - 1, at_once = VECTORS_AT_ONCE<Operation>;
    int i = 0, start = part[0], stop = part[1];
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
            if (++i < parts)
                start = part[2 * i], stop = part[2 * i + 1];
        }
    }
}

/* Return the tiles that a band has for columns in no segment. For sums, all columns are in
   segments. */
template <typename Operation> __device__ constexpr int spare_tiles()
{
    return Operation::in_order ? 0 : 1;
}

/* Go down `count` columns of one channel. `offset` tells where their tiles are in a band. */
template <typename Operation, int count>
__device__ void pool_columns(
    const PoolLaunch &launch, const Task &task, const char *column, const int (&offset)[count],
    typename Operation::Partial *partials)
{
    const int pitch = (task.segments + spare_tiles<Operation>()) * TILE_PITCH;
    reduce_parts<Operation, count>(
        launch, column, task.batch->strides.row, task.band, task.bands,
        [&](const typename Operation::template Running<count> &running) {
            Operation::add_columns(partials, offset, running);
            partials += pitch;
        });
}

template <typename Operation, int count, typename Out>
__global__ void __launch_bounds__(THREADS, ROWS_BLOCKS) pool_rows(
    const PoolLaunch launch, Out *out)
{
    typedef typename Operation::Partial Partial;
    Partial *partials = (Partial *)shared_memory;
    const Task task = task_of_block(launch, CHANNEL_BLOCK);
    const PartialLayout layout = {
        (task.segments + spare_tiles<Operation>()) * TILE_PITCH, TILE_PITCH, 0};

    fill(partials, Operation::start(), task.bands * layout.band);
    __syncthreads();
    const int chunk = Operation::in_order ? max(task.batch->chunk_width, count) : count;
    for (int x = threadIdx.x * chunk; x < task.batch->width;) {
        int offset[count];
        find_offsets(task, x, offset);
        for (int channel = threadIdx.y; channel < task.channels; channel += blockDim.y)
            pool_columns<Operation, count>(
                launch, task, channel_data(task, channel) + x * task.batch->strides.pixel, offset,
                partials + channel);
        x += count;
        if (!Operation::in_order || x % chunk == 0) {
            const int others = (blockDim.x - 1) * chunk;
            if (Operation::in_order && others >= task.batch->width - x)
                break; /* before x overflows */
            x += others;
        }
    }
    __syncthreads();
    const int thread = thread_of_block(), region_step = threads_of_block() / CHANNEL_BLOCK;
    const int channel = thread % CHANNEL_BLOCK, first_region = thread / CHANNEL_BLOCK;
    const ThreadOutput output = {channel, channel, 1, first_region, region_step};
    if (channel < task.channels && first_region < region_step)
        write_regions<Operation, 1>(launch, task, partials, layout, output, out);
    if constexpr (Operation::describes)
        describe_pooled<Operation::kind>(launch, task, CHANNEL_BLOCK, out);
}

/* The bands or the segments of a map. */
struct Axis {
    const int *part; /* start and stop of each */
    int parts;
    Index step; /* bytes from one row or column to the next */
    int pitch;  /* from the partials of one part to those of the next */
};

/* Go along rows or columns of `count` channels. A thread takes `chunk` neighbouring lines, and then
   every `blockDim.y`th such chunk. */
template <typename Operation, int count>
__device__ void pool_lines(
    const PoolLaunch &launch, const char *data, const Axis &lines, const Axis &line, int chunk,
    typename Operation::Partial *partials)
{
    int part = 0;
    const int stop = lines.part[2 * lines.parts - 1];
    for (int first = lines.part[0] + threadIdx.y * chunk; first < stop;
         first += blockDim.y * chunk) {
        for (int i = first; i < first + min(chunk, stop - first); i++) {
            while (lines.part[2 * part + 1] <= i)
                part++;
            if (i < lines.part[2 * part])
                continue;
            typename Operation::Partial *partial = partials + part * lines.pitch;
            reduce_parts<Operation, count>(
                launch, data + i * lines.step, line.step, line.part, line.parts,
                [&](const typename Operation::template Running<count> &running) {
                    Operation::add_to_partials(partial, blockDim.x, running);
                    partial += line.pitch;
                });
        }
        if (Operation::in_order && blockDim.y * chunk >= (unsigned int)(stop - first))
            break; /* before `first` overflows */
    }
}

template <typename Operation, int count, typename Out>
__global__ void __launch_bounds__(THREADS, CHANNELS_BLOCKS) pool_channels(
    const PoolLaunch launch, Out *out)
{
    typedef typename Operation::Partial Partial;
    Partial *partials = (Partial *)shared_memory;
    const int vector = threadIdx.x, vectors = blockDim.x, channel = vector * count;
    const Task task = task_of_block(launch, vectors * count);
    const PartialLayout layout = {task.segments * vectors * count, vectors * count, vectors};
    const Strides &strides = task.batch->strides;
    const Axis down = {task.band, task.bands, strides.row, layout.band};
    const Axis along = {task.segment, task.segments, strides.pixel, layout.segment};

    fill(partials, Operation::start(), task.bands * layout.band);
    __syncthreads();
    if (channel < task.channels) {
        const char *data = channel_data(task, channel);
        if constexpr (Operation::in_order)
            pool_lines<Operation, count>(
                launch, data, along, down, task.batch->chunk_width, partials + vector);
        else
            pool_lines<Operation, count>(launch, data, down, along, 1, partials + vector);
    }
    __syncthreads();
    const ThreadOutput output = {vector, channel, 1, (int)threadIdx.y, (int)blockDim.y};
    if (channel < task.channels)
        write_regions<Operation, count>(launch, task, partials, layout, output, out);
    if constexpr (Operation::describes)
        describe_pooled<Operation::kind>(launch, task, vectors * count, out);
}
