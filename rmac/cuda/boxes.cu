/* Sums of boxes: of the squares of their maxima, and of the products with queries. choices.cu makes
   scores of them.

   Accumulation
       The squares and products of a box are summed over a channel block in `Real`, one channel
       after the other; then over channel blocks in float64. `Real` is float32; it is float64 for
       float64 maps, and for images with values whose squares may overflow or underflow in float32.
       search_boxes() in float32 marks such images in `overflows`. The launches in float64 do these
       images alone. No sum depends on other images or queries.
       float64 maps with values whose squares may overflow or underflow in float64 are marked too.
       Two more passes search them, with all cells multiplied by 2**600 or by 2**-600. A pass scores
       the boxes whose length is between `least` and `most`. So each box has a score in one pass, or
       the same score in two.
   NaN
       A NaN is read as inf, so that the sums of a box with a NaN are not finite.
   Memory layout
       Maps have any strides. The cells of a channel block are in shared memory, (channel, cell), or
       in device memory if a map is too large. A cell stands for some rows and columns of the map:
       it is their maximum. Their numbers are powers of 2, and are doubled in place until a box is
       the maximum of four cells. Sums are (image, channel block, sum). Queries have length 1, and
       are (query, channel).
   Thread mapping
       search_boxes: a block takes one channel block of one image, and a thread takes boxes.
       scale_queries: a block, which is a warp, takes a query. */

/* Cells that a thread loads before it uses the first. The time with others is not recorded. */
const int CELLS_AT_ONCE = 8;

/* Boxes of one size, and the queries that they are compared with. */
struct Run {
    int height, width; /* of each box */
    int rows, columns; /* of boxes */
    int first_query, queries;
    Index first_sum; /* of squares, one for each box; then of products, for each query and box */
};

/* Runs whose boxes are the maxima of four cells each, when a cell stands for so many rows and
   columns. */
struct Stage {
    int rows, columns;
    int first_run, stop_run;
};

struct Found {
    double score;
    int x1, y1, x2, y2;
};

struct SearchLaunch {
    const char *data; /* of the first image */
    Strides strides;
    Index first_image, images; /* in the output: the number of the first, and of all */
    int channels, height, width;
    int by_channels; /* whether channels are contiguous */
    int step;        /* cells between boxes */
    int channel_block, channel_blocks; /* the channels of one; how many an image has */
    int blocks;      /* of search_boxes, for each image */
    int stages, first_run, stop_run;
    int queries;
    int parts;       /* of the boxes of an image: a block of compare_boxes takes one */
    int is_first;    /* whether nothing is found yet */
    int takes;       /* images in this pass: bit 0 those not marked, bit 1 those marked */
    int small_first; /* whether fewer cells are better at equal scores */
    int refine, sweeps;
    Index first_sum, sums; /* of each image and channel block in this launch */
    const Stage *stage;
    const Run *run;
    const int *order;   /* the number of each query in the output */
    const void *units;  /* queries, of the type of sums */
    double scale;       /* of all cells: a power of 2 */
    double least, most; /* lengths of the boxes that have a score, scaled; for marked images */
    int *overflows;     /* marks images that need another pass; null if there is none */
    void *all_sums;
    char *workspace;    /* of all blocks; null if shared memory is enough */
    Index block_bytes;  /* of the workspace of one block */
    Found *found;       /* (image, query, part) */
    Index *boxes;       /* (query, image, 4) */
    void *scores;       /* (query, image) */
};

