/* Regions pooled by an operation, of small maps whose planes are packed.

   Accumulation, NaN
       See operations.cu.
   Memory layout
       A plane is the cells of one channel. The planes of a channel block are contiguous, and are
       copied to shared memory first, with the widest loads. A plane has an odd number of cells, so
       that the same cell of neighbouring planes is in different banks.
   Thread mapping
       A block has `many` planes for each lane. A warp takes one tile of all these planes at a time,
       then one region of them. So all lanes of a warp do the same. */

/* Blocks that fit in the registers of a multiprocessor. Of float32 maps of 7x7, 6 blocks fit in the
   shared memory of an H100, and 2 in that of sm_120. */
#define PLANES_BLOCKS (sizeof(typename Operation::Partial) < 8 && __CUDA_ARCH__ < 1200 ? 6 : 4)

/* Start to copy 16 bytes to shared memory: without registers, if the device can. */
__device__ inline void start_copy(void *to, const void *from)
{
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                     (unsigned int)__cvta_generic_to_shared(to)),
                 "l"(from)
                 : "memory");
#else
    *(Vector<int, 4> *)to = *(const Vector<int, 4> *)from;
#endif
}

/* Copy elements to shared memory, and wait until the whole block has done so. */
template <typename Bits> __device__ void copy_to_shared(Bits *to, const Bits *from, int elements)
{
    const int count = WIDEST_LOAD / sizeof(Bits), copies = elements / count;
#pragma unroll 4
    for (int copy = threadIdx.x; copy < copies; copy += blockDim.x)
        start_copy(to + copy * count, from + copy * count);
    for (int i = copies * count + threadIdx.x; i < elements; i += blockDim.x)
        to[i] = from[i];
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
    __syncthreads();
}

/* Reduce each tile of a lane's planes to partials (tile, plane of the lane, lane). `plane` tells
   where these planes begin in `cells`. */
template <typename Operation, int many>
__device__ void reduce_tiles(
    const PoolLaunch &launch, const Task &task, const BitsOf<Operation::kind> *cells,
    const int (&plane)[many], typename Operation::Partial *partials)
{
    const int width = task.batch->width, warps = blockDim.x / WARP;
    const bool by_columns = Operation::in_order;
    int band = 0, segment = threadIdx.x / WARP;
    partials += threadIdx.x % WARP;
    for (int tile = segment; tile < task.bands * task.segments; tile += warps, segment += warps) {
        for (; segment >= task.segments; segment -= task.segments)
            band++;
        const int top = task.band[2 * band], bottom = task.band[2 * band + 1];
        const int left = task.segment[2 * segment], right = task.segment[2 * segment + 1];
        const int first_line = by_columns ? left : top, stop_line = by_columns ? right : bottom;
        const int start = by_columns ? top : left, stop = by_columns ? bottom : right;
        typename Operation::Partial all[many];
        typename Operation::template Apart<many> running;
        running.reset();
#pragma unroll
        for (int k = 0; k < many; k++)
            all[k] = Operation::start();
        for (int line = first_line; line < stop_line; line++) {
            const int first = line * (by_columns ? 1 : width), step = by_columns ? width : 1;
#pragma unroll 2
            for (int cell = first + start * step; cell < first + stop * step; cell += step) {
                Vector<BitsOf<Operation::kind>, many> values;
#pragma unroll
                for (int k = 0; k < many; k++)
                    values.at[k] = cells[plane[k] + cell];
                Operation::take(launch, values, running);
            }
            if constexpr (Operation::in_order) {
#pragma unroll
                for (int k = 0; k < many; k++)
                    all[k] = Operation::combine(all[k], running.at(k));
                running.reset();
            }
        }
#pragma unroll
        for (int k = 0; k < many; k++)
            partials[(tile * many + k) * WARP] = by_columns ? all[k] : running.at(k);
    }
}

template <typename Operation, int many, typename Out>
__global__ void __launch_bounds__(THREADS, PLANES_BLOCKS) pool_planes(
    const PoolLaunch launch, Out *out)
{
    typedef BitsOf<Operation::kind> Bits;
    typedef typename Operation::Partial Partial;
    const Task task = task_of_block(launch, WARP * many);
    const int cells_of_plane = task.batch->strides.channel / (int)sizeof(Bits);
    /* partials first: each is at least as wide as a cell */
    Partial *partials = (Partial *)shared_memory;
    Bits *cells = (Bits *)(partials + task.bands * task.segments * WARP * many);

    copy_to_shared(
        cells, (const Bits *)channel_data(task, 0), task.channels * cells_of_plane);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int plane[many];
#pragma unroll
    for (int k = 0; k < many; k++)
        plane[k] = min(lane + WARP * k, task.channels - 1) * cells_of_plane;
    reduce_tiles<Operation, many>(launch, task, cells, plane, partials);
    __syncthreads();
    const PartialLayout layout = {task.segments * WARP * many, WARP * many, WARP};
    const ThreadOutput output = {lane, lane, WARP, warp, (int)blockDim.x / WARP};
    write_regions<Operation, many>(launch, task, partials, layout, output, out);
    describe_pooled<Operation::kind>(launch, task, WARP * many, out);
}
