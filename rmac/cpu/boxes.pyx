# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, freethreading_compatible=True
"""The box of a map whose maxima are most similar to a query's, among all boxes or a grid of them.

Threads
    A task takes one tile and one job, which is an image or some of its strips: the boxes of one
    height that start in one row.
Accumulation, NaN and memory
    See scores.pxd.
"""

from cpython.bytes cimport PyBytes_AsString
from cython cimport floating
from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY
from libc.stdint cimport int64_t, uint64_t

from rmac.cpu.buffers cimport (
    first_line, size_product, size_sum, uninitialised, whole_lines, workspace_of_workers,
)
from rmac.cpu.candidates cimport (
    Batch, Box, Candidates, Found, Height, Job, ScoreBox, batch_of, is_better, most_sums, refine,
    whole_map, write_found,
)
from rmac.cpu.keys cimport LINE, lanes_of
from rmac.cpu.scores cimport (
    DIGIT_LINES, MOST_LINES, Call, Cells, Parts, cells_of_digits, cells_of_floats,
    cells_of_kind, cells_of_wide_doubles, compare_strips, find_lengths, find_scores,
    rmac_has_byte_products, sum_tile,
)
from rmac.cpu.tables cimport KernelSpec, Kind
from rmac.cpu.tiles cimport maxima_of_box
from rmac.cpu.values cimport Map

cdef extern from "floats.h" nogil:
    uint64_t set_default_floats()
    void restore_floats(uint64_t before)

LINES_OF_NUMBERS, LINES_OF_DIGITS = MOST_LINES, DIGIT_LINES  # of a cell, at most

cdef enum:
    MOST_SUMS = 1 << 24      # bytes of sums that are kept at a time
    TASKS_PER_WORKER = 8     # that are dealt out at a time


# Refinement of a grid's best box.

cdef struct Context:
    # What the score of a box is of.
    const Call* call
    const Job* job
    Py_ssize_t query
    char* workspace


cdef double score_maxima(const Context* of, const Box* box, floating* maxima) noexcept nogil:
    """Return the score of one box, the same as `sum_tile` and `compare_run` give it."""
    cdef const Call* call = of.call
    cdef Py_ssize_t size = call.tiles * call.lanes
    cdef const Cells* cells = &cells_of_floats if floating is float else call.cells
    cdef const floating* query = <const floating*>call.queries + of.query * call.lanes
    cdef floating[2] sums
    cdef double squares = 0, products = 0
    cdef Py_ssize_t tile
    cdef Parts parts
    maxima_of_box(&of.job.batch.x, of.job.image, box, maxima, size, maxima + size)
    parts.step = 0
    for tile in range(call.tiles):
        parts.first = parts.second = <const char*>(maxima + tile * call.lanes)
        cells.score(parts, 1, <const char*>query, 1, sums, call.lines)
        query += call.n_queries * call.lanes
        squares += sums[0]
        products += sums[1]
    find_lengths(&squares, 1)
    find_scores(&squares, &products, 1, call.rounded)
    return products


cdef double score_box_float(const void* context, const Box* box) noexcept nogil:
    cdef const Context* of = <const Context*>context
    return score_maxima(of, box, <float*>of.workspace)


cdef double score_box_double(const void* context, const Box* box) noexcept nogil:
    cdef const Context* of = <const Context*>context
    return score_maxima(of, box, <double*>of.workspace)


cdef void refine_image(
    const Context* of, Py_ssize_t steps, Py_ssize_t sweeps, floating like, Found* found
) noexcept nogil:
    """Refine the best box of a query, or the whole map if there is none."""
    cdef const Map* x = &of.job.batch.x
    cdef ScoreBox score_box = score_box_double
    if floating is float:
        score_box = score_box_float
    if found.score == -INFINITY:
        found.box = whole_map(x)
        found.score = score_box(of, &found.box)
    if found.score > -INFINITY:
        refine(x, score_box, of, steps, sweeps, found)


# Tasks.

cdef inline char* workspace_of(const Call* call, int thread) noexcept nogil:
    return call.workspace + thread * call.workspace_size


