/* Maxima of RoIs' bins, and boxes written as RoIs.

   Accumulation
       Maxima of keys. The edges of bins are those of Caffe2, which computes them in float32 and
       rounds each operation.
   NaN
       A bin with a NaN gives a NaN. A RoI that is not finite, or is on no image, has empty bins,
       which give 0.
   Memory layout
       pool_rois: any strides. pool_rois_by_channels: contiguous channels. RoIs are (K, 5) float32:
       image, x1, y1, x2, y2.
   Thread mapping
       A block takes one RoI and some groups of channels. A team of threads takes one bin of a group
       at a time. Bins overlap by a row or a column, which is loaded twice.
       pool_rois: a team is 1 to 32 lanes of a warp, more for larger bins. The lanes take cells in
       turn. A lane loads one cell of many channels at once.
       pool_rois_by_channels: each thread of a team takes a vector of channels, and loads many cells
       at once. */

struct RoiLaunch {
    const char *data;
    Strides strides;
    int images, channels, height, width;
    int bin_rows, bin_columns; /* of each RoI */
    float scale;
    int group, groups; /* channels of a group, and groups of a block */
    Index rois;
};

/* Vectors that a thread loads before it uses the first. More than 4 of 16 bytes do not fit in
   registers. */
template <typename Loaded> constexpr int LOADS_AT_ONCE = sizeof(Loaded) < 16 ? 8 : 4;

/* Blocks that fit in the registers of a multiprocessor. With one more, loads of float64 would wait
   for each other. */
#define ROI_BLOCKS (sizeof(BitsOf<kind>) < 8 ? 4 : 3)

/* A lane takes so many cells of a bin or more; fewer if the bin has fewer. Not measured: with a
   smaller number, lanes wait for each other at the end of a bin; with a larger one, neighbouring
   lanes load from bins that are far apart. */
const int CELLS_OF_LANE = 3;

/* Half-open. */
struct Interval {
    int start, stop;
};

/* The bins along one axis of a RoI. */
struct BinAxis {
    Index start;
    float step; /* cells from one bin to the next */
    int size;   /* of the map; 0 for a RoI that is on no image */
};

__device__ inline bool is_on_image(const RoiLaunch &launch, const float *roi)
{
    bool valid = roi[0] >= 0 && roi[0] < launch.images;
    for (int edge = 1; edge < 5; edge++)
        valid = valid && fabsf(roi[edge]) <= 3.402823466e38f;
    return valid;
}

__device__ inline Index round_to_index(float coordinate)
{
    const double far = 1099511627776.0; /* 2**40, beyond any map */
    return (Index)min(max(round((double)coordinate), -far), far);
}

/* Cut the scaled interval from `first` to `last` into equal parts. */
__device__ inline BinAxis axis_of(float scale, float first, float last, int bins, int size)
{
    const Index start = round_to_index(first * scale);
    const Index length = max(round_to_index(last * scale) - start + 1, (Index)1);
    return {start, (float)length / (float)bins, size};
}

__device__ inline int clip_edge(float offset, const BinAxis &axis)
{
    const Index edge = (Index)offset + axis.start;
    return (int)min(max(edge, (Index)0), (Index)axis.size);
}

__device__ inline Interval bin_interval(const BinAxis &axis, int bin)
{
    return {
        clip_edge(floorf(bin * axis.step), axis),
        clip_edge(ceilf((bin + 1) * axis.step), axis),
    };
}

/* What one thread block works on, in shared memory. */
struct RoiTask {
    Index image; /* bytes from the first image; of an address that is kept here, the compiler would
                    not know that it is in global memory */
    Index roi;
    BinAxis rows, columns;
    Index bins;
    int first_group;
    int team_size; /* of pool_rois: a power of 2 */
    Index units;   /* a unit is one bin of one group */
};
static_assert(sizeof(RoiTask) <= ROI_SHARED, "shared memory of a block that pools RoIs");

__device__ inline Index blocks_of_launch(const RoiLaunch &launch)
{
    return launch.rois * ((launch.channels - 1) / (launch.group * launch.groups) + 1);
}

__device__ inline int team_size_of(const RoiTask &task)
{
    const float rows = min(task.rows.step + 1, (float)task.rows.size);
    const float columns = min(task.columns.step + 1, (float)task.columns.size);
    int size = 1;
    while (size < WARP && 2 * size * CELLS_OF_LANE <= rows * columns)
        size *= 2;
    return size;
}

