# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, freethreading_compatible=True
"""Regional maxima and means in one pass over a batch of maps, and descriptors from them.

Accumulation
    Maxima do not round. Means are summed in float32 or float64, norms in float64, regional vectors
    in the dtype of the descriptor. The order of all sums depends on shape and strides alone.
NaN
    A region that holds a NaN gives a NaN. +0 is greater than -0.
Memory
    `x` is read once, in place, in any strides. A task takes one image and one channel block. Its
    intermediate vectors are in the workspace of its thread, most of it small enough for the cache.
    Values that are widened or raised to a power before they are summed are copied there first.
Threads
    A task runs on one thread. No thread reads what another writes. Where two channel blocks
    overlap, both write the same values. Tasks set the default floating-point mode, see floats.h.

The inner loops are in the .pxd files that are named below. Functions that are declared inline are
inlined always; the others are each compiled on their own. A .pxd file does not get the directives
above: each must name cdivision itself, or its divisions check for zero.
"""

from cpython.bytes cimport PyBytes_AsString
from cython cimport floating
from cython.parallel cimport prange, threadid
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint64_t

from rmac.cpu.buffers cimport (
    Memory, map_of, memory_of, size_product, size_sum, uninitialised, whole_lines,
    workspace_of_workers,
)
from rmac.cpu.describe cimport (
    Aggregation, aggregation_of, normalize, normalize_each, sum_regions,
)
from rmac.cpu.keys cimport key_t
from rmac.cpu.paths cimport (
    Batch, Block, Target, pool_bands, pool_planes, pool_rows, share_workspace, slot_keys,
    store_region, workspace_keys,
)
from rmac.cpu.tables cimport Aggregate, KernelSpec, Kind, Path, Route
from rmac.cpu.values cimport Map

cdef extern from "build.h":
    const long RMAC_OPENMP
    const char* RMAC_COMPILER
    const char* RMAC_VERSION  # this one and the next are defined by the build
    const char* RMAC_ISA
    bint rmac_machine_has(const char* isa)

cdef extern from "floats.h" nogil:
    uint64_t set_default_floats()
    void restore_floats(uint64_t before)

cdef extern from "teams.h":
    int omp_get_max_threads()
    int omp_get_num_procs()
    int rmac_started(int threads)
    int rmac_team(int workers)

cdef struct Call:
    # What all tasks of a call share.
    Batch* batches
    Py_ssize_t n_batches  # if there are several, each is one image
    Py_ssize_t images
    const Py_ssize_t* order  # of the batches, as threads take them; NULL as they come
    int workers
    Aggregation aggregation
    Py_ssize_t length  # of a descriptor


# Preparation, with the GIL.

cpdef Py_ssize_t workspace_bytes(Route route, KernelSpec spec) except -1:
    """Return the bytes of workspace that a thread needs to pool a channel block.

    It is the largest index if they are more.
    """
    return size_product(
        spec.itemsize, workspace_keys(&route.table, spec.line, spec.sums)
    )


cdef Batch batch_of(x, Route route, KernelSpec spec) except *:
    cdef Batch batch
    batch.x = map_of(x, spec)
    batch.route = route.table
    batch.blocks = (batch.x.channels + batch.route.lanes - 1) // batch.route.lanes
    batch.pooling_size = whole_lines(workspace_bytes(route, spec))
    return batch


cdef Py_ssize_t tasks_of(const Call* call) noexcept:
    cdef Py_ssize_t i, tasks = 0
    for i in range(call.n_batches):
        tasks += call.batches[i].x.images * call.batches[i].blocks
    return tasks


cdef Py_ssize_t thread_bytes(const Call* call, Py_ssize_t itemsize) noexcept:
    """Return the bytes that a thread needs for a block and for the regional vectors of an image."""
    cdef Py_ssize_t i, vectors, size = 0
    cdef const Batch* batch
    for i in range(call.n_batches):
        batch = &call.batches[i]
        vectors = size_product(
            batch.route.plan.n_regions, size_product(batch.x.channels, itemsize)
        )
        size = max(size, size_sum(batch.pooling_size, whole_lines(vectors)))
    return size


# Tasks, without the GIL.

