/* The GPU kernels: regional maxima in one pass over the map, and descriptors from them.

   Keys
       Maxima are taken over integers that order as the values do, as in rmac/cpu/kernels.pyx: the
       results have the same bits. Keys of 8 and 16 bits are widened to 32.
   NaN
       A NaN of either sign is above +inf, so that a region which holds one gives NaN. +0 > -0.
   Accumulation
       Maxima do not round, so that the order of the atomics does not matter: they are on integers
       alone. CuPy has float32 arithmetic take subnormals as 0: so do sums over regions; maxima and
       norms are kept from it. Norms are summed in float64, regional vectors in the type of the descriptor, both in an
       order that depends on the shape alone.
   Memory
       Region edges cut the map into cells, bands of rows times segments of columns. A block reads
       the planes or channels it is given once, each cell's maximum stays in shared memory, and
       regions are maxima of cells. Tables are small, and arrive with the launch, by value.
   Threads
       pool_rows: contiguous rows, any strides. A block takes PLANES channels of one image;
       threadIdx.x goes along a row, a vector of elements each, threadIdx.y over (plane, band).
       pool_channels: contiguous channels. threadIdx.x goes over vectors of channels, threadIdx.y
       over cells, or their rows where there are few. pool_rois: one thread for each element of the result. describe: one block for
       each image, a warp for each region's norm. */

enum Kind { UINT8, INT8, FLOAT16, BFLOAT16, FLOAT32, FLOAT64 };
enum Aggregate { CONCAT, SUM, MEAN };

const int PLANES = 16;
const int WARP = 32;
const int MAPS = 10;    /* that one launch takes */
const int WORDS = 800;  /* of their tables */
const int BOXES = 200;   /* written as RoIs by one launch */
const int COUNTED = 900; /* images that have their own number of regions, in one launch */

typedef long long Index;

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

template <int kind> struct Dtype;
template <> struct Dtype<UINT8> { typedef unsigned char Bits; typedef int Key; typedef float Real; };
template <> struct Dtype<INT8> { typedef signed char Bits; typedef int Key; typedef float Real; };
template <> struct Dtype<FLOAT16> { typedef short Bits; typedef int Key; typedef float Real; };
template <> struct Dtype<BFLOAT16> { typedef short Bits; typedef int Key; typedef float Real; };
template <> struct Dtype<FLOAT32> { typedef int Bits; typedef int Key; typedef float Real; };
template <> struct Dtype<FLOAT64> { typedef Index Bits; typedef Index Key; typedef double Real; };

template <int kind> __device__ typename Dtype<kind>::Bits shift_of()
{
    return kind == FLOAT16    ? (typename Dtype<kind>::Bits)0x3FF
           : kind == BFLOAT16 ? (typename Dtype<kind>::Bits)0x7F
           : kind == FLOAT32  ? (typename Dtype<kind>::Bits)0x7FFFFF
                              : (typename Dtype<kind>::Bits)0xFFFFFFFFFFFFFLL;
}

template <int kind> __device__ typename Dtype<kind>::Bits in_order(typename Dtype<kind>::Bits bits)
{
    typedef typename Dtype<kind>::Bits Bits;
    const int top = 8 * sizeof(Bits) - 1;
    return (Bits)(bits ^ ((bits >> top) & (Bits)~((unsigned long long)1 << top)));
}

template <int kind> __device__ typename Dtype<kind>::Key encode(typename Dtype<kind>::Bits bits)
{
    typedef typename Dtype<kind>::Bits Bits;
    if (kind == UINT8 || kind == INT8)
        return bits;
    return (Bits)((unsigned long long)in_order<kind>(bits) - (unsigned long long)shift_of<kind>());
}

template <int kind> __device__ typename Dtype<kind>::Bits decode(typename Dtype<kind>::Key key)
{
    typedef typename Dtype<kind>::Bits Bits;
    if (kind == UINT8 || kind == INT8)
        return (Bits)key;
    return in_order<kind>((Bits)((unsigned long long)key + (unsigned long long)shift_of<kind>()));
}

template <int kind> __device__ typename Dtype<kind>::Key least_key()
{
    typedef typename Dtype<kind>::Key Key;
    return (Key)((unsigned long long)1 << (8 * sizeof(Key) - 1));
}

/* The same number in float32, or in float64 if it is one. No arithmetic on float32 subnormals:
   CuPy has them taken as 0. */