__device__ inline double infinity()
{
    const unsigned long long bits = 0x7FF0000000000000;
    double value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* Return whether values have the type of sums. In a wider one no square overflows or
   underflows. */
template <Kind kind, typename Real> __device__ constexpr bool has_own_type()
{
    return sizeof(RealOf<kind>) == sizeof(Real);
}

/* Return whether other passes do this image. */
__device__ inline bool is_for_other_pass(const SearchLaunch &launch, int image)
{
    return launch.overflows && !(launch.takes & (1 << launch.overflows[image]));
}

template <Kind kind, typename Real> __device__ Real read_number(const char *at)
{
    const RealOf<kind> value = widen<kind>(*(const BitsOf<kind> *)at, 0);
    if constexpr (sizeof(Real) == sizeof(double)) {
        const double wide = to_double(value);
        return wide == wide ? wide : infinity();
    } else {
        return value == value ? value : (Real)infinity();
    }
}

/* Return whether the square of a float64 may overflow or underflow: the number is below 2**-450, or
   at least 2**450, and neither 0 nor infinite. Only its exponent is compared: constants of 64 bits
   would take registers. */
__device__ inline bool is_out_of_range(double number)
{
    unsigned long long bits;
    memcpy(&bits, &number, sizeof(bits));
    const int exponent = (int)(bits >> 52 & 0x7FF) - 1023;
    return number != 0 && exponent < 1024 && (exponent < -450 || exponent >= 450);
}

/* The same for a float32: below 2**-50 or above 2**50. Bits are compared, since arithmetic takes
   subnormals as 0. */
__device__ inline bool is_out_of_range(float number)
{
    unsigned int bits;
    memcpy(&bits, &number, sizeof(bits));
    bits &= 0x7FFFFFFF;
    const unsigned int low = (127 - 50) << 23, high = (127 + 50) << 23;
    return bits != 0 && bits < 0x7F800000 && (bits < low || bits > high);
}

/* Only float64 maps have a scale other than 1. */
__device__ inline double scaled(double number, double scale) { return number * scale; }
__device__ inline float scaled(float number, double) { return number; }

/* An odd number of cells, so that neighbouring channels are in different banks. */
__device__ inline int channel_pitch(const SearchLaunch &launch)
{
    return launch.height * launch.width | 1;
}

/* Fill cells with some channels. Return whether this thread read a number that is out of range. */
template <Kind kind, typename Real>
__device__ bool load_cells(
    const SearchLaunch &launch, const char *data, int channels, Real *cells)
{
    const int plane = launch.height * launch.width, all = channels * plane;
    const int pitch = channel_pitch(launch);
    bool out_of_range = false;
    for (int first = threadIdx.x; first < all; first += CELLS_AT_ONCE * blockDim.x) {
        Real loaded[CELLS_AT_ONCE];
        int place[CELLS_AT_ONCE];
#pragma unroll
        for (int j = 0; j < CELLS_AT_ONCE; j++) {
            const int i = min(first + j * (int)blockDim.x, all - 1);
            const int channel = launch.by_channels ? i % channels : i / plane;
            const int cell = launch.by_channels ? i / channels : i % plane;
            const int y = cell / launch.width, x = cell % launch.width;
            place[j] = channel * pitch + cell;
            loaded[j] = read_number<kind, Real>(
                data + channel * launch.strides.channel + y * launch.strides.row
                + x * launch.strides.pixel);
        }
#pragma unroll
        for (int j = 0; j < CELLS_AT_ONCE; j++) {
            if constexpr (has_own_type<kind, Real>())
                out_of_range = out_of_range || is_out_of_range(loaded[j]);
            cells[place[j]] = scaled(loaded[j], launch.scale);
        }
    }
    return out_of_range;
}

/* Double the rows or columns that cells stand for: each becomes the maximum of itself and the cell
   at a distance. */
template <typename Real> __device__ void grow_cells(Real *cells, int count, int distance)
{
    for (int start = threadIdx.x; start - (int)threadIdx.x < count;
         start += CELLS_AT_ONCE * blockDim.x) {
        Real larger[CELLS_AT_ONCE];
#pragma unroll
        for (int j = 0; j < CELLS_AT_ONCE; j++) {
            const int i = start + j * blockDim.x;
            if (i + distance < count)
                larger[j] = max(cells[i], cells[i + distance]);
        }
        __syncthreads();
#pragma unroll
        for (int j = 0; j < CELLS_AT_ONCE; j++) {
            const int i = start + j * blockDim.x;
            if (i + distance < count)
                cells[i] = larger[j];
        }
    }
    __syncthreads();
}

/* The sums of a box over some channels: of squares, and of products with `many` queries. If there
   are fewer queries, the last one is taken again. */
template <typename Real, int many> struct BoxSums {
    Real squares, products[many];

    __device__ void sum(
        const Real *cell, int right, int below, int pitch, int channels, const Real *query,
        Index query_pitch, int queries)
    {
        squares = 0;
        const Real *element[many];
#pragma unroll
        for (int k = 0; k < many; k++) {
            products[k] = 0;
            element[k] = query + min(k, queries - 1) * query_pitch;
        }
#pragma unroll 1 /* unrolled, it needs registers that leave room for 2 blocks instead of 3 */
        for (int channel = 0; channel < channels; channel++, cell += pitch) {
            const Real most = max(max(cell[0], cell[right]), max(cell[below], cell[below + right]));
            squares = fma(most, most, squares);
#pragma unroll
            for (int k = 0; k < many; k++)
                products[k] = fma(most, element[k][channel], products[k]);
        }
    }
};

/* What a block of search_boxes works on. */
template <typename Real> struct SearchTask {
    const Real *cells;
    int channels;
    const Real *query; /* the first query, at the first channel of the block */
    Real *sums;
};

/* Write the sums of box number `box` of a run. */
template <typename Real, int many>
__device__ void sum_box(
    const SearchLaunch &launch, const SearchTask<Real> &task, const Stage &stage, const Run &run,
    int box)
{
    const int y = box / run.columns * launch.step, x = box % run.columns * launch.step;
    const int right = run.width - stage.columns;
    const int below = (run.height - stage.rows) * launch.width;
    const Index boxes = run.rows * run.columns;
    Real *out = task.sums + run.first_sum - launch.first_sum + box;
    for (int first = 0; first < run.queries; first += many) {
        BoxSums<Real, many> sums;
        sums.sum(
            task.cells + y * launch.width + x, right, below, channel_pitch(launch), task.channels,
            task.query + (Index)(run.first_query + first) * launch.channels, launch.channels,
            run.queries - first);
        if (first == 0)
            *out = sums.squares;
#pragma unroll
        for (int k = 0; k < many; k++)
            if (first + k < run.queries)
                out[(1 + first + k) * boxes] = sums.products[k];
    }
}

/* Write the sums of all boxes of a stage. The boxes of all its runs are one list, from which the
   threads take boxes in turn. */
template <typename Real, int many>
__device__ void sum_stage(
    const SearchLaunch &launch, const SearchTask<Real> &task, const Stage &stage, int first_run,
    int stop_run)
{
    int box = threadIdx.x;
    for (int i = first_run; i < stop_run; i++) {
        const Run run = launch.run[i];
        const int boxes = run.rows * run.columns;
        for (; box < boxes; box += blockDim.x)
            sum_box<Real, many>(launch, task, stage, run, box);
        box -= boxes;
    }
}

/* Fill cells with a channel block, and mark the image if it needs another pass. */
template <Kind kind, typename Real>
__device__ void load_channel_block(
    const SearchLaunch &launch, const char *data, int image, int channels, Real *cells)
{
    __syncthreads(); /* boxes of the last cells are summed */
    const bool out_of_range = load_cells<kind, Real>(launch, data, channels, cells);
    if (out_of_range && launch.overflows)
        launch.overflows[image] = 1;
    __syncthreads();
}

/* Write the sums of all boxes over one channel block, given by its number. */
template <Kind kind, typename Real, int many>
__device__ void search_channel_block(
    const SearchLaunch &launch, int image, int number, Real *cells)
{
    const int first = number * launch.channel_block;
    const int channels = min(launch.channel_block, launch.channels - first);
    const char *data = launch.data + image * launch.strides.image + first * launch.strides.channel;
    const SearchTask<Real> task = {
        cells, channels, (const Real *)launch.units + first,
        (Real *)launch.all_sums + ((Index)image * launch.channel_blocks + number) * launch.sums};
    const int count = channels * channel_pitch(launch);
    int rows = 0, columns = 0; /* that a cell stands for; 0 before cells are loaded */
    for (int i = 0; i < launch.stages; i++) {
        const Stage stage = launch.stage[i];
        const int first_run = max(stage.first_run, launch.first_run);
        const int stop_run = min(stage.stop_run, launch.stop_run);
        if (first_run >= stop_run)
            continue;
        if (rows == 0 || rows > stage.rows || columns > stage.columns) {
            load_channel_block<kind, Real>(launch, data, image, channels, cells);
            rows = columns = 1;
        }
        for (; columns < stage.columns; columns *= 2)
            grow_cells(cells, count, columns);
        for (; rows < stage.rows; rows *= 2)
            grow_cells(cells, count, rows * launch.width);
        sum_stage<Real, many>(launch, task, stage, first_run, stop_run);
    }
    if (rows == 0) /* there are no boxes, but the whole map may be scored: mark the image */
        load_channel_block<kind, Real>(launch, data, image, channels, cells);
}

template <Kind kind, typename Real, int many>
__global__ void __launch_bounds__(THREADS, 2) search_boxes(const SearchLaunch launch)
{
    const int image = blockIdx.x / launch.blocks;
    /* The first pass does not ask: its blocks are setting the marks. */
    if (launch.takes == 2 && is_for_other_pass(launch, image))
        return;
    for (int i = blockIdx.x % launch.blocks; i < launch.channel_blocks; i += launch.blocks)
        if (launch.workspace) /* two calls: in each, the compiler knows the kind of memory */
            search_channel_block<kind, Real, many>(
                launch, image, i,
                (Real *)(launch.workspace + blockIdx.x * launch.block_bytes));
        else
            search_channel_block<kind, Real, many>(launch, image, i, (Real *)shared_memory);
}

/* Write queries in another order, scaled to length 1: in float64, and rounded to float32. A query
   of zeros stays as it is. There is no barrier, since no thread reads what another wrote. */
__global__ void __launch_bounds__(WARP) scale_queries(
    const int *order, const double *queries, int channels, double *units, float *rounded)
{
    const double *query = queries + (Index)order[blockIdx.x] * channels;
    double *unit = units + (Index)blockIdx.x * channels;
    rounded += (Index)blockIdx.x * channels;
    for (int i = threadIdx.x; i < channels; i += WARP)
        unit[i] = query[i];
    normalize_scaled(unit, channels, 0.0);
    for (int i = threadIdx.x; i < channels; i += WARP)
        rounded[i] = (float)unit[i];
}

struct WordLaunch {
    int first, count;
    int words[WORDS];
};

/* Write the words of a launch to device memory. */
__global__ void write_words(const WordLaunch launch, int *out)
{
    for (int i = threadIdx.x; i < launch.count; i += blockDim.x)
        out[launch.first + i] = launch.words[i];
}