/* Find what a block works on, in one of its threads while the others wait. */
__device__ inline const RoiTask &task_of_roi(
    const RoiLaunch &launch, const float *rois, Index block)
{
    RoiTask &task = *(RoiTask *)shared_memory;
    __syncthreads();
    if (threadIdx.x == 0) {
        const int groups = (launch.channels - 1) / launch.group + 1;
        const int blocks_of_roi = (groups - 1) / launch.groups + 1;
        task.roi = block / blocks_of_roi;
        task.bins = (Index)launch.bin_rows * launch.bin_columns;
        task.first_group = (int)(block % blocks_of_roi) * launch.groups;
        task.units = min(launch.groups, groups - task.first_group) * task.bins;
        task.image = 0;
        task.rows = task.columns = {0, 1, 0};
        const float *roi = rois + task.roi * 5;
        if (is_on_image(launch, roi)) {
            const int height = launch.height, width = launch.width;
            task.image = (Index)roi[0] * launch.strides.image;
            task.columns = axis_of(launch.scale, roi[1], roi[3], launch.bin_columns, width);
            task.rows = axis_of(launch.scale, roi[2], roi[4], launch.bin_rows, height);
        }
        task.team_size = team_size_of(task);
    }
    __syncthreads();
    return task;
}

/* Make the code after this load from shared memory again. To keep values from there would take
   registers that loads in flight need. */
__device__ inline void free_registers()
{
#ifdef __CUDA_ARCH__
    asm volatile("" ::: "memory");
#endif
}

/* The cells of a bin that a thread visits: every `step`th, row by row, from cell `first` on. Both
   are at most WARP. */
struct Walk {
    const char *begin, *at;
    unsigned int x, y, width, height;
    unsigned int step_x, step_y;
    Index step, next_row; /* bytes, the second if x goes beyond the width */

    __device__ bool inside() const { return y < height; }

    __device__ void advance()
    {
        x += step_x, y += step_y, at += step;
        if (x >= width)
            x -= width, y++, at += next_row;
    }
};

__device__ inline Walk walk_of(
    const RoiLaunch &launch, const RoiTask &task, Index bin, unsigned int first, unsigned int step)
{
    const Interval rows = bin_interval(task.rows, bin / launch.bin_columns);
    const Interval columns = bin_interval(task.columns, bin % launch.bin_columns);
    const Index row = launch.strides.row, pixel = launch.strides.pixel;
    Walk walk;
    const bool empty = rows.start >= rows.stop || columns.start >= columns.stop;
    walk.width = empty ? 1 : columns.stop - columns.start;
    walk.height = empty ? 0 : rows.stop - rows.start;
    walk.x = first % walk.width, walk.y = first / walk.width;
    walk.step_x = step % walk.width, walk.step_y = step / walk.width;
    walk.begin = launch.data + task.image + rows.start * row + columns.start * pixel;
    walk.at = walk.begin + walk.y * row + walk.x * pixel;
    walk.step = walk.step_y * row + walk.step_x * pixel;
    walk.next_row = row - walk.width * pixel;
    return walk;
}

template <Kind kind> __device__ void store_bin(BitsOf<kind> *out, KeyOf<kind> most, bool empty)
{
    *out = empty ? (BitsOf<kind>)0 : decode<kind>(most);
}

/* Reduce the cells of a walk, of `count` channels from `channel` on. */
template <Kind kind, int count>
__device__ void reduce_cells(
    const RoiLaunch &launch, Walk walk, int channel, KeyOf<kind> (&most)[count])
{
    const Index step = launch.strides.channel;
#pragma unroll
    for (int j = 0; j < count; j++)
        most[j] = least_key<kind>();
#pragma unroll 1
    for (walk.at += channel * step; walk.inside(); walk.advance()) {
        BitsOf<kind> bits[count];
        const char *at = walk.at;
#pragma unroll
        for (int j = 0; j < count; j++, at += step)
            bits[j] = *(const BitsOf<kind> *)at;
#pragma unroll
        for (int j = 0; j < count; j++)
            most[j] = max(most[j], encode<kind>(bits[j]));
    }
}

/* Return one element of an array in registers, whose length is a power of 2. */
template <typename Key, int count> __device__ Key pick(const Key (&keys)[count], int index)
{
    Key left[count];
#pragma unroll
    for (int j = 0; j < count; j++)
        left[j] = keys[j];
#pragma unroll
    for (int half = count / 2; half > 0; half /= 2)
#pragma unroll
        for (int j = 0; j < half; j++)
            left[j] = index & half ? left[j + half] : left[j];
    return left[0];
}

