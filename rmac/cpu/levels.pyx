# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: initializedcheck=False, freethreading_compatible=True
"""The search of the paper's code, aml.c, over levels: boxes by integral images of level^10.

Accumulation
    Integral images are exact. Products and squares of roots are added in float64, in the order of
    channels, without fused multiplication: this module is compiled once, for all machines.
NaN
    There is none among levels. A box of zeros has no score.
Memory
    The integral images (C, H + 1, W + 1) int64 of as many images as there are workers.
Threads
    Tasks are some planes of an image, some of its strips, or the refinement of one query.
"""

from cpython.bytes cimport PyBytes_AsString
from cython.parallel cimport prange, threadid
from libc.math cimport INFINITY, sqrt
from libc.stdint cimport int64_t, uint8_t, uint64_t, uintptr_t
from libc.string cimport memcpy

from rmac.cpu.buffers cimport (
    first_line, size_product, size_sum, uninitialised, whole_lines, workspace_of_workers,
)
from rmac.cpu.candidates cimport (
    Batch, Box, Candidates, Found, Height, Job, Run, batch_of, compare_boxes, is_better, most_sums,
    refine, whole_map, write_found,
)
from rmac.cpu.tables cimport KernelSpec
from rmac.cpu.values cimport Map

cdef extern from "floats.h" nogil:
    uint64_t set_default_floats()
    void restore_floats(uint64_t before)

cdef enum:
    PLANES = 16  # of a task
    PARTS = 4    # of the strips of an image, for each worker

cdef double NEVER = -1e11  # the score of the whole map in aml.c, which never scores it

cdef struct Root:
    # The root of sums up to a threshold; that of larger sums is 2 more.
    double root
    int64_t threshold

cdef struct Call:
    const int64_t* powers  # of each level
    const Root* roots      # see `root_of`
    const double* queries  # (Q, C)
    const double* norms    # (Q,)
    Py_ssize_t n_queries
    Py_ssize_t steps, sweeps
    int workers
    Py_ssize_t parts       # of the strips of an image
    char* workspace
    Py_ssize_t workspace_size


cdef inline double root_of(const Root* roots, int64_t total) noexcept nogil:
    """Return the root of aml.c: twice the number of 1^10, 3^10, 5^10 ... below a sum."""
    cdef double value = <double>(total if total > 1 else 1)
    cdef uint64_t bits
    memcpy(&bits, &value, 8)
    roots += (bits >> 50) - (1023 << 2)  # there are 4 intervals in each power of 2
    return roots.root + (2 if total > roots.threshold else 0)


cdef void integrate(
    const Map* x, const char* plane, const int64_t* powers, int64_t* out
) noexcept nogil:
    """Write the integral image (H + 1, W + 1) of a plane of levels."""
    cdef Py_ssize_t y, i, row = x.width + 1
    cdef const char* levels
    cdef int64_t total
    for i in range(row):
        out[i] = 0
    for y in range(x.height):
        levels = plane + y * x.row_stride
        out += row
        total = out[0] = 0
        for i in range(x.width):
            total += powers[(<const uint8_t*>(levels + i * x.pixel_stride))[0]]
            out[i + 1] = out[i + 1 - row] + total


cdef inline double score_of(double products, double squares, double norm) noexcept nogil:
    """Return the score of a box from its sums; -inf if it has none."""
    cdef double score
    if squares == 0 or norm == 0:
        return -INFINITY
    score = products / sqrt(squares) / norm
    return score if score == score else -INFINITY


cdef void sum_strip(
    const Call* call, const Job* job, const Height* height, Py_ssize_t y, int64_t* columns,
    double* roots, double* sums,
) noexcept nogil:
    """Write the sums of all boxes of a height that start in row y, run after run."""
    cdef const Map* x = &job.batch.x
    cdef const Candidates* candidates = &job.batch.candidates
    cdef Py_ssize_t channel, i, k, query, width = x.width + 1
    cdef const int64_t* image
    cdef const Run* run
    cdef double weight
    cdef double* place
    for i in range(height.sums):
        sums[i] = 0
    for channel in range(x.channels):
        image = <const int64_t*>job.memory + (channel * (x.height + 1) + y) * width
        for i in range(width):
            columns[i] = image[height.height * width + i] - image[i]
        place = sums
        for k in range(height.first_run, height.stop_run):
            run = candidates.runs + k
            for i in range(run.columns):
                roots[i] = root_of(
                    call.roots,
                    columns[i * candidates.step + run.width] - columns[i * candidates.step],
                )
                place[i] += roots[i] * roots[i]
            for query in range(run.first_query, run.first_query + run.queries):
                place += run.columns
                weight = call.queries[query * x.channels + channel]
                for i in range(run.columns):
                    place[i] += weight * roots[i]
            place += run.columns


