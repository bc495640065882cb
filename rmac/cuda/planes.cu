/* Regional maxima of small maps whose planes are packed.

   Accumulation, NaN
       As in maxima.cu, without atomics.
   Memory layout
       A plane is the cells of one channel. The planes of a channel block are contiguous, and are
       copied to shared memory first, with the widest loads. A plane has an odd number of
       cells, so that neighbouring planes are in different banks.
   Thread mapping
       A lane takes `many` planes. A warp takes a tile of all planes, then a region of them. So all
       threads of a warp do the same. */

/* Copy elements to shared memory. */
template <typename Bits> __device__ void copy_to_shared(Bits *to, const Bits *from, int elements)
{
    const int count = WIDEST_LOAD / sizeof(Bits);
    typedef Vector<Bits, count> Chunk;
    const int threads = blockDim.x, chunks = elements / count, batch = 8;
    for (int first = threadIdx.x; first < chunks; first += batch * threads) {
        Chunk chunk[batch];
#pragma unroll
        for (int j = 0; j < batch; j++)
            chunk[j] = ((const Chunk *)from)[min(first + j * threads, chunks - 1)];
#pragma unroll
        for (int j = 0; j < batch; j++)
            if (first + j * threads < chunks)
                ((Chunk *)to)[first + j * threads] = chunk[j];
    }
    for (int i = chunks * count + threadIdx.x; i < elements; i += threads)
        to[i] = from[i];
}

/* Reduce each tile of a lane's planes, which begin at `plane`: (tile, place in `many`, lane). */
template <Kind kind, int many>
__device__ void reduce_tiles(
    const Task &task, const BitsOf<kind> *cells, const int (&plane)[many], KeyOf<kind> *tiles)
{
    const int width = task.batch->width, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    for (int tile = threadIdx.x / WARP; tile < task.bands * task.segments; tile += warps) {
        const int *band = task.band + 2 * (tile / task.segments);
        const int *segment = task.segment + 2 * (tile % task.segments);
        KeyOf<kind> most[many];
        fill(most, least_key<kind>());
        for (int y = band[0]; y < band[1]; y++)
            for (int cell = y * width + segment[0]; cell < y * width + segment[1]; cell++)
#pragma unroll
                for (int k = 0; k < many; k++)
                    most[k] = max(most[k], encode<kind>(cells[plane[k] + cell]));
#pragma unroll
        for (int k = 0; k < many; k++)
            tiles[(tile * many + k) * WARP + lane] = most[k];
    }
}

/* Write the maxima of all regions of a lane's planes. */
template <Kind kind, int many, typename Out>
__device__ void write_regions_of_planes(
    const PoolLaunch &launch, const Task &task, const KeyOf<kind> *tiles, Out *out)
{
    const int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    for (int region = threadIdx.x / WARP; region < task.regions; region += warps) {
        const RegionSpan span = span_of(task, region);
        KeyOf<kind> most[many];
        fill(most, least_key<kind>());
        for (int band = span.top; band <= span.bottom; band++) {
            const int row = band * task.segments;
            for (int tile = row + span.left; tile <= row + span.right; tile++)
#pragma unroll
                for (int k = 0; k < many; k++)
                    most[k] = max(most[k], tiles[(tile * many + k) * WARP + lane]);
        }
        Out *of_region = out + output_index(launch, task, region, lane);
#pragma unroll
        for (int k = 0; k < many; k++)
            if (lane + WARP * k < task.channels)
                store<kind>(of_region + WARP * k, most[k], launch.zero_point);
    }
}

template <Kind kind, int many, typename Out>
__global__ void __launch_bounds__(THREADS, 4) pool_planes(const PoolLaunch launch, Out *out)
{
    typedef BitsOf<kind> Bits;
    const Task task = task_of_block(launch, WARP * many);
    const int cells_of_plane = task.batch->strides.channel / (int)sizeof(Bits);
    /* tiles first: their keys are at least as wide as the cells */
    KeyOf<kind> *tiles = (KeyOf<kind> *)shared_memory;
    Bits *cells = (Bits *)(tiles + task.bands * task.segments * WARP * many);

    copy_to_shared(
        cells, (const Bits *)channel_data(task, 0), task.channels * cells_of_plane);
    __syncthreads();
    int plane[many];
#pragma unroll
    for (int k = 0; k < many; k++)
        plane[k] = min((int)threadIdx.x % WARP + WARP * k, task.channels - 1) * cells_of_plane;
    reduce_tiles<kind, many>(task, cells, plane, tiles);
    __syncthreads();
    write_regions_of_planes<kind, many>(launch, task, tiles, out);
}