/* Pool maps of `count` channels or more. */
template <Kind kind, int count>
__global__ void __launch_bounds__(THREADS, ROI_BLOCKS) pool_rois(
    const RoiLaunch launch, const float *rois, BitsOf<kind> *out)
{
    for (Index block = blockIdx.x; block < blocks_of_launch(launch); block += gridDim.x) {
        const RoiTask &task = task_of_roi(launch, rois, block);
        /* All lanes of a warp shuffle equally often, even those beyond the last unit. */
        for (Index first = 0; first < task.units; first += THREADS / task.team_size) {
            free_registers();
            const int team_size = task.team_size;
            const Index unit = first + thread_of_block() / team_size, bin = unit % task.bins;
            const int start = (task.first_group + unit / task.bins) * launch.group;
            const int stop = min(start + launch.group, unit < task.units ? launch.channels : 0);
            Walk walk = walk_of(launch, task, bin, thread_of_block() % team_size, team_size);
            const bool empty = walk.height == 0;
            if (unit >= task.units)
                walk.height = 0;
#pragma unroll 1
            for (int past = 0; past < launch.group; past += count) {
                /* If fewer than `count` channels are left, channels before them are loaded too. */
                const int channel = min(start + past, launch.channels - count);
                KeyOf<kind> most[count];
                reduce_cells<kind, count>(launch, walk, channel, most);
#pragma unroll 1
                for (int distance = 1; distance < team_size; distance *= 2)
#pragma unroll
                    for (int j = 0; j < count; j++)
                        most[j] = max(most[j], __shfl_xor_sync(~0u, most[j], distance));
                free_registers();
#pragma unroll 1
                for (int j = thread_of_block() % team_size; j < count; j += team_size)
                    if (channel + j >= start + past && channel + j < stop)
                        store_bin<kind>(
                            out + (task.roi * launch.channels + channel + j) * task.bins + bin,
                            pick(most, j), empty);
            }
        }
    }
}

/* Reduce the cells of a walk, of one vector of channels. In place of cells after the last, the
   first of the bin is loaded again. */
template <Kind kind, int vector>
__device__ void reduce_vectors(Walk &walk, Maxima<kind, vector> &most)
{
    typedef Vector<BitsOf<kind>, vector> Loaded;
    most.reset();
    while (walk.inside()) {
        Loaded vectors[LOADS_AT_ONCE<Loaded>];
#pragma unroll
        for (int j = 0; j < LOADS_AT_ONCE<Loaded>; j++, walk.advance())
            vectors[j] = *(const Loaded *)(walk.inside() ? walk.at : walk.begin);
#pragma unroll
        for (int j = 0; j < LOADS_AT_ONCE<Loaded>; j++)
            most.take(vectors[j]);
    }
}

template <Kind kind, int vector>
__global__ void __launch_bounds__(THREADS, ROI_BLOCKS) pool_rois_by_channels(
    const RoiLaunch launch, const float *rois, BitsOf<kind> *out)
{
    const int team_size = launch.group / vector;
    for (Index block = blockIdx.x; block < blocks_of_launch(launch); block += gridDim.x) {
        const RoiTask &task = task_of_roi(launch, rois, block);
        for (Index unit = threadIdx.x / team_size; unit < task.units;
             unit += THREADS / team_size) {
            free_registers();
            const Index bin = unit % task.bins;
            const int group = task.first_group + unit / task.bins;
            const int channel = group * launch.group + threadIdx.x % team_size * vector;
            if (channel >= launch.channels)
                continue;
            Walk walk = walk_of(launch, task, bin, 0, 1);
            const bool empty = walk.height == 0;
            walk.begin += channel * sizeof(BitsOf<kind>);
            walk.at += channel * sizeof(BitsOf<kind>);
            Maxima<kind, vector> most;
            reduce_vectors<kind, vector>(walk, most);
            free_registers();
            BitsOf<kind> *to = out + (task.roi * launch.channels + channel) * task.bins + bin;
#pragma unroll
            for (int k = 0; k < vector; k++, to += task.bins)
                store_bin<kind>(to, most.at(k), empty);
        }
    }
}

struct BoxLaunch {
    Index images, regions;
    int first_box, boxes; /* those of the regions that this launch writes */
    int corners[4 * BOXES];
};

/* Write boxes as RoIs of every image: (images, regions, 5). */
__global__ void write_rois(const BoxLaunch launch, float *rois)
{
    const Index threads = (Index)gridDim.x * blockDim.x;
    for (Index i = (Index)blockIdx.x * blockDim.x + threadIdx.x; i < launch.images * launch.boxes;
         i += threads) {
        const Index image = i / launch.boxes;
        const int box = i % launch.boxes;
        float *roi = rois + (image * launch.regions + launch.first_box + box) * 5;
        roi[0] = image;
        for (int edge = 0; edge < 4; edge++)
            roi[1 + edge] = launch.corners[4 * box + edge];
    }
}