cdef inline void sum_task(
    const Call* call, const Job* jobs, Py_ssize_t task, int thread, floating like, char* overflows
) noexcept nogil:
    cdef uint64_t floats = set_default_floats()
    overflows[task] = sum_tile(
        call, jobs + task // call.tiles, task % call.tiles, workspace_of(call, thread), like
    )
    restore_floats(floats)


cdef inline void compare_task(
    const Call* call, const Job* jobs, Py_ssize_t task, Py_ssize_t parts, int thread,
    const char* overflows, floating like, Found* found,
) noexcept nogil:
    cdef uint64_t floats = set_default_floats()
    compare_strips(
        call, jobs + task // parts, task % parts, parts, overflows + task // parts * call.tiles,
        <double*>workspace_of(call, thread), like, found + task * call.n_queries,
    )
    restore_floats(floats)


cdef inline void refine_task(
    const Call* call, const Job* jobs, Py_ssize_t task, int thread, Py_ssize_t steps,
    Py_ssize_t sweeps, floating like, Found* found,
) noexcept nogil:
    cdef uint64_t floats = set_default_floats()
    cdef Context of
    of.call, of.job, of.query = call, jobs + task // call.n_queries, task % call.n_queries
    of.workspace = workspace_of(call, thread)
    refine_image(&of, steps, sweeps, like, found + task)
    restore_floats(floats)


cdef void search_jobs(
    const Call* call, const Job* jobs, Py_ssize_t n, Py_ssize_t parts, floating like,
    char* overflows, Found* found,
) noexcept nogil:
    """Write whether each tile of each job may overflow, and what each part of a job found."""
    cdef Py_ssize_t task
    if call.workers == 1:
        for task in range(n * call.tiles):
            sum_task(call, jobs, task, 0, like, overflows)
        for task in range(n * parts):
            compare_task(call, jobs, task, parts, 0, overflows, like, found)
    else:
        for task in prange(n * call.tiles, schedule="dynamic", num_threads=call.workers):
            sum_task(call, jobs, task, threadid(), like, overflows)
        for task in prange(n * parts, schedule="dynamic", num_threads=call.workers):
            compare_task(call, jobs, task, parts, threadid(), overflows, like, found)


cdef void refine_jobs(
    const Call* call, const Job* jobs, Py_ssize_t n, Py_ssize_t steps, Py_ssize_t sweeps,
    floating like, Found* found,
) noexcept nogil:
    """Refine what was found in images, of one job each."""
    cdef Py_ssize_t task
    if call.workers == 1:
        for task in range(n * call.n_queries):
            refine_task(call, jobs, task, 0, steps, sweeps, like, found)
    else:
        for task in prange(n * call.n_queries, schedule="dynamic", num_threads=call.workers):
            refine_task(call, jobs, task, threadid(), steps, sweeps, like, found)


# Preparation, with the GIL.

cdef Py_ssize_t sums_before(const Candidates* candidates, Py_ssize_t strip) noexcept:
    """Return the sums of all strips before one."""
    cdef const Height* height
    cdef Py_ssize_t i
    for i in range(candidates.n_heights):
        height = candidates.heights + i
        if strip < height.first_strip + height.rows:
            return height.first_sum + (strip - height.first_strip) * height.sums
    return candidates.sums


cdef Job job_of(
    const Batch* batch, Py_ssize_t image, Py_ssize_t index, Py_ssize_t part, Py_ssize_t parts
) noexcept:
    cdef Job job
    cdef Py_ssize_t strips = batch.candidates.strips
    job.batch, job.index = batch, index
    job.image = batch.x.data + image * batch.x.image_stride
    job.first, job.stop = strips * part // parts, strips * (part + 1) // parts
    job.first_sum = sums_before(&batch.candidates, job.first)
    job.sums = sums_before(&batch.candidates, job.stop) - job.first_sum
    job.memory = NULL
    return job


