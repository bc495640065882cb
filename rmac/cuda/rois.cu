/* Maxima of RoIs' bins, and boxes written as RoIs.

   Accumulation
       Maxima of keys. The edges of bins are those of Caffe2, which computes them in float32 and
       rounds each operation.
   NaN
       A bin with a NaN gives a NaN. A RoI that is not finite, or is on no image, has empty bins,
       which give 0.
   Memory layout
       Maps have any strides. RoIs are (K, 5) float32: image, x1, y1, x2, y2.
   Thread mapping
       A thread for each element of the result. */

struct RoiLaunch {
    const char *data;
    Strides strides;
    int images, channels, height, width;
    int bin_rows, bin_columns; /* of each RoI */
    float scale;
    Index elements; /* of the output (K, channels, bin_rows, bin_columns) */
};

/* Half-open. */
struct Interval {
    int start, stop;
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

__device__ inline int clip_edge(float offset, Index start, int size)
{
    const Index edge = (Index)offset + start;
    return (int)min(max(edge, (Index)0), (Index)size);
}

/* Return one of the bins that cut the scaled interval from `first` to `last` into equal parts. */
__device__ inline Interval bin_interval(
    const RoiLaunch &launch, float first, float last, int bin, int bins, int size)
{
    const Index start = round_to_index(first * launch.scale);
    const Index length = max(round_to_index(last * launch.scale) - start + 1, (Index)1);
    const float step = (float)length / (float)bins;
    return {
        clip_edge(floorf(bin * step), start, size),
        clip_edge(ceilf((bin + 1) * step), start, size),
    };
}

template <Kind kind>
__device__ KeyOf<kind> max_of_bin(
    const Strides &strides, const char *data, Interval rows, Interval columns)
{
    KeyOf<kind> most = least_key<kind>();
    for (int y = rows.start; y < rows.stop; y++)
        for (int x = columns.start; x < columns.stop; x++)
            most = max(
                most,
                encode<kind>(*(const BitsOf<kind> *)(data + y * strides.row + x * strides.pixel)));
    return most;
}

template <Kind kind>
__global__ void pool_rois(const RoiLaunch launch, const float *rois, BitsOf<kind> *out)
{
    const Index threads = (Index)gridDim.x * blockDim.x;
    for (Index i = (Index)blockIdx.x * blockDim.x + threadIdx.x; i < launch.elements;
         i += threads) {
        const int column = i % launch.bin_columns, row = i / launch.bin_columns % launch.bin_rows;
        const Index plane = i / launch.bin_columns / launch.bin_rows;
        const int channel = plane % launch.channels;
        const float *roi = rois + plane / launch.channels * 5;
        out[i] = 0;
        if (!is_on_image(launch, roi))
            continue;
        const Interval columns =
            bin_interval(launch, roi[1], roi[3], column, launch.bin_columns, launch.width);
        const Interval rows =
            bin_interval(launch, roi[2], roi[4], row, launch.bin_rows, launch.height);
        if (rows.start >= rows.stop || columns.start >= columns.stop)
            continue;
        const char *data = launch.data + (Index)roi[0] * launch.strides.image
                           + channel * launch.strides.channel;
        store<kind>(out + i, max_of_bin<kind>(launch.strides, data, rows, columns), 0);
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