cdef void pool_block(
    const Batch* batch, const Block* block, key_t shift, key_t* workspace, const Target* target
) noexcept nogil:
    """Write what the channels of a block have in every region."""
    cdef key_t* rest = workspace + slot_keys(&batch.route)
    cdef Py_ssize_t region
    # Called by address, so that compilers keep each a function of its own, with all registers.
    cdef void (*pool_path)(
        const Batch*, const Block*, key_t, key_t*, key_t*
    ) noexcept nogil
    if batch.route.path == Path.ROWS:
        pool_path = pool_rows
    elif batch.route.path == Path.PLANES:
        pool_path = pool_planes
    else:  # CHANNELS or GATHER: `Route` has refused all other numbers
        pool_path = pool_bands
    pool_path(batch, block, shift, workspace, rest)
    for region in range(batch.route.plan.n_regions):
        store_region(batch, block, region, shift, workspace, target)


cdef inline void pool_task(
    const Batch* batch, Py_ssize_t image, Py_ssize_t index, int thread, key_t shift,
    const Target* target,
) noexcept nogil:
    """Write the regional vectors of one image and the channel block of that index."""
    cdef const Map* x = &batch.x
    cdef uint64_t floats = set_default_floats()
    cdef Block block
    # The last block is as large as the others: it begins in the block before it, and both write the
    # same for the channels that they share.
    block.lanes = min(batch.route.lanes, x.channels)
    block.first = min(index * block.lanes, x.channels - block.lanes)
    block.is_last = block.first + block.lanes == x.channels
    block.data = x.data + image * x.image_stride + block.first * x.channel_stride
    pool_block(
        batch, &block, shift, <key_t*>(batch.workspace + thread * batch.workspace_size), target
    )
    restore_floats(floats)


cdef inline void pool_to_out(
    const Batch* batch, Py_ssize_t task, int thread, key_t shift, char* out
) noexcept nogil:
    cdef Py_ssize_t image = task // batch.blocks
    cdef Target target
    target.itemsize = sizeof(key_t)
    if key_t in floating:
        target.itemsize = sizeof(double) if batch.x.kind == Kind.FLOAT64 else sizeof(float)
    target.to_float32 = False
    target.data = out + image * batch.route.plan.n_regions * batch.x.channels * target.itemsize
    pool_task(batch, image, task % batch.blocks, thread, shift, &target)


cdef void pool_batch(const Batch* batch, key_t shift, char* out, int workers) noexcept nogil:
    cdef Py_ssize_t task, tasks = batch.x.images * batch.blocks
    if workers == 1:
        for task in range(tasks):
            pool_to_out(batch, task, 0, shift, out)
    else:
        for task in prange(tasks, schedule="static", num_threads=workers):
            pool_to_out(batch, task, threadid(), shift, out)


cdef inline bint in_place(const Call* call) noexcept nogil:
    """Return whether the regional vectors of an image are already its row of the output."""
    cdef int aggregate = call.aggregation.aggregate
    return aggregate == Aggregate.NONE or aggregate == Aggregate.CONCAT


cdef inline const Batch* batch_of_image(const Call* call, Py_ssize_t image) noexcept nogil:
    return &call.batches[image if call.n_batches > 1 else 0]


cdef inline Target target_of(
    const Call* call, Py_ssize_t image, int thread, floating* out
) noexcept nogil:
    """Return where regional vectors go: to the output if in place, else to the workspace."""
    cdef const Batch* batch = batch_of_image(call, image)
    cdef Target target
    target.itemsize = sizeof(floating)
    target.to_float32 = batch.x.kind != Kind.FLOAT32 and batch.x.kind != Kind.FLOAT64
    if in_place(call):
        target.data = <char*>out
    else:
        target.data = batch.workspace + thread * batch.workspace_size + batch.pooling_size
    return target


cdef void describe_image(
    floating* vectors, Py_ssize_t regions, Py_ssize_t channels, const Aggregation* options,
    floating* out,
) noexcept nogil:
    """Turn the regional vectors (R, C) of an image into its descriptor; `out` may be the same."""
    cdef Py_ssize_t i, length = channels
    cdef uint64_t floats = set_default_floats()
    if options.aggregate == Aggregate.NONE or options.aggregate == Aggregate.CONCAT:
        length = regions * channels
        if options.normalize_regions:
            normalize_each(vectors, regions, channels, options.eps)
    else:
        sum_regions(vectors, regions, channels, options, out)
        if options.aggregate == Aggregate.MEAN:
            for i in range(channels):
                out[i] /= regions
    if options.normalize:
        normalize(out, length, options.eps)
    restore_floats(floats)