template <int kind> __device__ typename Dtype<kind>::Real widen(typename Dtype<kind>::Bits bits)
{
    typename Dtype<kind>::Real value;
    if (kind == UINT8 || kind == INT8)
        return (typename Dtype<kind>::Real)bits;
    if (kind == FLOAT32 || kind == FLOAT64) {
        memcpy(&value, &bits, sizeof(value));
        return value;
    }
    unsigned int wide = (unsigned int)(unsigned short)bits << 16;
    if (kind == FLOAT16) {
        const unsigned int magnitude = bits & 0x7FFF, exponent = magnitude >> 10;
        const float subnormal = magnitude * 5.9604644775390625e-8f; /* times 2**-24 */
        unsigned int result = (magnitude << 13) + (112 << 23); /* what exponents differ by */
        if (exponent == 31)
            result |= 0x7F800000;
        if (exponent == 0)
            memcpy(&result, &subnormal, sizeof(result));
        wide = (wide & 0x80000000) | result;
    }
    memcpy(&value, &wide, sizeof(wide));
    return value;
}

/* A maximum as its bits, or as the number that they mean. */
template <int kind>
__device__ void store(typename Dtype<kind>::Bits *out, typename Dtype<kind>::Key key)
{
    *out = decode<kind>(key);
}

template <int kind>
__device__ void store(typename Dtype<kind>::Real *out, typename Dtype<kind>::Key key)
{
    *out = widen<kind>(decode<kind>(key));
}

template <typename Bits, int count> struct alignas(count * sizeof(Bits)) Vector {
    Bits at[count];
};

extern __shared__ Index shared_memory[];

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

/* One edge of a bin, in Caffe2's arithmetic: float32, each operation rounded. */
__device__ inline int bin_edge(float product, Index first, int size)
{
    const Index edge = (Index)product + first;
    return (int)min(max(edge, (Index)0), (Index)size);
}

__device__ inline Index rounded(float coordinate)
{
    const double far = 1099511627776.0; /* beyond any map */
    return (Index)min(max(round((double)coordinate), -far), far);
}

struct Maps {
    const char *data;
    Index image_stride, channel_stride, row_stride, pixel_stride; /* bytes */
    int images, channels, height, width;
};

/* rois (K, 5) float32; one that is not on any image, or not finite, has empty bins. */
template <int kind>
__global__ void pool_rois(
    const Maps maps, const float *rois, Index bins, int bins_high, int bins_wide, float scale,
    typename Dtype<kind>::Bits *out)
{
    typedef typename Dtype<kind>::Bits Bits;
    typedef typename Dtype<kind>::Key Key;
    for (Index i = (Index)blockIdx.x * blockDim.x + threadIdx.x; i < bins;
         i += (Index)gridDim.x * blockDim.x) {
        const int j = i % bins_wide, k = i / bins_wide % bins_high;
        const Index plane = i / bins_wide / bins_high;
        const int channel = plane % maps.channels;
        const float *roi = rois + plane / maps.channels * 5;
        bool there = roi[0] >= 0 && roi[0] < maps.images;
        for (int edge = 1; edge < 5; edge++)
            there = there && fabsf(roi[edge]) <= 3.402823466e38f;
        out[i] = 0;
        if (!there)
            continue;
        const Index x = rounded(roi[1] * scale), y = rounded(roi[2] * scale);
        const Index wide = max(rounded(roi[3] * scale) - x + 1, (Index)1);
        const Index high = max(rounded(roi[4] * scale) - y + 1, (Index)1);
        const float step_x = (float)wide / (float)bins_wide, step_y = (float)high / (float)bins_high;
        const int x1 = bin_edge(floorf(j * step_x), x, maps.width);
        const int x2 = bin_edge(ceilf((j + 1) * step_x), x, maps.width);
        const int y1 = bin_edge(floorf(k * step_y), y, maps.height);
        const int y2 = bin_edge(ceilf((k + 1) * step_y), y, maps.height);
        if (x1 >= x2 || y1 >= y2)
            continue;
        const char *data = maps.data + (Index)roi[0] * maps.image_stride
                           + channel * maps.channel_stride;
        Key most = least_key<kind>();
        for (int row = y1; row < y2; row++)
            for (int column = x1; column < x2; column++)
                most = max(
                    most, encode<kind>(*(const Bits *)(data + row * maps.row_stride
                                                       + column * maps.pixel_stride)));
        store<kind>(out + i, most);
    }
}

/* A number in float64, subnormals too. */
__device__ inline double wide(double value) { return value; }

__device__ inline double wide(float value)
{
    unsigned int bits;
    memcpy(&bits, &value, sizeof(bits));
    if (bits & 0x7F800000)
        return value;
    const double magnitude = (bits & 0x7FFFFF) * 1.401298464324817e-45; /* times 2**-149 */
    return bits >> 31 ? -magnitude : magnitude;
}

/* The sum of a warp's values, the same in all its lanes. */
__device__ inline double sum_of_warp(double value)
{
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        value += __shfl_xor_sync(0xFFFFFFFF, value, distance);
    return value;
}

__device__ inline double peak_of_warp(double value)
{
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        value = fmax(value, __shfl_xor_sync(0xFFFFFFFF, value, distance));
    return value;
}

