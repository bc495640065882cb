/* What the kernels that pool have in common: launches, plans, and the task of a thread block.

   Region edges cut the rows of a map into bands, its columns into segments, and so the map into
   tiles. A kernel reads the map once and reduces each tile to one value in shared memory, its
   partial. Then it combines the partials of each region.

   Accumulation
       See operations.cu.
   NaN
       A tile with a NaN gives a NaN, and so does each region with such a tile.
   Memory layout
       Maps have any strides. Shared memory holds partials as (band, segment, channel). For sums,
       segments are also cut where chunks of columns end, so that one thread sums a tile: see
       plan.py.
   Thread mapping
       A block takes one image and one channel block. */

/* In bytes. */
struct Strides {
    Index image, channel, row, pixel;
};

/* A batch of maps, or the one map of an image of a list. */
struct Batch {
    const char *data;
    Strides strides;
    Index first_image; /* of the batch, in the output */
    int width, chunk_width; /* see chunk_width() in plan.py */
    int first_block;        /* of the thread blocks that work on it */
    int first_word;         /* of its plan */
};

struct AggregationOptions {
    int normalize_regions;
    Aggregate aggregate;
    int in_place; /* whether the regional vectors are the descriptors */
    int normalize;
    double eps;
};

/* What a kernel that pools also does for descriptors; nothing if `squares` is null. */
struct Description {
    AggregationOptions options;
    double *squares;        /* sums of squares of (image, region, group of channels) */
    unsigned int *finished; /* blocks of each image; null if `describe` describes the images */
    void *descriptors;
};

/* The words of a plan are: the numbers of bands, segments and regions; start and stop of each band;
   start and stop of each segment; then the span and the number of each region. A span has four
   bytes: first band, last band, first segment, last segment. */
struct PoolLaunch {
    int batches, channels;
    int zero_point; /* of integers, the value that stands for 0 */
    int factors; /* of a power that is a product; 0 for other powers */
    double p;    /* the power, whose root is taken at the end; 0 for other pools */
    Index regions; /* of each image in the output */
    Description description;
    Batch batch[BATCHES];
    int words[PLAN_WORDS];
};

/* What one thread block works on. */
struct Task {
    const Batch *batch;
    const char *image_data;
    Index image; /* in the output */
    int first_channel, channels;
    const int *band, *segment, *region; /* the words of the plan */
    int bands, segments, regions;
};

/* The tiles of a region: its first and last band, and its first and last segment. */
struct RegionSpan {
    int top, bottom, left, right;
};

__device__ inline RegionSpan span_of(const Task &task, int region)
{
    const int bytes = task.region[2 * region];
    return {bytes & 255, bytes >> 8 & 255, bytes >> 16 & 255, bytes >> 24 & 255};
}

__device__ inline Task task_of_block(const PoolLaunch &launch, int channel_block)
{
    const int channel_blocks = (launch.channels + channel_block - 1) / channel_block;
    Task task;
    int i = 0;
    while (i + 1 < launch.batches && launch.batch[i + 1].first_block <= (int)blockIdx.x)
        i++;
    task.batch = &launch.batch[i];
    const int block = blockIdx.x - task.batch->first_block;
    const int image = block / channel_blocks;
    task.image_data = task.batch->data + image * task.batch->strides.image;
    task.image = task.batch->first_image + image;
    task.first_channel = block % channel_blocks * channel_block;
    task.channels = min(channel_block, launch.channels - task.first_channel);

    const int *words = launch.words + task.batch->first_word;
    task.bands = words[0], task.segments = words[1], task.regions = words[2];
    task.band = words + 3;
    task.segment = task.band + 2 * task.bands;
    task.region = task.segment + 2 * task.segments;
    return task;
}

__device__ inline const char *channel_data(const Task &task, int channel)
{
    return task.image_data + (task.first_channel + channel) * task.batch->strides.channel;
}

/* Return the index in the output of a region and channel of the task. */
__device__ inline Index output_index(
    const PoolLaunch &launch, const Task &task, int region, int channel)
{
    const Index row = task.image * launch.regions + task.region[2 * region + 1];
    return row * launch.channels + task.first_channel + channel;
}

/* Return the number of a thread in its block. It is computed at each use: to keep it, and what is
   made from it, would take registers that loads in flight need. */
__device__ inline int thread_of_block()
{
    int thread = threadIdx.y * blockDim.x + threadIdx.x;
#ifdef __CUDA_ARCH__
    asm volatile("" : "+r"(thread));
#endif
    return thread;
}

__device__ inline int threads_of_block() { return blockDim.x * blockDim.y; }