cdef inline void describe_target(
    const Call* call, Py_ssize_t image, const Target* target, floating* out
) noexcept nogil:
    cdef const Batch* batch = batch_of_image(call, image)
    describe_image(
        <floating*>target.data, batch.route.plan.n_regions, batch.x.channels, &call.aggregation, out
    )


cdef void rmac_image(
    const Call* call, Py_ssize_t image, int thread, key_t shift, floating* outs
) noexcept nogil:
    """Write the descriptor of one image, on one thread."""
    cdef const Batch* batch = batch_of_image(call, image)
    cdef floating* out = outs + image * call.length
    cdef Target target = target_of(call, image, thread, out)
    cdef Py_ssize_t block
    for block in range(batch.blocks):
        pool_task(batch, 0 if call.n_batches > 1 else image, block, thread, shift, &target)
    describe_target(call, image, &target, out)


cdef void rmac_shared_image(
    const Call* call, Py_ssize_t image, key_t shift, floating* outs
) noexcept nogil:
    """Write the descriptor of one image, which all threads pool together."""
    cdef const Batch* batch = batch_of_image(call, image)
    cdef floating* out = outs + image * call.length
    cdef Target target = target_of(call, image, 0, out)
    cdef Py_ssize_t block
    for block in prange(batch.blocks, schedule="static", num_threads=call.workers):
        pool_task(batch, 0 if call.n_batches > 1 else image, block, threadid(), shift, &target)
    describe_target(call, image, &target, out)


cdef void rmac_images(const Call* call, key_t shift, floating* outs) noexcept nogil:
    cdef Py_ssize_t i, image
    if call.workers == 1:
        for image in range(call.images):
            rmac_image(call, image, 0, shift, outs)
    elif call.images >= call.workers:
        for i in prange(call.images, schedule="dynamic", num_threads=call.workers):
            image = call.order[i] if call.order != NULL else i
            rmac_image(call, image, threadid(), shift, outs)
    else:
        for image in range(call.images):
            rmac_shared_image(call, image, shift, outs)


# What Python calls.

def pool(x, Route route not None, KernelSpec spec not None, out, int workers):
    """Write what every region, channel and image of x (N, C, H, W) is pooled to.

    Parameters
    ----------
    x : IN, in any strides
    route : IN, how the maps are read
    spec : IN, what the values are, and how they are pooled
    out : OUT, (N, R, C) unless the plan has bins; of the dtype of x for maxima, else float32, or
        float64 for float64
    workers : IN, threads at most
    """
    cdef Batch batch = batch_of(x, route, spec)
    cdef char* results = memory_of(out).data
    workers = rmac_team(min(workers, batch.x.images * batch.blocks))
    cdef bytes workspace = uninitialised(workspace_of_workers(workers, batch.pooling_size))
    share_workspace(&batch, 1, workspace, batch.pooling_size)
    with nogil:
        if spec.sums:
            if spec.itemsize == sizeof(float):
                pool_batch(&batch, <float>0, results, workers)
            else:
                pool_batch(&batch, <double>0, results, workers)
        elif spec.itemsize == 1:
            pool_batch(&batch, <int8_t>spec.shift, results, workers)
        elif spec.itemsize == 2:
            pool_batch(&batch, <int16_t>spec.shift, results, workers)
        elif spec.itemsize == 4:
            pool_batch(&batch, <int32_t>spec.shift, results, workers)
        else:
            pool_batch(&batch, <int64_t>spec.shift, results, workers)