cdef list jobs_of_images(
    const Batch* batches, Py_ssize_t n, const Call* call, Py_ssize_t images, Py_ssize_t itemsize
):
    """Return for each batch in how many jobs an image is searched.

    They are enough for all workers, and so many that the sums of a job need little memory.
    """
    cdef Py_ssize_t i, size, most
    cdef list out = []
    most = -(-2 * call.workers // max(1, call.tiles * images)) if call.workers > 1 else 1
    for i in range(n):
        size = size_product(batches[i].candidates.sums, call.tiles * itemsize)
        out.append(max(1, min(batches[i].candidates.strips, max(most, -(-size // MOST_SUMS)))))
    return out


cdef Py_ssize_t thread_bytes(const Batch* batches, Py_ssize_t n, const Call* call) noexcept:
    """Return the bytes that a thread needs.

    They are for a tile and a row, for the sums of a strip, or for a box and its maxima.
    """
    cdef Py_ssize_t i, size = 0
    cdef const Map* x
    for i in range(n):
        x = &batches[i].x
        size = max(size, size_sum(
            size_product(size_product(x.height, x.width), call.cell),
            size_product(x.width, call.row_cell),
        ))
        size = max(size, size_product(most_sums(&batches[i].candidates), sizeof(double)))
        size = max(size, size_sum(
            call.tiles * call.lanes * <Py_ssize_t>sizeof(double),
            size_product(size_product(x.height, x.width), sizeof(double)),
        ))
    return whole_lines(size)


cdef void keep_better(
    const Job* jobs, const Found* found, Py_ssize_t n, Py_ssize_t parts, const Call* call,
    Found* best,
) noexcept:
    """Keep the best box of each query and image, of those that the parts of jobs found."""
    cdef Py_ssize_t task, query
    cdef const Found* one
    cdef Found* other
    for task in range(n * parts):
        for query in range(call.n_queries):
            one = found + task * call.n_queries + query
            other = best + jobs[task // parts].index * call.n_queries + query
            if one.score > -INFINITY and is_better(one, other, call.small_first):
                other[0] = one[0]


# What Python calls.

def search(
    list maps, list tables, KernelSpec spec not None, queries, options, int64_t[:, :, ::1] boxes,
    double[:, ::1] scores, char[::1] overflows, int workers,
):
    """Write the best box of every map and query, and its score.

    Parameters
    ----------
    maps : IN, batches (N, C, H, W) in any strides
    tables : IN, `rmac._candidates.Candidates` of each batch
    spec : IN, what the values are
    queries : IN, (tile, query, lane) of length 1 or 0: float32, or float64 for more exact sums;
        or with `options.digits` the digits of each lane, see scores.h, as float32
    options : IN, `rmac.cpu.search.Options`
    boxes, scores : OUT, (N, Q, 4) and (N, Q), of the images of all batches
    overflows : OUT, (N,), whether squares may overflow or underflow: nothing else is right then;
        never set if `options.wide`
    workers : IN, threads at most, as many as can start
    """
    if queries.itemsize == sizeof(float):
        search_images[float](
            maps, tables, spec, queries, options, boxes, scores, overflows, workers
        )
    else:
        search_images[double](
            maps, tables, spec, queries, options, boxes, scores, overflows, workers
        )


cdef search_images(
    list maps, list tables, KernelSpec spec, const floating[:, :, ::1] queries, options,
    int64_t[:, :, ::1] boxes, double[:, ::1] scores, char[::1] overflows, int workers,
):
    cdef Call call
    cdef Py_ssize_t i, image, part, n_jobs, n = len(maps), images = scores.shape[0]
    cdef Py_ssize_t steps = options.refine, sweeps = options.sweeps
    call.tiles, call.n_queries = queries.shape[0], queries.shape[1]
    call.queries = <const char*>&queries[0, 0, 0] if call.tiles else NULL
    call.query = queries.shape[2] * sizeof(floating)
    call.lanes = options.lanes
    call.lines = call.lanes // (LINE if options.digits else lanes_of(<floating>0))
    call.kind = spec.kind if floating is float else Kind.FLOAT64
    call.cells = &cells_of_digits if options.digits else cells_of_kind + call.kind
    if options.wide:
        call.cells = &cells_of_wide_doubles
    call.cell = call.lanes * (spec.itemsize if floating is float else sizeof(double))
    call.row_cell = call.lanes * sizeof(floating) if call.cells.widen else call.cell
    call.rounded, call.small_first = options.rounded, options.small_first
    call.workers = workers
    cdef bytes batch_memory = uninitialised(n * sizeof(Batch))
    cdef Batch* batches = <Batch*>PyBytes_AsString(batch_memory)
    for i in range(n):
        batches[i] = batch_of(maps[i], tables[i], spec)
    cdef list parts = jobs_of_images(batches, n, &call, images, sizeof(floating))
    cdef bytes found_memory = uninitialised(images * call.n_queries * sizeof(Found))
    cdef Found* found = <Found*>PyBytes_AsString(found_memory)
    for i in range(images * call.n_queries):
        found[i].score = -INFINITY
    n_jobs = sum([maps[i].shape[0] * parts[i] for i in range(n)])
    cdef bytes job_memory = uninitialised((n_jobs + images) * sizeof(Job))
    cdef Job* jobs = <Job*>PyBytes_AsString(job_memory)
    cdef Job* whole = jobs + n_jobs
    cdef Py_ssize_t job = 0, index = 0
    for i in range(n):
        for image in range(batches[i].x.images):
            whole[index] = job_of(batches + i, image, index, 0, 1)
            for part in range(parts[i]):
                jobs[job] = job_of(batches + i, image, index, part, parts[i])
                job += 1
            index += 1
    call.workspace_size = thread_bytes(batches, n, &call)
    cdef bytes workspace = uninitialised(workspace_of_workers(workers, call.workspace_size))
    call.workspace = first_line(workspace)
    search_groups(&call, jobs, n_jobs, <floating>0, found, overflows)
    if options.grid:
        with nogil:
            refine_jobs(&call, whole, images, steps, sweeps, <floating>0, found)
    for i in range(images * call.n_queries):
        write_found(whole + i // call.n_queries, found + i, boxes, scores, i % call.n_queries)


cdef search_groups(
    const Call* call, Job* jobs, Py_ssize_t n, floating like, Found* best, char[::1] overflows
):
    """Search a group of jobs at a time, so that their sums need little memory."""
    cdef Py_ssize_t first = 0, stop, size, parts, task
    cdef bytes sums, overflow_memory, found_memory
    cdef char* memory
    cdef char* of_tasks
    cdef Found* found
    while first < n:
        stop, size = first, 0
        while stop < n and (stop == first or (
            size + jobs[stop].sums * call.tiles * sizeof(floating) <= MOST_SUMS
            and (stop - first) * call.tiles < TASKS_PER_WORKER * call.workers
        )):
            size = size_sum(
                size, size_product(jobs[stop].sums, call.tiles * <Py_ssize_t>sizeof(floating))
            )
            stop += 1
        parts = 1 if stop - first >= 2 * call.workers else call.workers
        sums = uninitialised(size_sum(size, LINE))
        overflow_memory = uninitialised((stop - first) * call.tiles)
        found_memory = uninitialised((stop - first) * parts * call.n_queries * sizeof(Found))
        memory = first_line(sums)
        of_tasks = PyBytes_AsString(overflow_memory)
        found = <Found*>PyBytes_AsString(found_memory)
        for task in range(first, stop):
            jobs[task].memory = memory
            memory += jobs[task].sums * call.tiles * sizeof(floating)
        with nogil:
            search_jobs(call, jobs + first, stop - first, parts, like, of_tasks, found)
        for task in range((stop - first) * call.tiles):
            if of_tasks[task]:
                overflows[jobs[first + task // call.tiles].index] = True
        keep_better(jobs + first, found, stop - first, parts, call, best)
        first = stop


def has_byte_products():
    """Return whether this machine and this module multiply bytes, for queries as digits."""
    return rmac_has_byte_products()
