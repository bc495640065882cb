/* Regional maxima, in one pass over the map.

   Memory
       Region edges cut the map into cells, bands of rows times segments of columns. A block reads
       the planes or channels it is given once, each cell's maximum stays in shared memory, and
       regions are maxima of cells. Tables are small, and arrive with the launch, by value. What
       does not fit is cut into several launches.
   Accumulation
       Maxima, whose order does not matter, nor that of the atomics, which are on integers.
   Threads
       pool_rows: contiguous rows, any strides. A block takes PLANES channels of one image;
       threadIdx.x goes along a row, a vector of elements each, threadIdx.y over (plane, band).
       pool_channels: contiguous channels. threadIdx.x goes over vectors of channels, threadIdx.y
       over cells, or their rows where there are few. */

struct Map {
    const char *data;
    Index image_stride, channel_stride, row_stride, pixel_stride; /* bytes */
    Index first_image;                                            /* in the output */
    int width, first_block, table;
};

/* A table is {bands, segments, regions}, then start and stop of each band and each segment, then
   two words for each region: its first and last band and segment, a byte each, and its number. */
struct Launch {
    int maps, channels;
    Index regions; /* of the output */
    Map map[MAPS];
    int words[WORDS];
};

/* What a block works on. */
struct Work {
    const Map *map;
    const char *data; /* its image */
    Index image;      /* in the output */
    int first;        /* channel */
    const int *band, *segment, *region;
    int bands, segments, regions;
};

__device__ inline Work work_of_block(const Launch &launch, int channels)
{
    const int blocks = (launch.channels + channels - 1) / channels;
    Work work;
    int i = 0;
    while (i + 1 < launch.maps && launch.map[i + 1].first_block <= (int)blockIdx.x)
        i++;
    work.map = &launch.map[i];
    const int block = blockIdx.x - work.map->first_block;
    work.data = work.map->data + block / blocks * work.map->image_stride;
    work.image = work.map->first_image + block / blocks;
    work.first = block % blocks * channels;

    const int *table = launch.words + work.map->table;
    work.bands = table[0], work.segments = table[1], work.regions = table[2];
    work.band = table + 3;
    work.segment = work.band + 2 * work.bands;
    work.region = work.segment + 2 * work.segments;
    return work;
}

__device__ inline int thread_of_block() { return threadIdx.y * blockDim.x + threadIdx.x; }

template <typename Key> __device__ void fill(Key *cells, Key value, int count)
{
    for (int i = thread_of_block(); i < count; i += blockDim.x * blockDim.y)
        cells[i] = value;
}

/* Take the regions from cells (band, segment, channel) of `width` channels, `count` of them real. */
template <int kind, typename Out>
__device__ void write_regions(
    const Launch &launch, const Work &work, const typename Dtype<kind>::Key *cells, int width,
    int count, Out *out)
{
    for (int i = thread_of_block(); i < work.regions * width; i += blockDim.x * blockDim.y) {
        const int channel = i % width;
        const int *region = work.region + 2 * (i / width);
        const int edges = region[0];
        if (channel >= count)
            continue;
        typename Dtype<kind>::Key most = least_key<kind>();
        for (int band = edges & 255; band <= (edges >> 8 & 255); band++)
            for (int segment = edges >> 16 & 255; segment <= (edges >> 24 & 255); segment++)
                most = max(most, cells[(band * work.segments + segment) * width + channel]);
        store<kind>(
            out + (work.image * launch.regions + region[1]) * launch.channels + work.first + channel,
            most);
    }
}

/* Reduce vectors that start at column x to the cells of one band and plane. */
template <typename Key, int count>
__device__ void add_to_cells(const Work &work, const Key *best, int x, int segment, Key *cells)
{
    Key most = best[0];
    bool some = false;
#pragma unroll
    for (int k = 0; k < count; k++) {
        if (segment < work.segments && x + k >= work.segment[2 * segment + 1]) {
            if (some)
                atomicMax(cells + segment * PLANES, most);
            some = false;
            segment++;
        }
        if (segment < work.segments && x + k >= work.segment[2 * segment]) {
            most = some ? max(most, best[k]) : best[k];
            some = true;
        }
    }
    if (some)
        atomicMax(cells + segment * PLANES, most);
}