def rmac(
    list maps, list routes, KernelSpec spec not None, aggregation, const Py_ssize_t[::1] order, out,
    int workers,
):
    """Write the descriptor of every image, of one batch or of several batches of one image each.

    An image's regional vectors stay with the thread that pools them until they are its descriptor.
    With fewer images than workers, all workers pool each image together.

    Parameters
    ----------
    maps, routes : IN, of each batch, as `x` and `route` in `pool`
    spec : IN, as in `pool`
    aggregation : IN, `rmac._options.AggregationOptions`
    order : IN, the batches in the order in which threads take them; None as they come
    out : OUT, (N, ...) float32, or float64 for float64
    workers : IN, threads at most
    """
    cdef Call call
    cdef Memory memory = memory_of(out)
    cdef float* out32 = <float*>memory.data
    cdef double* out64 = <double*>memory.data
    cdef Py_ssize_t i, size
    call.aggregation = aggregation_of(aggregation)
    call.order = &order[0] if order is not None else NULL
    call.n_batches = len(maps)
    cdef bytes batches = uninitialised(call.n_batches * sizeof(Batch))
    call.batches = <Batch*>PyBytes_AsString(batches)
    for i in range(call.n_batches):
        call.batches[i] = batch_of(maps[i], routes[i], spec)
    call.images = call.n_batches if call.n_batches > 1 else call.batches[0].x.images
    call.length = memory.size // call.images
    call.workers = rmac_team(min(workers, tasks_of(&call)))
    size = thread_bytes(&call, memory.itemsize)
    cdef bytes workspace = uninitialised(workspace_of_workers(call.workers, size))
    share_workspace(call.batches, call.n_batches, workspace, size)
    with nogil:
        if spec.kind == Kind.FLOAT64:
            if spec.sums:
                rmac_images(&call, <double>0, out64)
            else:
                rmac_images(&call, <int64_t>spec.shift, out64)
        elif spec.sums:
            if spec.itemsize == sizeof(float):
                rmac_images(&call, <float>0, out32)
            else:
                rmac_images(&call, <double>0, out32)
        elif spec.itemsize == 1:
            rmac_images(&call, <int8_t>spec.shift, out32)
        elif spec.itemsize == 2:
            rmac_images(&call, <int16_t>spec.shift, out32)
        else:
            rmac_images(&call, <int32_t>spec.shift, out32)


def describe(vectors, aggregation, out):
    """Turn regional vectors into descriptors, on one thread.

    The vectors come from a matrix product, which takes far longer than this. Its threads still wait
    busily for the next product while this runs, so more threads would only disturb each other.

    Parameters
    ----------
    vectors : TEMP, (N, R, D) of the dtype of `out`, overwritten; the memory of `out` if vectors are
        neither summed nor averaged
    aggregation : IN, `rmac._options.AggregationOptions`
    out : OUT, (N, D) float32 or float64
    """
    cdef Aggregation options = aggregation_of(aggregation)
    if out.itemsize == sizeof(double):
        describe_images[double](vectors, &options, out)
    else:
        describe_images[float](vectors, &options, out)


cdef void describe_images(
    floating[:, :, ::1] vectors, const Aggregation* options, floating[:, ::1] out
):
    cdef Py_ssize_t image
    with nogil:
        for image in range(out.shape[0]):
            describe_image(
                &vectors[image, 0, 0], vectors.shape[1], vectors.shape[2], options, &out[image, 0]
            )


cdef int64_t xor_of(const int64_t* words, Py_ssize_t n) noexcept nogil:
    cdef int64_t total = 0
    cdef Py_ssize_t i
    for i in range(n):
        total ^= words[i]
    return total


def read(const int64_t[::1] words, int workers):
    """Read memory once, as fast as the workers can: the floor of every kernel here."""
    cdef int64_t total = 0
    cdef Py_ssize_t block, size = 1 << 13
    cdef Py_ssize_t blocks = (words.shape[0] + size - 1) // size
    workers = rmac_team(workers)
    for block in prange(blocks, nogil=True, schedule="static", num_threads=workers):
        total ^= xor_of(&words[block * size], min(size, words.shape[0] - block * size))
    return total


def build_info():
    """Return how this module was built."""
    names = {"version": RMAC_VERSION, "compiler": RMAC_COMPILER, "isa": RMAC_ISA}
    return {name: text.decode() for name, text in names.items()} | {"openmp": RMAC_OPENMP}


def machine_has(str isa):
    """Return whether this machine has an instruction set; False for one that is not known."""
    return rmac_machine_has(isa.encode())


def default_threads(int most, bint heed_cpus):
    """Return how many threads OpenMP would use for the calling thread now: 1..most, 1 without it.

    Parameters
    ----------
    most : IN, at least 1
    heed_cpus : IN, whether to return no more than the CPUs that the calling thread may use now
    """
    cdef int threads = min(most, omp_get_max_threads())
    if heed_cpus and threads > 1:
        threads = min(threads, omp_get_num_procs())
    return max(threads, 1)


def team(int workers):
    """Return how many threads a parallel region of this thread can have: `workers`, or fewer.

    Whatever module has the region: all modules share the threads of OpenMP.
    """
    return rmac_team(workers)


def startable(int threads):
    """Return how many of so many threads the system can start now, with the caller as one."""
    return 1 + rmac_started(threads - 1) if threads > 1 else threads
