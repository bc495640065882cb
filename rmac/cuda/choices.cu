/* The best box of each map for each query, by the sums of boxes.cu, and its refinement.

   Accumulation
       The sums of channel blocks are added in float64, in order. Scores are computed in float64,
       and rounded to the type of the results before they are compared. For float64 maps, the
       refinement scales a box by a power of 2 if its squares may overflow or underflow.
   NaN
       A box with a NaN or an infinite maximum has no score: it is -inf here. If no box has a score,
       the result is the whole map with score NaN.
   Memory layout
       Found boxes are (image, query, part). Results are (query, image), in the order of the caller.
   Thread mapping
       compare_boxes: a block takes a part of the boxes for one image and query.
       choose_boxes: a block takes one image and query. All its threads refine the same box: each
       reads some channels. */

__device__ inline Found nothing_found() { return {-infinity(), 0, 0, 0, 0}; }

/* Return whether one box is better than another, by the rule of `rmac.localize`. */
__device__ inline bool is_better(const Found &one, const Found &other, bool small_first)
{
    if (one.score != other.score)
        return one.score > other.score;
    const Index cells = (Index)(one.x2 - one.x1 + 1) * (one.y2 - one.y1 + 1);
    const Index others = (Index)(other.x2 - other.x1 + 1) * (other.y2 - other.y1 + 1);
    if (small_first && cells != others)
        return cells < others;
    if (one.y1 != other.y1)
        return one.y1 < other.y1;
    if (one.y2 != other.y2)
        return one.y2 < other.y2;
    if (one.x1 != other.x1)
        return one.x1 < other.x1;
    return one.x2 < other.x2;
}

/* Return the best of the boxes of all threads to the whole block. */
__device__ inline Found best_of_block(const Found &found, bool small_first)
{
    Found *all = (Found *)shared_memory;
    all[threadIdx.x] = found;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < half
            && is_better(all[threadIdx.x + half], all[threadIdx.x], small_first))
            all[threadIdx.x] = all[threadIdx.x + half];
    }
    __syncthreads();
    return all[0];
}

/* Return a score, rounded to the type of scores; -inf if the box has none. */
template <typename Score> __device__ double score_of(double squares, double products)
{
    const double length = sqrt(squares);
    const double score = length > 0 ? products / length : 0.0;
    return length < infinity() && score == score ? (double)(Score)score : -infinity();
}

/* Return whether the length of a box is one of those that have a score in this pass. */
__device__ inline bool has_score(const SearchLaunch &launch, double squares)
{
    const double length = sqrt(squares);
    return length >= launch.least && length <= launch.most;
}

/* Return box number `box` of a run with its score; `sums` are those of the image in this launch. */
template <typename Real, typename Score>
__device__ Found box_of_run(
    const SearchLaunch &launch, const Run &run, const Real *sums, int query, int box,
    bool is_marked)
{
    const int boxes = run.rows * run.columns;
    const Real *square = sums + (run.first_sum - launch.first_sum) + box;
    const Real *product = square + (Index)(1 + query - run.first_query) * boxes;
    double squares = 0, products = 0;
#pragma unroll 8
    for (int i = 0; i < launch.channel_blocks; i++) {
        squares += square[i * launch.sums];
        products += product[i * launch.sums];
    }
    Found found = nothing_found();
    if (!is_marked || has_score(launch, squares))
        found.score = score_of<Score>(squares, products);
    found.y1 = box / run.columns * launch.step, found.x1 = box % run.columns * launch.step;
    found.y2 = found.y1 + run.height - 1, found.x2 = found.x1 + run.width - 1;
    return found;
}