cdef void compare_strip(
    const Call* call, const Job* job, const Height* height, Py_ssize_t y, double* sums,
    Found* found,
) noexcept nogil:
    """Compare the boxes of a strip with the best so far of each query."""
    cdef const Candidates* candidates = &job.batch.candidates
    cdef const Run* run
    cdef const double* squares
    cdef Py_ssize_t i, k, query
    cdef Found one
    one.box.y1, one.box.y2, one.box.x1 = y, y + height.height - 1, 0
    for k in range(height.first_run, height.stop_run):
        run = candidates.runs + k
        squares = sums
        for query in range(run.first_query, run.first_query + run.queries):
            sums += run.columns
            for i in range(run.columns):
                sums[i] = score_of(sums[i], squares[i], call.norms[query])
            compare_boxes(
                sums, run.columns, &one, run.width, candidates.step, False, found + query
            )
        sums += run.columns


cdef struct Context:
    # The image and the query that boxes are scored for.
    const Call* call
    const Job* job
    Py_ssize_t query


cdef double score_box(const void* context, const Box* box) noexcept nogil:
    cdef const Context* of = <const Context*>context
    cdef const Map* x = &of.job.batch.x
    cdef const double* weights = of.call.queries + of.query * x.channels
    cdef Py_ssize_t channel, width = x.width + 1
    cdef const int64_t* top
    cdef const int64_t* bottom
    cdef double root, products = 0, squares = 0
    for channel in range(x.channels):
        top = <const int64_t*>of.job.memory + (channel * (x.height + 1) + box.y1) * width
        bottom = top + (box.y2 + 1 - box.y1) * width
        root = root_of(
            of.call.roots, bottom[box.x2 + 1] - bottom[box.x1] - top[box.x2 + 1] + top[box.x1]
        )
        products += weights[channel] * root
        squares += root * root
    return score_of(products, squares, of.call.norms[of.query])


# Tasks.

cdef inline Py_ssize_t plane_tasks(const Job* job) noexcept nogil:
    return (job.batch.x.channels + PLANES - 1) // PLANES


cdef void integrate_task(
    const Call* call, const Job* jobs, Py_ssize_t task, Py_ssize_t tasks
) noexcept nogil:
    cdef const Job* job = jobs + task // tasks
    cdef const Map* x = &job.batch.x
    cdef Py_ssize_t channel, first = task % tasks * PLANES
    for channel in range(first, min(first + PLANES, x.channels)):
        integrate(
            x, job.image + channel * x.channel_stride, call.powers,
            <int64_t*>job.memory + channel * (x.height + 1) * (x.width + 1),
        )


cdef void search_task(
    const Call* call, const Job* jobs, Py_ssize_t task, int thread, Found* found
) noexcept nogil:
    """Write the best box of each query in a part of the strips of an image."""
    cdef const Job* job = jobs + task // call.parts
    cdef const Candidates* candidates = &job.batch.candidates
    cdef Py_ssize_t part = task % call.parts, i, y, strip, columns = job.batch.x.width + 1
    cdef Py_ssize_t first = candidates.strips * part // call.parts
    cdef Py_ssize_t stop = candidates.strips * (part + 1) // call.parts
    cdef char* workspace = call.workspace + thread * call.workspace_size
    cdef double* roots = <double*>workspace + columns
    cdef double* sums = roots + columns
    cdef const Height* height
    cdef uint64_t floats = set_default_floats()
    found += task * call.n_queries
    for i in range(call.n_queries):
        found[i].score = -INFINITY
    for i in range(candidates.n_heights):
        height = candidates.heights + i
        for strip in range(
            max(first, height.first_strip), min(stop, height.first_strip + height.rows)
        ):
            y = (strip - height.first_strip) * candidates.step
            sum_strip(call, job, height, y, <int64_t*>workspace, roots, sums)
            compare_strip(call, job, height, y, sums, found)
    restore_floats(floats)


cdef void refine_task(
    const Call* call, const Job* jobs, Py_ssize_t task, const Found* parts, Found* found
) noexcept nogil:
    """Refine the best box of all parts of an image for one query."""
    cdef uint64_t floats = set_default_floats()
    cdef Py_ssize_t i, image = task // call.n_queries, query = task % call.n_queries
    cdef const Found* one
    cdef Context of
    of.call, of.job, of.query = call, jobs + image, query
    found += task
    found.box, found.score = whole_map(&of.job.batch.x), -INFINITY
    for i in range(image * call.parts, (image + 1) * call.parts):
        one = parts + i * call.n_queries + query
        if one.score > -INFINITY and is_better(one, found, False):
            found[0] = one[0]
    if found.score == -INFINITY:
        found.score = NEVER
    refine(&of.job.batch.x, score_box, &of, call.steps, call.sweeps, found)
    restore_floats(floats)


