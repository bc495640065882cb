/* Regions that are given as RoIs, or given out as such: a thread for each element of the result. */

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