template <int kind, int count, typename Out>
__global__ void pool_rows(const Launch launch, Out *out)
{
    typedef typename Dtype<kind>::Key Key;
    typedef Vector<typename Dtype<kind>::Bits, count> Bits;
    Key *cells = (Key *)shared_memory;
    const Work work = work_of_block(launch, PLANES);
    const Map &map = *work.map;
    const int planes = min(PLANES, launch.channels - work.first);

    fill(cells, least_key<kind>(), work.bands * work.segments * PLANES);
    __syncthreads();
    for (int x = threadIdx.x * count; x < map.width; x += blockDim.x * count) {
        int segment = 0;
        while (segment < work.segments && work.segment[2 * segment + 1] <= x)
            segment++;
        for (int i = threadIdx.y; i < planes * work.bands; i += blockDim.y) {
            const int plane = i / work.bands, band = i % work.bands;
            const int top = work.band[2 * band], bottom = work.band[2 * band + 1];
            const char *row = work.data + (work.first + plane) * map.channel_stride
                              + top * map.row_stride + x * map.pixel_stride;
            Key best[count];
#pragma unroll
            for (int k = 0; k < count; k++)
                best[k] = least_key<kind>();
#pragma unroll 4
            for (int y = top; y < bottom; y++, row += map.row_stride) {
                const Bits bits = *(const Bits *)row;
#pragma unroll
                for (int k = 0; k < count; k++)
                    best[k] = max(best[k], encode<kind>(bits.at[k]));
            }
            add_to_cells<Key, count>(
                work, best, x, segment, cells + band * work.segments * PLANES + plane);
        }
    }
    __syncthreads();
    write_regions<kind>(launch, work, cells, PLANES, planes, out);
}

template <int kind, int count, typename Out>
__global__ void pool_channels(const Launch launch, Out *out)
{
    typedef typename Dtype<kind>::Key Key;
    typedef Vector<typename Dtype<kind>::Bits, count> Bits;
    Key *cells = (Key *)shared_memory;
    const int width = blockDim.x * count, lane = threadIdx.x * count;
    const Work work = work_of_block(launch, width);
    const Map &map = *work.map;
    const int channels = min(width, launch.channels - work.first);

    const int count_of_cells = work.bands * work.segments;
    const int parts = max(1, (int)blockDim.y / count_of_cells); /* of a cell's rows */

    fill(cells, least_key<kind>(), count_of_cells * width);
    __syncthreads();
    for (int i = threadIdx.y; i < count_of_cells * parts; i += blockDim.y) {
        const int cell = i % count_of_cells;
        const int *band = work.band + 2 * (cell / work.segments);
        const int *segment = work.segment + 2 * (cell % work.segments);
        const char *pixels = work.data + (work.first + lane) * map.channel_stride
                             + segment[0] * map.pixel_stride;
        if (lane >= channels)
            continue;
        Key best[count];
#pragma unroll
        for (int k = 0; k < count; k++)
            best[k] = least_key<kind>();
        for (int y = band[0] + i / count_of_cells; y < band[1]; y += parts) {
            const char *pixel = pixels + y * map.row_stride;
#pragma unroll 4
            for (int x = segment[0]; x < segment[1]; x++, pixel += map.pixel_stride) {
                const Bits bits = *(const Bits *)pixel;
#pragma unroll
                for (int k = 0; k < count; k++)
                    best[k] = max(best[k], encode<kind>(bits.at[k]));
            }
        }
#pragma unroll
        for (int k = 0; k < count; k++)
            if (parts == 1)
                cells[cell * width + lane + k] = best[k];
            else
                atomicMax(cells + cell * width + lane + k, best[k]);
    }
    __syncthreads();
    write_regions<kind>(launch, work, cells, width, channels, out);
}