cdef void search_jobs(
    const Call* call, const Job* jobs, Py_ssize_t n, Found* parts, Found* found
) noexcept nogil:
    """Search images whose maps have the same number of channels."""
    cdef Py_ssize_t task, planes = plane_tasks(jobs)
    if call.workers == 1:
        for task in range(n * planes):
            integrate_task(call, jobs, task, planes)
        for task in range(n * call.parts):
            search_task(call, jobs, task, 0, parts)
        for task in range(n * call.n_queries):
            refine_task(call, jobs, task, parts, found)
    else:
        for task in prange(n * planes, schedule="static", num_threads=call.workers):
            integrate_task(call, jobs, task, planes)
        for task in prange(n * call.parts, schedule="dynamic", num_threads=call.workers):
            search_task(call, jobs, task, threadid(), parts)
        for task in prange(n * call.n_queries, schedule="dynamic", num_threads=call.workers):
            refine_task(call, jobs, task, parts, found)


# What Python calls.

def search(
    list maps, list tables, KernelSpec spec not None, const int64_t[::1] powers,
    const char[::1] roots, const double[:, ::1] queries, const double[::1] norms, options,
    int64_t[:, :, ::1] boxes, double[:, ::1] scores, int workers,
):
    """Write the best box of every map and query, and its score.

    Parameters
    ----------
    maps : IN, batches (N, C, H, W) of uint8 in any strides
    tables : IN, `rmac._candidates.Candidates` of each batch
    spec : IN, what the values are
    powers, roots : IN, the tables of `rmac.cpu.search`
    queries, norms : IN, (Q, C) and their lengths (Q,)
    options : IN, `rmac.cpu.search.Options`
    boxes, scores : OUT, (N, Q, 4) and (N, Q), of the images of all batches
    workers : IN, threads at most, as many as can start
    """
    cdef Call call
    cdef const Map* x
    cdef Py_ssize_t i, image, first, n, index = 0, most = 0, size = 0
    cdef Py_ssize_t images = scores.shape[0]
    call.n_queries = queries.shape[0]
    call.powers, call.roots = &powers[0], <const Root*>&roots[0]
    call.queries = &queries[0, 0] if queries.shape[1] else NULL
    call.norms = &norms[0]
    call.steps, call.sweeps, call.workers = options.refine, options.sweeps, workers
    call.parts = 1 if workers == 1 else PARTS * workers
    cdef bytes batch_memory = uninitialised(len(maps) * sizeof(Batch))
    cdef Batch* batches = <Batch*>PyBytes_AsString(batch_memory)
    cdef bytes job_memory = uninitialised(images * sizeof(Job))
    cdef Job* jobs = <Job*>PyBytes_AsString(job_memory)
    for i in range(len(maps)):
        batches[i] = batch_of(maps[i], tables[i], spec)
        x = &batches[i].x
        for image in range(x.images):
            jobs[index].batch, jobs[index].index = batches + i, index
            jobs[index].image = x.data + image * x.image_stride
            index += 1
        most = max(most, size_product(
            x.channels, size_product(size_sum(x.height, 1), size_sum(x.width, 1))
        ))
        size = max(size, 2 * (x.width + 1) + most_sums(&batches[i].candidates))
    most = size_product(most, sizeof(int64_t))
    call.workspace_size = whole_lines(size_product(size, sizeof(double)))
    cdef bytes workspace = uninitialised(workspace_of_workers(workers, call.workspace_size))
    call.workspace = first_line(workspace)
    n = min(images, workers)
    cdef bytes integrals = uninitialised(size_sum(size_product(n, most), 8))
    cdef char* memory = <char*>((<uintptr_t>PyBytes_AsString(integrals) + 7) // 8 * 8)
    cdef bytes part_memory = uninitialised(n * call.parts * call.n_queries * sizeof(Found))
    cdef bytes found_memory = uninitialised(n * call.n_queries * sizeof(Found))
    cdef Found* parts = <Found*>PyBytes_AsString(part_memory)
    cdef Found* found = <Found*>PyBytes_AsString(found_memory)
    for first in range(0, images, workers):
        n = min(workers, images - first)
        for i in range(n):
            jobs[first + i].memory = memory + i * most
        with nogil:
            search_jobs(&call, jobs + first, n, parts, found)
        for i in range(n * call.n_queries):
            write_found(
                jobs + first + i // call.n_queries, found + i, boxes, scores, i % call.n_queries
            )