/* Find the best box of a part of the boxes. The best box of earlier launches is compared too. */
template <typename Real, typename Score>
__global__ void __launch_bounds__(THREADS, 4) compare_boxes(const SearchLaunch launch)
{
    const int part = blockIdx.x % launch.parts, query = blockIdx.x / launch.parts % launch.queries;
    const int image = blockIdx.x / launch.parts / launch.queries;
    if (is_for_other_pass(launch, image))
        return;
    const bool is_marked =
        sizeof(Score) == sizeof(double) && launch.overflows && launch.overflows[image];
    Found best = nothing_found();
    if (threadIdx.x == 0 && !launch.is_first)
        best = launch.found[blockIdx.x];
    const Real *sums =
        (const Real *)launch.all_sums + (Index)image * launch.channel_blocks * launch.sums;
    Index box = part * (int)blockDim.x + (int)threadIdx.x;
    for (int i = launch.first_run; i < launch.stop_run; i++) {
        const Run run = launch.run[i];
        if (query < run.first_query || query >= run.first_query + run.queries)
            continue;
        const int boxes = run.rows * run.columns;
        for (; box < boxes; box += (Index)launch.parts * blockDim.x) {
            const Found one = box_of_run<Real, Score>(launch, run, sums, query, box, is_marked);
            if (one.score > -infinity() && is_better(one, best, launch.small_first))
                best = one;
        }
        box -= boxes;
    }
    best = best_of_block(best, launch.small_first);
    if (threadIdx.x == 0)
        launch.found[blockIdx.x] = best;
}

/* Write the maximum of each channel in a box. A thread takes a channel, and reads along its rows:
   the first load brings the next cells of the row into the cache. */
template <Kind kind, typename Real>
__device__ void maxima_of_box(
    const SearchLaunch &launch, const char *data, const Found &box, Real *maxima)
{
    const int width = box.x2 - box.x1 + 1;
    data += box.x1 * launch.strides.pixel;
    for (int channel = threadIdx.x; channel < launch.channels; channel += blockDim.x) {
        Real most = -(Real)infinity();
        for (int y = box.y1; y <= box.y2; y++) {
            const char *row = data + channel * launch.strides.channel + y * launch.strides.row;
#pragma unroll 4
            for (int x = 0; x < width; x++)
                most = max(most, read_number<kind, Real>(row + x * launch.strides.pixel));
        }
        maxima[channel] = most;
    }
}

/* What a block of choose_boxes works on. */
template <typename Real> struct BoxTask {
    const char *data;
    const Real *query;
    double *sums; /* (channel block, 2): of squares and of products */
    Real *maxima;
    bool is_marked;
};

/* Return a power of 2: with it, squares of these numbers neither overflow nor vanish. */
template <typename Real> __device__ double scale_of_maxima(const Real *maxima, int channels)
{
    double peak = 0;
    for (int channel = 0; channel < channels; channel++)
        peak = fmax(peak, fabs((double)maxima[channel]));
    return peak < 0x1p-450 ? 0x1p600 : peak > 0x1p450 ? 0x1p-600 : 1;
}

/* Write the sums of a channel block, of squares and of products, as BoxSums does. */
template <typename Real>
__device__ void sum_scaled(
    const Real *maxima, int channels, const Real *query, double scale, double *sums)
{
    double squares = 0, products = 0;
    for (int channel = 0; channel < channels; channel++) {
        const double most = maxima[channel] * scale;
        squares = fma(most, most, squares);
        products = fma(most, (double)query[channel], products);
    }
    sums[0] = squares, sums[1] = products;
}