/* What each of `threads` threads adds to the sum of squares of values divided by `peak`. */
template <typename Real>
__device__ double part_of_squares(const Real *values, Index n, int thread, int threads, double peak)
{
    double sum = 0;
#pragma unroll 4
    for (Index i = thread; i < n; i += threads) {
        const double value = peak == 1 ? wide(values[i]) : wide(values[i]) / peak;
        sum += value * value;
    }
    return sum;
}

__device__ inline bool in_range(double squares, double eps)
{
    return squares > 1e-60 && squares < 1e60 && eps < 1e30;
}

/* Return, to a whole warp, what a vector is to be divided by: its norm plus eps. Where that, its
   inverse or its square could be out of range, the vector is divided here, and 1 remains to do. */
template <typename Real> __device__ Real norm_of(Real *values, Index n, double eps)
{
    const int lane = threadIdx.x % WARP;
    const double squares = sum_of_warp(part_of_squares(values, n, lane, WARP, 1.0));
    if (in_range(squares, eps))
        return (Real)(sqrt(squares) + eps);
    double peak = 0;
    for (Index i = lane; i < n; i += WARP)
        peak = fmax(peak, fabs(wide(values[i])));
    peak = peak_of_warp(peak);
    if (peak == 0 || peak > 1.7976931348623157e308)
        peak = 1;
    double length = sqrt(sum_of_warp(part_of_squares(values, n, lane, WARP, peak))) + eps / peak;
    if (length == 0)
        length = 1;
    for (Index i = lane; i < n; i += WARP)
        values[i] = (Real)(wide(values[i]) / peak / length);
    return 1;
}

/* How many regions images have: all the same number, or each of a launch's its own. */
struct Counts {
    int same, of_image[COUNTED];
};

/* Turn regional maxima (N, most, C), which are overwritten, into descriptors: (N, C), or in place
   if regions are neither summed nor averaged. `norms` is (N, most), for the block's use. */
template <typename Real>
__global__ void describe(
    Real *maxima, Real *norms, Real *out, Index first, int most, int channels, const Counts counts,
    int normalize_regions, int aggregate, int normalize, double eps)
{
    const int warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const int regions = counts.same ? counts.same : counts.of_image[blockIdx.x];
    const Index image = first + blockIdx.x;
    const Index size = aggregate == CONCAT ? (Index)regions * channels : channels;
    Real *vectors = maxima + image * most * channels;
    Real *norm = norms + image * most;
    Real *descriptor = aggregate == CONCAT ? vectors : out + image * channels;

    if (normalize_regions)
        for (int region = warp; region < regions; region += warps) {
            const Real length = norm_of(vectors + (Index)region * channels, channels, eps);
            if (threadIdx.x % WARP == 0)
                norm[region] = length;
        }
    __syncthreads();
    for (Index i = threadIdx.x; i < size; i += blockDim.x) {
        if (aggregate == CONCAT) {
            if (normalize_regions)
                vectors[i] /= norm[i / channels];
            continue;
        }
        Real sum = 0;
#pragma unroll 4
        for (int region = 0; region < regions; region++) {
            const Real value = vectors[(Index)region * channels + i];
            sum += normalize_regions ? value / norm[region] : value;
        }
        descriptor[i] = aggregate == MEAN ? sum / regions : sum;
    }
    if (!normalize)
        return;
    /* A thread sums the squares of what it wrote itself. */
    double *parts = (double *)shared_memory; /* of each warp */
    double squares =
        sum_of_warp(part_of_squares(descriptor, size, threadIdx.x, blockDim.x, 1.0));
    if (threadIdx.x % WARP == 0)
        parts[warp] = squares;
    __syncthreads();
    squares = 0;
    for (int i = 0; i < warps; i++)
        squares += parts[i];
    if (!in_range(squares, eps)) {
        if (warp == 0)
            norm_of(descriptor, size, eps);
        return;
    }
    const Real length = (Real)(sqrt(squares) + eps);
    for (Index i = threadIdx.x; i < size; i += blockDim.x)
        descriptor[i] /= length;
}

/* Boxes of one launch, and how many regions there are in all. */
struct Boxes {
    int first, count;
    Index regions;
    int at[4 * BOXES];
};

/* Every image's boxes as RoIs: (images, regions, 5). */
__global__ void write_rois(const Boxes boxes, Index images, float *rois)
{
    for (Index i = (Index)blockIdx.x * blockDim.x + threadIdx.x; i < images * boxes.count;
         i += (Index)gridDim.x * blockDim.x) {
        const int box = i % boxes.count;
        float *roi = rois + (i / boxes.count * boxes.regions + boxes.first + box) * 5;
        roi[0] = i / boxes.count;
        for (int edge = 0; edge < 4; edge++)
            roi[1 + edge] = boxes.at[4 * box + edge];
    }
}