/* Return the score of a box to the whole block: the same as compare_boxes() computes. */
template <Kind kind, typename Real>
__device__ double score_box(
    const SearchLaunch &launch, const BoxTask<Real> &task, const Found &box)
{
    maxima_of_box<kind, Real>(launch, task.data, box, task.maxima);
    __syncthreads();
    double scale = 1;
    if (has_own_type<kind, double>() && task.is_marked)
        scale = scale_of_maxima(task.maxima, launch.channels);
    for (int i = threadIdx.x; i < launch.channel_blocks; i += blockDim.x) {
        const int first = i * launch.channel_block;
        if (scale != 1) {
            sum_scaled(
                task.maxima + first, min(launch.channel_block, launch.channels - first),
                task.query + first, scale, task.sums + 2 * i);
            continue;
        }
        BoxSums<Real, 1> sums;
        sums.sum(
            task.maxima + first, 0, 0, 1, min(launch.channel_block, launch.channels - first),
            task.query + first, 0, 1);
        task.sums[2 * i] = sums.squares, task.sums[2 * i + 1] = sums.products[0];
    }
    __syncthreads();
    double squares = 0, products = 0;
    for (int i = 0; i < launch.channel_blocks; i++)
        squares += task.sums[2 * i], products += task.sums[2 * i + 1];
    return score_of<RealOf<kind>>(squares, products);
}

/* Move an edge by a step. Return whether the box is on the map, at least two cells high or wide. */
__device__ inline bool move_edge(const SearchLaunch &launch, Found &box, int edge, int step)
{
    const int by = edge % 2 ? step : -step;
    switch (edge / 2) {
    case 0: box.y1 += by; break;
    case 1: box.y2 += by; break;
    case 2: box.x1 += by; break;
    default: box.x2 += by;
    }
    if (edge < 4)
        return box.y1 >= 0 && box.y2 < launch.height && box.y2 > box.y1;
    return box.x1 >= 0 && box.x2 < launch.width && box.x2 > box.x1;
}

/* Move the edges of a box as long as that makes it better. */
template <Kind kind, typename Real>
__device__ void refine_box(const SearchLaunch &launch, const BoxTask<Real> &task, Found &best)
{
    if (best.score == -infinity()) {
        best.x1 = best.y1 = 0, best.x2 = launch.width - 1, best.y2 = launch.height - 1;
        best.score = score_box<kind, Real>(launch, task, best);
        if (best.score == -infinity())
            return;
    }
    for (int step = min(launch.refine, max(launch.height, launch.width) - 1); step > 0; step--)
        for (int sweep = 0; sweep < launch.sweeps; sweep++) {
            const double before = best.score;
            for (int edge = 0; edge < 8; edge++) {
                Found box = best;
                if (!move_edge(launch, box, edge, step))
                    continue;
                box.score = score_box<kind, Real>(launch, task, box);
                if (box.score > best.score)
                    best = box;
            }
            if (best.score == before)
                break;
        }
}

/* Write the best box of each image and query. It is refined if there is a workspace for that. */
template <Kind kind, typename Real>
__global__ void __launch_bounds__(THREADS, 4) choose_boxes(const SearchLaunch launch)
{
    const int image = blockIdx.x / launch.queries, query = blockIdx.x % launch.queries;
    if (is_for_other_pass(launch, image))
        return;
    Found best = nothing_found();
    for (int part = threadIdx.x; part < launch.parts; part += blockDim.x) {
        const Found one = launch.found[(Index)blockIdx.x * launch.parts + part];
        if (is_better(one, best, launch.small_first))
            best = one;
    }
    best = best_of_block(best, launch.small_first);
    if (launch.workspace) {
        double *sums = (double *)(launch.workspace + blockIdx.x * launch.block_bytes);
        const BoxTask<Real> task = {
            launch.data + image * launch.strides.image,
            (const Real *)launch.units + (Index)query * launch.channels, sums,
            (Real *)(sums + 2 * launch.channel_blocks),
            launch.overflows && launch.overflows[image]};
        refine_box<kind, Real>(launch, task, best);
    }
    if (threadIdx.x)
        return;
    const Index place = launch.order[query] * launch.images + launch.first_image + image;
    const bool found = best.score > -infinity();
    Index *box = launch.boxes + 4 * place;
    box[0] = found ? best.x1 : 0, box[1] = found ? best.y1 : 0;
    box[2] = found ? best.x2 : launch.width - 1, box[3] = found ? best.y2 : launch.height - 1;
    ((RealOf<kind> *)launch.scores)[place] = found ? best.score : infinity() - infinity();
}
